"""Memory of the engine that writes the student's samples with ``sampler: vllm``."""

from __future__ import annotations

from typing import Any

from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.precision import half_precision
from fastkd.trainer.sampling.engine import MEMORY_SHARE


def engine_bytes(args: DistillationConfig, student_bytes: int, itemsize: int) -> int:
    """Bytes that the engine holds throughout the run, as far as the configuration says them: the student's
    weights once more, and ``kv_cache_memory_bytes`` if that is set; 0 without an engine.

    Args:
        args: the configuration.
        student_bytes, itemsize: of the student's weights, and of one of their elements.
    """
    if args.lmbda == 0 or args.sampler != "vllm":
        return 0
    half = half_precision(args)
    weights = student_bytes if half is None else student_bytes * half.itemsize // itemsize
    return weights + int(_given(args).get("kv_cache_memory_bytes") or 0)


def engine_note(args: DistillationConfig) -> str | None:
    """A sentence on the engine's memory that is not counted; None if all is, or there is no engine."""
    if args.lmbda == 0 or args.sampler != "vllm" or _given(args).get("kv_cache_memory_bytes"):
        return None
    share = float(_given(args).get("gpu_memory_utilization", MEMORY_SHARE))
    return (
        f"vLLM's engine takes {share:.0%} of the device (gpu_memory_utilization in sampler_kwargs): what its "
        "weights leave of that holds keys and values, and is not counted here."
    )


def _given(args: DistillationConfig) -> dict[str, Any]:
    return args.sampler_kwargs if isinstance(args.sampler_kwargs, dict) else {}
