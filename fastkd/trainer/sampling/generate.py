"""Sampling with ``generate`` of `transformers`, in the precision of training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fastkd.corpora.contexts import seeded
from fastkd.corpora.decode import PLAIN_SAMPLING, write
from fastkd.corpora.tasks import Task
from fastkd.corpora.window import positions
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.precision import autocast
from fastkd.trainer.sampling.base import Draw

# A checkpoint's own limits on answers are overridden too, since the student must be trained on what it would
# write by itself.
_UNFORCED: dict[str, Any] = {"min_length": 0, "min_new_tokens": None, "forced_eos_token_id": None}


class GenerateSampler:
    """A sampler that runs the student itself, all prompts of a call in one batch.

    Args:
        task: causal_lm or seq2seq.
        pad_token_id: fills up the prompts.
        args: provides the precision.
    """

    def __init__(self, task: Task, pad_token_id: int, args: DistillationConfig) -> None:
        self.task, self.pad_token_id, self.args = task, pad_token_id, args

    def start(self, student: Any) -> None:
        """Nothing has to be prepared."""

    def close(self) -> None:
        """Nothing has to be given back."""

    def sample(
        self,
        student: Any,
        prompts: Sequence[list[int]],
        draw: Draw,
        device: torch.device,
        sharded: bool = False,
    ) -> list[list[int]]:
        """See :meth:`Sampler.sample`. The longest prompt decides how short the answers are near the end of
        the window.
        """
        room = draw.longest
        if (window := positions(student)) is not None:
            before = max(map(len, prompts)) if self.task.name == "causal_lm" else 1  # the start token
            room = max(1, min(room, window - before))
        suppressed = [*(draw.options.get("suppress_tokens") or []), *draw.suppressed]
        with seeded(draw.seed, device), autocast(self.args, device):
            return write(
                student,
                self.task,
                prompts,
                draw.ends,
                self.pad_token_id,
                device,
                **{
                    **PLAIN_SAMPLING,
                    **_UNFORCED,
                    **draw.options,
                    "temperature": draw.temperature,
                    "num_return_sequences": 1,
                    "max_new_tokens": room,
                    "suppress_tokens": suppressed or None,
                    "synced_gpus": False if sharded else None,
                },
            )
