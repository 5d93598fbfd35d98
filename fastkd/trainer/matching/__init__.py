"""Losses between intermediate tensors of both models: hidden states, attention, relations, saliency."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig

from fastkd.corpora.contexts import evaluating
from fastkd.corpora.tasks import IGNORE_INDEX, Batch
from fastkd.trainer.matches import FeatureMatch, parse_matches
from fastkd.trainer.matching.balance import drowning
from fastkd.trainer.matching.features import attention_loss, hidden_loss, relation_loss, widened
from fastkd.trainer.matching.saliency import saliency, saliency_loss
from fastkd.trainer.models import ModelOutput, Requested, detach, forward
from fastkd.trainer.unlabelled import known_labels
from fastkd.trainer.zero import gathered

logger = logging.getLogger(__name__)

PROJECTIONS = "projections.safetensors"


class Matching(nn.Module):
    """The feature losses of a configuration. Its parameters are the projections between different widths.

    A hidden match between models of different widths uses a learned linear map from the student's states to
    the teacher's width (FitNets, Romero et al. 2015). In an encoder-decoder, hidden states and attention maps
    are those of the decoder (its self-attention), and saliencies are those of the source's tokens.

    Every loss is a sum over the valid targets, with one value for each. A classifier has one target per text
    (per text and label, if it is a multi-label one), and its value is the mean over the text's tokens.

    Only eager attention returns attention maps, and only eager attention has the second derivative that
    saliency needs. So the models that need either are switched to eager attention.

    Args:
        student, teacher: the two models.
        matches: the value of ``DistillationConfig.feature_matches``.
        gradient_weight: the value of ``DistillationConfig.gradient_match_weight``.
        vocab_size: number of columns that both models have; None for all.

    Raises:
        ValueError: an invalid match, a layer that does not exist, a model without attention maps.
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
        self._compared = False
        self.decoder_side = bool(student.config.is_encoder_decoder)
        self.per_text = getattr(student.config, "problem_type", None) is not None
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
        requested = Requested(hidden_states=True, attentions=attention)
        outputs = {"student": _insides(student, requested), "teacher": _insides(teacher, requested)}
        double = any(p.dtype == torch.float64 for p in student.parameters())
        for i, match in enumerate(parsed):
            s, t = (
                _layer(f"feature_matches[{i}]", side, match, getattr(output, match.layer))
                for side, output in outputs.items()
            )
            self.matches.append(replace(match, student=s, teacher=t))
            bridge: nn.Module = nn.Identity()
            if match.kind == "hidden":
                narrow = outputs["student"].hidden_states[s].shape[-1]
                wide = outputs["teacher"].hidden_states[t].shape[-1]
                bridge = bridge if narrow == wide else _projection(narrow, wide, i, double)
            self.projections.append(bridge)

    @property
    def requested(self) -> Requested:
        """The intermediate tensors that a forward must keep."""
        layers = {match.layer for match in self.matches}
        return Requested("hidden_states" in layers, "attentions" in layers, self.gradient_weight > 0)

    def prepare(self, teacher: ModelOutput, targets: Tensor) -> ModelOutput:
        """The teacher's output with its saliency computed and its graph freed, before the student runs."""
        if teacher.embeddings is None:
            return teacher
        with torch.enable_grad():
            found = saliency(teacher, known_labels(targets), self.vocab_size, create_graph=False)
        return ModelOutput(
            detach(teacher.distribution),
            tuple(hidden.detach() for hidden in teacher.hidden_states),
            tuple(weights.detach() for weights in teacher.attentions),
            saliency=found.detach(),
        )

    def forward(
        self, student: ModelOutput, teacher: ModelOutput, targets: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        """The losses of each kind times their weights, by name. They are sums over the valid targets."""
        found: dict[str, Tensor] = {}
        with torch.autocast(targets.device.type, enabled=False):
            text = self.per_text or targets.dim() == 1
            known = known_labels(targets)  # saliency is that of the labels
            read = _sequences(known, batch, text, decoder_side=False, source=self.decoder_side)
            said = _sequences(targets, batch, text, decoder_side=self.decoder_side) if self.matches else read
            for match, projection in zip(self.matches, self.projections, strict=True):
                values = self._values(match, projection, student, teacher, said.segments)
                # Values at positions without a target must not count, even if they are NaN.
                total = (values.where(said.shares > 0, 0.0) * said.shares).sum()
                name = f"feature_{match.kind}"
                found[name] = found.get(name, 0.0) + match.weight * total
            if self.gradient_weight:
                assert teacher.saliency is not None
                mine = saliency(student, known, self.vocab_size, create_graph=torch.is_grad_enabled())
                distance = saliency_loss(mine, teacher.saliency, read.segments, read.counts)
                found["saliency"] = self.gradient_weight * distance
        return found

    def _values(
        self,
        match: FeatureMatch,
        projection: nn.Module,
        student: ModelOutput,
        teacher: ModelOutput,
        segments: Tensor,
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
        # Set padding to 0, since it may hold NaN, and a mask that multiplies by 0 would keep NaN.
        s, t = (hidden.where((segments >= 0)[..., None], 0.0) for hidden in (s, t))
        if match.kind == "relation":
            return relation_loss(s, t, segments, match.loss)
        if isinstance(projection, nn.Linear):
            s = widened(s)
            s = F.linear(s, projection.weight.to(s.dtype), projection.bias.to(s.dtype))
        return hidden_loss(s, t, match.loss)

    def warn_of_drowning(self, means: Mapping[str, float]) -> None:
        """Warn of weights that drown the loss on the logits. Only the first call compares anything.

        Args:
            means: the means of a training step, as they are logged.
        """
        if not self._compared:
            for one in drowning(means, self.matches, self.gradient_weight):
                logger.warning("%s: %s", one.found, one.remedy)
        self._compared = True

    def save(self, folder: Path, state: dict[str, Tensor] | None = None) -> None:
        """Write the projections, if there are any, beside the student.

        Args:
            folder: directory of the checkpoint.
            state: this module's gathered ``state_dict``, if the parameters themselves are sharded.
        """
        state = self.state_dict() if state is None else state
        if state:
            whole = {name: value.detach().cpu().contiguous() for name, value in state.items()}
            folder.mkdir(parents=True, exist_ok=True)
            safetensors.torch.save_file(whole, folder / PROJECTIONS)

    def load(self, folder: Path) -> None:
        """Read the projections that :meth:`save` wrote.

        Raises:
            ValueError: no projections in the directory, or those of other ``feature_matches``.
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
    # The stacks of T5 have configs of their own, which older versions of `transformers` do not switch.
    for module in model.modules():
        if isinstance(config := getattr(module, "config", None), PreTrainedConfig):
            config._attn_implementation = "eager"


@torch.no_grad()
def _insides(model: Any, requested: Requested) -> ModelOutput:
    """The model's output for a few tokens, which shows its layers and their widths."""
    with evaluating(model), gathered(model):
        ids = torch.arange(4, device=model.device)[None] % model.get_input_embeddings().weight.shape[0]
        if isinstance(end := getattr(model.config, "eos_token_id", None), int):
            ids[:, -1] = end  # some classifiers read their output at this token
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = ids
        return forward(model, None, inputs, requested)


def _layer(name: str, side: str, match: FeatureMatch, found: Sequence[Tensor]) -> int:
    """The layer's index in the tuple that the model returns."""
    asked: int = getattr(match, side)
    what = "attention maps" if match.kind == "attention" else "hidden states"
    if not found:
        raise ValueError(f"{name}: the {side} returns no {what}")
    first = 1 if match.kind == "attention" else 0
    last = len(found) - 1 + first
    if not (first <= asked <= last or -len(found) <= asked < 0):
        raise ValueError(
            f"{name}: the {side} has {what} from {first} to {last} (or -1 for the last), not {asked}"
        )
    return asked - first if asked >= 0 else len(found) + asked


def _projection(narrow: int, wide: int, seed: int, double: bool) -> nn.Linear:
    """A projection with weights drawn from its own generator.

    So they are the same on every process, and the global random state does not change.
    """
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
    """The sequences of a batch.

    Attributes:
        segments: ``(batch, length)``, number of the sequence that a token belongs to, -1 for padding.
        shares: ``(batch, length)``, number of targets that a position counts for: 1 or 0; in a classifier, 1
            divided by the number of the text's tokens, or 0 (times its targets, if it has several).
        counts: number of valid targets of each sequence.
    """

    segments: Tensor
    shares: Tensor
    counts: Tensor


def _sequences(
    targets: Tensor, batch: Batch, per_text: bool, decoder_side: bool, source: bool = False
) -> _Sequences:
    """The sequences of the decoder's tokens, or of the model's input tokens.

    Args:
        targets: returned by :meth:`Task.targets`.
        batch: made by :meth:`Task.collate`.
        per_text: whether the targets are a classifier's, with one or several for each text.
        decoder_side: whether the tokens are the decoder's, which are the labels.
        source: whether the input tokens are a different sequence from the targets.
    """
    valid = targets != IGNORE_INDEX
    ids = batch["input_ids"]
    mask = batch.get("attention_mask")
    if per_text:
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        texts, counts = _numbered(real), valid.float().reshape(len(ids), -1).sum(1)
        return _Sequences(texts, real * (counts / real.sum(1).clamp(min=1))[:, None], counts)
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
    """Numbers each row as one sequence, -1 where ``real`` is False."""
    rows = torch.arange(len(real), device=real.device)[:, None]
    return torch.where(real, rows, -1)
