"""Findings about the engine that writes the student's own samples."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from fastkd.runs.doctor.findings import Case, Check, Finding
from fastkd.trainer.sampling.engine import known_to_vllm


def architecture(case: Case) -> Iterator[Finding]:
    """A student whose class vLLM has no implementation of."""
    args = case.args
    if args.sampler != "vllm" or args.lmbda == 0 or args.task != "causal_lm" or find_spec("vllm") is None:
        return
    if (student := case.student_without_weights) is None:
        return
    name = type(student).__name__
    if not known_to_vllm(name):
        yield Finding(
            "warning",
            "vllm_architecture",
            f"vLLM has no implementation of {name}: the run would end before its first step unless vLLM can "
            "run the class of transformers",
            "set sampler: transformers, or another student",
        )


CHECKS: tuple[Check, ...] = (architecture,)
