"""Formats an estimate for people."""

from __future__ import annotations

import json
from typing import Any

from fastkd.runs.estimate import Estimate
from fastkd.runs.estimate.caches import CacheSize
from fastkd.runs.estimate.engine import engine_note
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.seeds import seeds_of


def text(found: Estimate, args: DistillationConfig) -> str:
    """The estimate as aligned lines, memory first."""
    step = found.step
    lines = [_title(found, args), "", *_aligned(_facts(found)), ""]
    if step.reason is not None:
        lines += [f"Only weights are counted, since the model cannot run without data: {step.reason}.", ""]
    lines += [f"memory at the peak (in the {step.phase}): {size(step.peak)} of tensors"]
    parts = sorted(step.phases[step.phase].items(), key=lambda item: -item[1])
    lines += _aligned([(name, f"{size(value):>9}  {value / step.peak:4.0%}") for name, value in parts], "  ")
    others = [f"{name} {size(parts.total())}" for name, parts in step.phases.items() if name != step.phase]
    if others:
        lines.append("  other phases: " + ", ".join(others))
    lines.append(_whole(found))
    if (note := engine_note(args)) is not None:
        lines.append(f"  {note}")
    if found.at_full_length is not None:
        lines.append(
            f"  Not all rows were looked at: one of {args.max_length} tokens (max_length) would raise the "
            f"peak to {size(found.at_full_length)}."
        )
    lines += ["", f"The largest part is {parts[0][0]}."]
    if found.remedies:
        lines[-1] += " With these settings the peak would be:"
        lines += _aligned(
            [(_settings(r.settings), f"{size(r.peak):>9}  ({r.price})") for r in found.remedies], "  "
        )
    return "\n".join([*lines, "", *_aligned(_costs(found, args))])


def _whole(found: Estimate) -> str:
    """A line on the memory of the whole process, which was measured where a step was tried."""
    free = f"{size(found.free_bytes)} are free."
    if found.tried_bytes is None:
        return (
            f"  The process itself (Python, torch, transformers) adds about {size(found.process_bytes)}, the "
            f"allocator's reserve some percent more. {free}"
        )
    whose = "The whole process" if found.device == "cpu" else "The device's allocator"
    return f"  {whose} took {size(found.tried_bytes)} in a step of this batch that was tried here. {free}"


def _title(found: Estimate, args: DistillationConfig) -> str:
    many = "1 process" if found.processes == 1 else f"each of {found.processes} processes"
    shared = (
        ", FSDP shares weights, gradients and optimizer state" if args.fsdp and found.processes > 1 else ""
    )
    return f"{args.task} on {found.device}, {many}{shared}"


def _facts(found: Estimate) -> list[tuple[str, str]]:
    step, longest = found.step, found.train.longest
    shape = f"{longest.rows} rows of {longest.length} tokens"
    if longest.target:
        shape += f" and {longest.target} of target"
    student = f"{step.parameters:,} parameters"
    if step.trained != step.parameters:
        student += f", {step.trained:,} of them trained"
    facts = [("batch", f"{shape} ({found.train.source})"), ("student", student)]
    if step.teacher_parameters:
        facts.append(("teacher", f"{step.teacher_parameters:,} parameters"))
    facts.append(("loss", "from hidden states" if step.head is None else f"from logits: {step.head}"))
    return facts


def _costs(found: Estimate, args: DistillationConfig) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    if found.seconds_per_step is not None and found.machine is not None:
        low, high = found.seconds_per_step
        line = f"{duration(low)} to {duration(high)} per step ({found.step.flops / 1e9:,.1f} GFLOP a batch; "
        line += (
            "some steps were tried here)"
            if found.tried_bytes is not None
            else "not tried: the range is wide)"
        )
        if found.steps:
            line += (
                f"; {found.steps:,} steps: {duration(low * found.steps)} to {duration(high * found.steps)}"
            )
            if (runs := len(seeds_of(args.seeds, args.seed))) > 1:
                low, high = runs * low * found.steps, runs * high * found.steps
                line += f"; {runs} seeds: {duration(low)} to {duration(high)}"
        if args.lmbda > 0:
            line += "; the student's own samples take more"
        rows.append(("time", line))
    for kind, cost in found.caches.items():
        each = f"{cost.per_token:,.0f} bytes per token"
        head = f" and {size(cost.head)} for the head" if cost.head else ""
        total = "" if cost.total is None else f", {size(cost.total)} for the training data"
        rows.append((f"cache {kind}", each + head + total + _measured(cost)))
    if found.generated_tokens is not None:
        rows.append(
            (
                "generate",
                f"at most {found.generated_tokens:,} tokens "
                f"({found.train.rows:,} rows, max_completion_length {args.max_completion_length})",
            )
        )
    return rows


def _measured(cost: CacheSize) -> str:
    """How the bytes are known, and what a cache would hold."""
    if cost.range is not None:
        low, high = cost.range
        return f" (assumed: {low:,.0f} to {high:,.0f} bytes, by how many draws of the teacher are distinct)"
    if cost.distinct is not None:
        return f" (measured: {cost.distinct:.1f} distinct columns per token)"
    if cost.mass is not None:
        return f" (measured: they hold {cost.mass:.0%} of the probability, 5th percentile {cost.low:.0%})"
    return ""


def _settings(settings: dict[str, Any]) -> str:
    return ", ".join(
        f"{name}: {value if isinstance(value, str) else json.dumps(value)}"
        for name, value in settings.items()
    )


def _aligned(rows: list[tuple[str, str]], indent: str = "") -> list[str]:
    width = max((len(name) for name, _ in rows), default=0)
    return [f"{indent}{name:<{width}}  {value}" for name, value in rows]


def size(count: float) -> str:
    """Bytes in the unit that leaves one to three digits before the point."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration(seconds: float) -> str:
    """A time to two digits, in the largest unit that fits."""
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= 1.5 * length:
            return (
                f"{seconds / length:.2g} {unit}"
                if seconds < 99.5 * length
                else f"{seconds / length:.0f} {unit}"
            )
    return (
        f"{seconds:.2g} s"
        if seconds >= 1
        else f"{1000 * seconds:.2g} ms"
        if seconds < 0.0995
        else f"{seconds:.2g} s"
    )
