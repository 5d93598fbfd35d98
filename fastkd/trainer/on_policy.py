"""On-policy distillation: the student learns from the teacher's distributions on its own samples.

Source: GKD, Agarwal et al. 2024.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from fastkd.corpora.contexts import seeded
from fastkd.corpora.decode import end_tokens
from fastkd.corpora.generation import applicable
from fastkd.corpora.tasks import IGNORE_INDEX, Batch, Task
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.crossing import Crossing
from fastkd.trainer.heads import output_width
from fastkd.trainer.sampling import Draw, sampler_of
from fastkd.trainer.sampling.buffer import Answered, Buffer
from fastkd.trainer.sampling.settings import sampler_troubles
from fastkd.trainer.teachers.prompted import LENGTHS, PROMPTS
from fastkd.trainer.teachers.several import NUMBERS

logger = logging.getLogger(__name__)


class OnPolicy:
    """Runs some optimizer steps on the student's own samples instead of the data's answers.

    The seed and the step decide which steps these are; together with the numbers of the process and the
    batch they also decide what is drawn. So resuming changes no sample, and the global random state stays as
    it was.

    With ``sampling_steps`` above 1, or an engine as sampler, the prompts of all batches of that many
    on-policy steps are answered in one call, with the weights of the first of these steps. Their batches are
    read ahead, which does not change the order of the data.

    Args:
        teacher: gives the distributions for the samples; must be live.
        task: causal_lm or seq2seq.
        tokenizer, pad_token_id: the student's.
        args: provides ``lmbda``, ``max_completion_length``, ``sampling_temperature``, ``seed``, the sampler
            and the precision.
        crossing: the tokenizers of both sides, if the teacher has one of its own.

    Attributes:
        seconds: time that sampling took since the value was last set to 0.

    Raises:
        ValueError: a task without text, no teacher or a cached one, packing, settings of the sampler that it
            cannot follow.
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
        for _, reason, mend in sampler_troubles(args):
            raise ValueError(f"{reason}: {mend}")
        self.args, self.crossing = args, crossing
        self.sampler = sampler_of(args, task, pad_token_id)
        self.buffer = Buffer()
        self.seconds = 0.0
        self._at_once = args.sampling_steps > 1 or args.sampler == "vllm"
        self._rooted = False

    def is_due(self, step: int) -> bool:
        """Whether this optimizer step is on-policy; the same on every process and after resuming."""
        return bool(np.random.default_rng([self.args.seed, step]).random() < self.args.lmbda)

    def batches(
        self, source: Iterator[Any], count: int, wrapped: Any, student: Any, step: int, last: int
    ) -> Iterator[Any]:
        """The ``count`` batches of an optimizer step, those of an on-policy step with the student's answers.

        Args:
            source: the batches of the epoch, made by the task's ``collate``.
            count: number of batches in the step; fewer come at the end of the epoch.
            wrapped: the trained module in its distributed wrapper, if it has one.
            student: the plain model inside.
            step: number of the optimizer step.
            last: number of the step after the run's last one.

        Raises:
            ValueError: a batch without a prompt, a sampler that cannot run the student.
        """
        self.sampler.start(student)
        if not self._at_once:
            return self.resample(source, wrapped, student, step) if self.is_due(step) else source
        batches = self.buffer.take(source, count)
        if not batches or not self.is_due(step):
            return iter(batches)
        prompts = [self.prompts(batch) for batch in batches]
        if not self._has(step, prompts):
            self._draw_ahead(source, batches, wrapped, student, step, last)
        answered = self.buffer.drawn.pop(step)
        return (self._answered(batch, a, student) for batch, a in zip(batches, answered, strict=True))

    def _has(self, step: int, prompts: list[list[list[int]]]) -> bool:
        """Whether every process has answers to the prompts of a step."""
        drawn = self.buffer.drawn.get(step)
        has = drawn is not None and [batch.prompts for batch in drawn] == prompts
        if drawn is not None and not has:
            logger.warning(
                "the samples of the checkpoint answer other prompts than those that the data has at this "
                "step, so they are drawn again"
            )
        if self.args.world_size > 1:  # gathering sharded weights takes all processes
            has = all(gather_object([has]))
        return has

    def _draw_ahead(
        self, source: Iterator[Any], first: list[Any], wrapped: Any, student: Any, step: int, last: int
    ) -> None:
        """Answer the prompts of this step and of the next on-policy ones, as many as ``sampling_steps``."""
        window, later, skip = {step: first}, step + 1, 0
        while len(window) < self.args.sampling_steps and later < last:
            batches = self.buffer.peek(source, skip, self.args.gradient_accumulation_steps)
            if not batches:
                break  # the epoch ends
            if self.is_due(later):
                window[later] = batches
            later, skip = later + 1, skip + len(batches)
        prompts = {number: [self.prompts(batch) for batch in batches] for number, batches in window.items()}
        asked = [prompt for batches in prompts.values() for batch in batches for prompt in batch]
        answers = iter(self._sampled(asked, wrapped, student, step, 0, first[0]))
        self.buffer.drawn = {
            number: [Answered(batch, [next(answers) for _ in batch]) for batch in batches]
            for number, batches in prompts.items()
        }

    def resample(self, batches: Iterator[Any], wrapped: Any, student: Any, step: int) -> Iterator[Any]:
        """The batches with their completions replaced by the student's, one batch at a time, and
        ``own_samples`` set.

        Args:
            batches, wrapped, student, step: as those of :meth:`batches`.

        Raises:
            ValueError: a batch without a prompt.
        """
        for number, batch in enumerate(batches):
            prompts = self.prompts(batch)
            completions = self._sampled(prompts, wrapped, student, step, number, batch)
            yield self._answered(batch, Answered(prompts, completions), student)

    def _sampled(
        self, prompts: list[list[int]], wrapped: Any, student: Any, step: int, number: int, batch: Batch
    ) -> list[list[int]]:
        """The student's answers; ``step`` and ``number`` decide what is drawn, and ``batch`` is any one."""
        began = time.perf_counter()
        seeds = np.random.SeedSequence([self.args.seed, step, self.args.process_index, number])
        draw = Draw(
            ends=end_tokens(student, self.tokenizer),
            suppressed=self._suppressed_tokens(student),
            longest=self.args.max_completion_length,
            temperature=self.args.sampling_temperature,
            options=applicable(self.args.generation_kwargs, 1, True),  # type: ignore[arg-type]
            seed=int(seeds.generate_state(1)[0]),
        )
        device = batch["input_ids"].device
        with self._gathered(wrapped, batch) as sharded:
            found = self.sampler.sample(student, prompts, draw, device, sharded)
        self.seconds += time.perf_counter() - began
        return found

    def _answered(self, batch: Batch, answered: Answered, student: Any) -> Batch:
        """A batch with the student's answers in place of its own, and ``own_samples`` set."""
        device = batch["input_ids"].device
        rows = self.rows(answered.prompts, answered.completions)
        made = self.task.collate(rows, self.pad_token_id)
        asked = self.prompt_ends(batch) > 0
        if self.crossing is not None:
            ends = frozenset(end_tokens(student, self.tokenizer))
            made |= self.crossing.of_answers(batch, asked.tolist(), rows, ends)
        made |= {name: batch[name][asked] for name in (NUMBERS, PROMPTS, LENGTHS) if name in batch}
        moved = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in made.items()}
        return {**moved, "own_samples": True}

    def save(self, folder: Path) -> None:
        """Write what later steps have ready into a checkpoint; every process must call this."""
        self.buffer.save(folder / self._file, self.args.world_size)

    def load(self, folder: Path) -> None:
        """Read what a checkpoint has ready for later steps, unless the data is not that of these steps."""
        if not self.args.ignore_data_skip:
            self.buffer.load(folder / self._file, self.args.world_size)

    @property
    def _file(self) -> str:
        return f"own_samples_{self.args.process_index}.json"

    def close(self) -> None:
        """Give back what the sampler has taken, and forget what was ready."""
        self.sampler.close()
        self.buffer.clear()

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

    def _suppressed_tokens(self, student: Any) -> list[int]:
        """Output columns that must not be sampled: padding, and tokens that the teacher does not have."""
        width = output_width(student)
        known = width if self.crossing is not None else min(width, self.teacher.columns)
        if self.tokenizer is not None:
            known = min(known, len(self.tokenizer))
        return list(range(known, width))

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
