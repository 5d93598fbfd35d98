"""Who writes the student's own samples: ``generate`` of `transformers`, or vLLM in the same process."""

from __future__ import annotations

from fastkd.corpora.tasks import Task
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.sampling.base import Draw, Sampler
from fastkd.trainer.sampling.engine import VllmSampler
from fastkd.trainer.sampling.generate import GenerateSampler

__all__ = ["Draw", "Sampler", "sampler_of"]


def sampler_of(args: DistillationConfig, task: Task, pad_token_id: int) -> Sampler:
    """The sampler that the field ``sampler`` names."""
    return VllmSampler(args) if args.sampler == "vllm" else GenerateSampler(task, pad_token_id, args)
