"""On-policy distillation: the student learns from the teacher's distributions on its own samples.

Source: GKD, Agarwal et al. 2024.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastkd.corpora.contexts import seeded
from fastkd.corpora.decode import PLAIN_SAMPLING, end_tokens, write
from fastkd.corpora.generation import applicable
from fastkd.corpora.tasks import IGNORE_INDEX, Batch, Task
from fastkd.corpora.window import positions
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.crossing import Crossing
from fastkd.trainer.heads import output_width
from fastkd.trainer.teachers.prompted import LENGTHS, PROMPTS
from fastkd.trainer.teachers.several import NUMBERS

# A checkpoint's own limits on answers are overridden too, since the student must be trained on what it would
# write by itself.
_UNFORCED: dict[str, Any] = {"min_length": 0, "min_new_tokens": None, "forced_eos_token_id": None}


class OnPolicy:
    """Runs some optimizer steps on the student's own samples instead of the data's answers.

    The seed and the step decide which steps these are; together with the numbers of the process and the
    batch they also decide what is drawn. So resuming changes no sample, and the global random state stays as
    it was.

    Args:
        teacher: gives the distributions for the samples; must be live.
        task: causal_lm or seq2seq.
        tokenizer, pad_token_id: the student's.
        args: provides ``lmbda``, ``max_completion_length``, ``sampling_temperature``, ``seed`` and the
            precision.
        crossing: the tokenizers of both sides, if the teacher has one of its own.

    Raises:
        ValueError: a task without text, no teacher or a cached one, packing.
    """

    def __init__(
        self,
        teacher: Any,
        task: Task,
        tokenizer: Any,
        pad_token_id: int,
        args: DistillationConfig,
        crossing: Crossing | None = None,
    ) -> None:
        if task.name == "classification":
            raise ValueError("a classifier writes nothing to learn from: set lmbda: 0")
        if teacher is None:
            raise ValueError(f"lmbda={args.lmbda} needs a teacher to judge the samples: set teacher")
        if not teacher.live:
            raise ValueError(
                "a cached teacher cannot judge new text: give the model itself as teacher, or set lmbda: 0"
            )
        if args.packing:
            raise ValueError("packed texts have no prompts to answer: set packing: false, or lmbda: 0")
        self.teacher, self.task, self.tokenizer, self.pad_token_id = teacher, task, tokenizer, pad_token_id
        self.args, self.crossing = args, crossing
        self._rooted = False

    def is_due(self, step: int) -> bool:
        """Whether this optimizer step is on-policy; the same on every process and after resuming."""
        return bool(np.random.default_rng([self.args.seed, step]).random() < self.args.lmbda)

    def resample(self, batches: Iterator[Any], wrapped: Any, student: Any, step: int) -> Iterator[Any]:
        """The batches with their completions replaced by the student's, and ``own_samples`` set.

        Args:
            batches: made by the task's ``collate``.
            wrapped: the trained module in its distributed wrapper, if it has one.
            student: the plain model inside.
            step: number of the optimizer step.

        Raises:
            ValueError: a batch without a prompt.
        """
        for number, batch in enumerate(batches):
            prompts = self.prompts(batch)
            seeds = np.random.SeedSequence([self.args.seed, step, self.args.process_index, number])
            device = batch["input_ids"].device
            with (
                self._gathered(wrapped, batch) as sharded,
                seeded(int(seeds.generate_state(1)[0]), device),
            ):
                completions = self.sample(student, prompts, device, sharded)
            rows = self.rows(prompts, completions)
            made = self.task.collate(rows, self.pad_token_id)
            asked = self.prompt_ends(batch) > 0
            if self.crossing is not None:
                ends = frozenset(end_tokens(student, self.tokenizer))
                made |= self.crossing.of_answers(batch, asked.tolist(), rows, ends)
            made |= {name: batch[name][asked] for name in (NUMBERS, PROMPTS, LENGTHS) if name in batch}
            moved = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in made.items()}
            yield {**moved, "own_samples": True}

    def prompts(self, batch: Batch) -> list[list[int]]:
        """The prompts that the student answers: each row's source, its tokens before the first label, or all
        its tokens if it has no label.

        Rows with an empty prompt are left out.

        Raises:
            ValueError: no row has a prompt, or the rows are packed.
        """
        ends = self.prompt_ends(batch).tolist()
        prompts = [row[:end] for row, end in zip(batch["input_ids"].tolist(), ends, strict=True) if end]
        if not prompts:
            raise ValueError(
                "lmbda has the student answer prompts, and this data has none: "
                "give prompt and completion columns, or messages, or set lmbda: 0"
            )
        return prompts

    def prompt_ends(self, batch: Batch) -> Tensor:
        """``(rows,)`` number of tokens in each row's prompt; 0 for none."""
        if self.task.name == "seq2seq":
            found: Tensor = batch["attention_mask"].sum(1)
            return found
        if "position_ids" in batch:
            raise ValueError("packed texts have no prompts to answer: set packing: false, or lmbda: 0")
        said = batch["labels"] != IGNORE_INDEX
        return torch.where(said.any(1), said.int().argmax(1), batch["attention_mask"].sum(1))

    def rows(self, prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> list[dict[str, Any]]:
        """Rows as the task encodes them. Only the tokens that the student generated are labels."""
        if self.task.name == "seq2seq":
            return [{"input_ids": p, "labels": c} for p, c in zip(prompts, completions, strict=True)]
        return [
            {"input_ids": p + c, "labels": [IGNORE_INDEX] * len(p) + c}
            for p, c in zip(prompts, completions, strict=True)
        ]

    def sample(
        self, student: Any, prompts: list[list[int]], device: torch.device, sharded: bool = False
    ) -> list[list[int]]:
        """One answer to each prompt, with its end-of-sequence token if the student generated one.

        The prompts are those of the data, so they are never cut: near the end of the student's window the
        answers are shorter instead.
        """
        room = self.args.max_completion_length
        if (window := positions(student)) is not None:
            before = max(map(len, prompts)) if self.task.name == "causal_lm" else 1  # the start token
            room = max(1, min(room, window - before))
        given = applicable(self.args.generation_kwargs, 1, True)  # type: ignore[arg-type]
        suppressed = [*(given.get("suppress_tokens") or []), *self._suppressed_tokens(student)]
        with self._precision(device):
            return write(
                student,
                self.task,
                prompts,
                end_tokens(student, self.tokenizer),
                self.pad_token_id,
                device,
                **{
                    **PLAIN_SAMPLING,
                    **_UNFORCED,
                    **given,
                    "temperature": self.args.sampling_temperature,
                    "num_return_sequences": 1,
                    "max_new_tokens": room,
                    "suppress_tokens": suppressed or None,
                    "synced_gpus": False if sharded else None,
                },
            )

    def _suppressed_tokens(self, student: Any) -> list[int]:
        """Output columns that must not be sampled: padding, and tokens that the teacher does not have."""
        width = output_width(student)
        known = width if self.crossing is not None else min(width, self.teacher.columns)
        if self.tokenizer is not None:
            known = min(known, len(self.tokenizer))
        return list(range(known, width))

    def _precision(self, device: torch.device) -> Any:
        """The autocast context of training; one that does nothing if training uses no autocast."""
        dtype = torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else None
        return torch.autocast(device.type, dtype) if dtype is not None else contextlib.nullcontext()

    @contextlib.contextmanager
    def _gathered(self, wrapped: nn.Module, batch: Batch) -> Iterator[bool]:
        """Gathers all weights on every process if FSDP has sharded them; yields whether it has.

        Answers differ in length between processes, so a layer must not gather its weights during generation:
        the processes would not call that collective equally often.

        Raises:
            ValueError: the first version of FSDP, which cannot do this.
        """
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            yield False
            return
        from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

        modules = list(wrapped.modules())
        if any(isinstance(module, FullyShardedDataParallel) for module in modules):
            raise ValueError("lmbda needs the second version of FSDP: set fsdp_version to 2")
        shards = [module for module in modules if isinstance(module, FSDPModule)]
        if not shards:
            yield False
            return
        if not self._rooted:
            # FSDP makes the first module that runs its root. Run the whole module once, so that the root is
            # not a layer.
            with seeded(0, batch["input_ids"].device), torch.no_grad():
                wrapped(**batch)
            self._rooted = True
        # Remember the setting of each module, since they differ. FSDP has no public getter for it.
        settings = [(g, g.post_forward_mesh_info) for module in shards for g in _parameter_groups(module)]
        for module in shards:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        try:
            yield True
        finally:
            for group, setting in settings:
                group.post_forward_mesh_info = setting
            for module in shards:
                module.reshard()


def _parameter_groups(module: Any) -> list[Any]:
    """The parameter groups of one FSDP module, which may have several since torch 2.13."""
    state = module._get_fsdp_state()
    if hasattr(state, "_fsdp_param_groups"):
        return list(state._fsdp_param_groups)
    return [state._fsdp_param_group] if state._fsdp_param_group is not None else []
