"""Losses between the insides of both models: hidden states, attention, relations, saliency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig

from fastkd import HiddenTeacher
from fastkd.trainer.heads import run
from fastkd.trainer.matching.features import (
    FeatureMatch,
    attention_loss,
    hidden_loss,
    parse_matches,
    relation_loss,
    widened,
)
from fastkd.trainer.matching.saliency import saliency, saliency_loss
from fastkd.trainer.tasks import IGNORE_INDEX
from fastkd.trainer.views import Batch, Distribution, View, Wanted

PROJECTIONS = "projections.safetensors"

__all__ = ["FeatureMatch", "Matching", "parse_matches"]


class Matching(nn.Module):
    """The matches of a configuration. Its parameters are the projections that bridge different widths.

    A hidden match between models of different widths goes through a learned linear map of the student's
    states to the teacher's width (FitNets, Romero et al. 2015). Of an encoder-decoder, hidden states and
    attention maps are the decoder's (its self-attention), saliencies those of the source's tokens.

    Every loss is a sum over the valid targets of one number each. A classifier has one target per text,
    and its number is the mean over the text's tokens.

    Attention maps are made by eager attention alone, and saliency's second derivative goes through no other:
    the models that need it are switched to it.

    Args:
        student, teacher: the two models.
        matches: of ``DistillationConfig.feature_matches``.
        gradient_weight: of ``DistillationConfig.gradient_match_weight``.
        vocab_size: columns that both models have; None for all.

    Raises:
        ValueError: a match that is not one, a layer that is not there, a model without attention maps.
    """

    def __init__(
        self,
        student: Any,
        teacher: Any,
        matches: Sequence[dict[str, Any]],
        gradient_weight: float,
        vocab_size: int | None = None,
    ) -> None:
        super().__init__()
        self.gradient_weight, self.vocab_size = gradient_weight, vocab_size
        self.decoder_side = bool(student.config.is_encoder_decoder)
        parsed = parse_matches(matches)
        attention = any(match.kind == "attention" for match in parsed)
        if attention or gradient_weight:
            _go_eager(student)
        if attention:
            _go_eager(teacher)
        self.matches: list[FeatureMatch] = []
        self.projections = nn.ModuleList()
        if not parsed:
            return
        wanted = Wanted(hidden_states=True, attentions=attention)
        views = {"student": _insides(student, wanted), "teacher": _insides(teacher, wanted)}
        double = any(p.dtype == torch.float64 for p in student.parameters())
        for i, match in enumerate(parsed):
            s, t = (
                _layer(f"feature_matches[{i}]", side, match, getattr(view, match.layer))
                for side, view in views.items()
            )
            self.matches.append(replace(match, student=s, teacher=t))
            bridge: nn.Module = nn.Identity()
            if match.kind == "hidden":
                narrow = views["student"].hidden_states[s].shape[-1]
                wide = views["teacher"].hidden_states[t].shape[-1]
                bridge = bridge if narrow == wide else _projection(narrow, wide, i, double)
            self.projections.append(bridge)

    @property
    def wanted(self) -> Wanted:
        """Which insides must be kept in a forward."""
        layers = {match.layer for match in self.matches}
        return Wanted("hidden_states" in layers, "attentions" in layers, self.gradient_weight > 0)

    def prepare(self, teacher: View, targets: Tensor) -> View:
        """What is wanted of the teacher's graph, taken and the graph let go, before the student runs."""
        if teacher.embeddings is None:
            return teacher
        with torch.enable_grad():
            found = saliency(teacher, targets, self.vocab_size, create_graph=False)
        return View(
            _detached(teacher.distribution),
            tuple(hidden.detach() for hidden in teacher.hidden_states),
            tuple(weights.detach() for weights in teacher.attentions),
            saliency=found.detach(),
        )

    def forward(self, student: View, teacher: View, targets: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Each kind's losses times their weights, by name: sums over the valid targets."""
        found: dict[str, Tensor] = {}
        with torch.autocast(targets.device.type, enabled=False):
            read = _sequences(targets, batch, decoder_side=False, source=self.decoder_side)
            said = _sequences(targets, batch, decoder_side=self.decoder_side) if self.matches else read
            for match, projection in zip(self.matches, self.projections, strict=True):
                values = self._values(match, projection, student, teacher, said.segments)
                # What stands at the other positions is not looked at, be it NaN.
                total = (values.where(said.shares > 0, 0.0) * said.shares).sum()
                name = f"feature_{match.kind}"
                found[name] = found.get(name, 0.0) + match.weight * total
            if self.gradient_weight:
                assert teacher.saliency is not None
                mine = saliency(student, targets, self.vocab_size, create_graph=torch.is_grad_enabled())
                distance = saliency_loss(mine, teacher.saliency, read.segments, read.counts)
                found["saliency"] = self.gradient_weight * distance
        return found

    def _values(
        self, match: FeatureMatch, projection: nn.Module, student: View, teacher: View, segments: Tensor
    ) -> Tensor:
        s = getattr(student, match.layer)[match.student]
        t = getattr(teacher, match.layer)[match.teacher]
        embeddings = match.kind != "attention" and match.student == 0  # may be frozen
        if torch.is_grad_enabled() and not s.requires_grad and not embeddings:
            raise ValueError(
                f"the student's {match.layer.replace('_', ' ')} come without gradients, so nothing is "
                "learned from feature_matches: set gradient_checkpointing_kwargs: {use_reentrant: false}"
            )
        if match.kind == "attention":
            return attention_loss(s, t, match.loss)
        # Padding may hold anything, and 0 times NaN is NaN.
        s, t = (hidden.where((segments >= 0)[..., None], 0.0) for hidden in (s, t))
        if match.kind == "relation":
            return relation_loss(s, t, segments, match.loss)
        if isinstance(projection, nn.Linear):
            s = widened(s)
            s = F.linear(s, projection.weight.to(s.dtype), projection.bias.to(s.dtype))
        return hidden_loss(s, t, match.loss)

    def save(self, folder: Path, state: dict[str, Tensor] | None = None) -> None:
        """Write the projections, where there are any, beside the student.

        Args:
            folder: of the checkpoint.
            state: this module's gathered ``state_dict``, where the parameters themselves are sharded.
        """
        state = self.state_dict() if state is None else state
        if state:
            whole = {name: value.detach().cpu().contiguous() for name, value in state.items()}
            folder.mkdir(parents=True, exist_ok=True)
            safetensors.torch.save_file(whole, folder / PROJECTIONS)

    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: no projections there, or those of other ``feature_matches``.
        """
        expected = self.state_dict()
        if not expected:
            return
        path = folder / PROJECTIONS
        if not path.exists():
            raise ValueError(f"{folder} has no {PROJECTIONS}: it was written without these feature_matches")
        state = safetensors.torch.load_file(path)
        if {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in expected.items()}:
            raise ValueError(f"{path} holds the projections of other feature_matches")
        self.load_state_dict(state)


def _go_eager(model: Any) -> None:
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation("eager")
    for module in model.modules():  # T5's stacks have configs of their own, which older versions leave out
        if isinstance(config := getattr(module, "config", None), PreTrainedConfig):
            config._attn_implementation = "eager"


@torch.no_grad()
def _insides(model: Any, wanted: Wanted) -> View:
    """What the model shows of itself on a few tokens."""
    ids = torch.arange(4, device=model.device)[None] % model.get_input_embeddings().weight.shape[0]
    if isinstance(end := getattr(model.config, "eos_token_id", None), int):
        ids[:, -1] = end  # where some classifiers look
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        return run(model, None, inputs, wanted)
    finally:
        for module in training:
            module.training = True


def _layer(name: str, side: str, match: FeatureMatch, found: Sequence[Tensor]) -> int:
    """The layer's place in the tuple that the model returns."""
    asked: int = getattr(match, side)
    what = "attention maps" if match.kind == "attention" else "hidden states"
    if not found:
        raise ValueError(f"{name}: the {side} gives no {what}")
    first = 1 if match.kind == "attention" else 0
    last = len(found) - 1 + first
    if not (first <= asked <= last or -len(found) <= asked < 0):
        raise ValueError(
            f"{name}: the {side} has {what} from {first} to {last} (or -1 for the last), not {asked}"
        )
    return asked - first if asked >= 0 else len(found) + asked


def _projection(narrow: int, wide: int, seed: int, double: bool) -> nn.Linear:
    """Drawn from a generator of its own: the same on every process, and nobody else's draws change."""
    dtype = torch.float64 if double else torch.float32
    made = nn.utils.skip_init(nn.Linear, narrow, wide, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        made.weight.copy_(torch.randn(wide, narrow, generator=generator, dtype=dtype))
        made.weight.mul_(narrow**-0.5)
        made.bias.zero_()
    return made


@dataclass(frozen=True)
class _Sequences:
    """How a batch falls into sequences.

    Attributes:
        segments: ``(batch, length)``, which sequence a token is of, -1 for padding.
        shares: ``(batch, length)``, how many targets a position stands for; 0 for none.
        counts: valid targets by sequence.
    """

    segments: Tensor
    shares: Tensor
    counts: Tensor


def _sequences(targets: Tensor, batch: Batch, decoder_side: bool, source: bool = False) -> _Sequences:
    """The sequences of the tokens that the decoder says, or of those that the model reads.

    Args:
        targets: as :meth:`Task.targets` gives them.
        batch: as :meth:`Task.collate` makes it.
        decoder_side: the decoder's tokens, which are the labels.
        source: the tokens are another sequence than the targets.
    """
    valid = targets != IGNORE_INDEX
    ids = batch["input_ids"]
    mask = batch.get("attention_mask")
    if targets.dim() == 1:
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        texts = _numbered(real)
        return _Sequences(texts, real * (valid / real.sum(1).clamp(min=1))[:, None], valid.float())
    if decoder_side:
        return _Sequences(_numbered(valid), valid.float(), valid.sum(1).float())
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    if source:
        return _Sequences(_numbered(real), torch.zeros_like(real), valid.sum(1).float())
    segments = _numbered(real)
    if (positions := batch.get("position_ids")) is not None:  # packed: each document begins at 0
        documents = (positions == 0).cumsum(1).clamp(min=1) - 1
        segments = segments.where(~real, segments * ids.shape[1] + documents)
        counts = valid.new_zeros(ids.numel(), dtype=torch.float32)
        counts = counts.index_add(0, segments.clamp(min=0).flatten(), valid.flatten().float())
    else:
        counts = valid.sum(1).float()
    return _Sequences(segments, valid.float(), counts)


def _numbered(real: Tensor) -> Tensor:
    """Each row a sequence of its own."""
    rows = torch.arange(len(real), device=real.device)[:, None]
    return torch.where(real, rows, -1)


def _detached(given: Distribution) -> Distribution:
    if isinstance(given, Tensor):
        return given.detach()
    if isinstance(given, HiddenTeacher):
        bias = None if given.bias is None else given.bias.detach()
        return replace(given, hidden=given.hidden.detach(), weight=given.weight.detach(), bias=bias)
    return given
