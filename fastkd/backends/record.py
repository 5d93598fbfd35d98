"""Records of rows: what a kernel's first sweep finds, in a form that the shards of a vocabulary can add up.

The layout is that of ``csrc/params.h``, which says what each column holds. All sums are over logits less the
row's largest, so that float32 holds their digits on a device without float64, and float64 those of any row.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastkd.backends.shards import Shards
from fastkd.divergences import DIVERGENCES
from fastkd.spec import LossSpec

COLUMNS = (
    *("max_s", "max_t", "z_s", "z_t", "z_one", "stream_0", "stream_1", "stream_2", "cross_shift"),
    *("logit_sum", "label_s", "label_t", "moment_s", "moment_t", "arg_s", "arg_t", "columns"),
    *("sum_0", "sum_1"),
)
LOG2E = math.log2(math.e)
# Exponents of 2 within which a cross stream needs no shift.
NEAR = 64.0
# The sum |q - p| above which a row is distant: 1 - sum |q - p| / 2 would have lost three bits.
DISTANT = 1.75


def stream_powers(spec: LossSpec) -> tuple[tuple[float, float], ...]:
    """Of each stream, the powers of the teacher's and the student's exponentials by which it scales."""
    return DIVERGENCES[spec.divergence].streams(spec.alpha, spec.beta) if reads_teacher(spec) else ()


def reads_teacher(spec: LossSpec) -> bool:
    """Whether the kernels read a dense teacher."""
    return spec.kd_weight != 0 and spec.divergence != "off_support"


def has_sums(spec: LossSpec) -> bool:
    """Whether the divergence takes a sweep between the first and the last."""
    return reads_teacher(spec) and DIVERGENCES[spec.divergence].sums


def has_distant(spec: LossSpec) -> bool:
    """Whether rows that share little probability take a further sweep, whose sums are logarithms."""
    return reads_teacher(spec) and DIVERGENCES[spec.divergence].distant


def has_cross(spec: LossSpec) -> bool:
    """Whether stream 0 is a sum of powers of both sides."""
    return reads_teacher(spec) and DIVERGENCES[spec.divergence].cross


def _wire(spec: LossSpec, metrics: bool) -> list[str]:
    """The columns that a call needs of the other shards."""
    names = ["max_s", "z_s", "z_one", "label_s", "columns"]
    if reads_teacher(spec):
        names += ["max_t", "z_t", *(f"stream_{k}" for k in range(len(stream_powers(spec))))]
        names += ["cross_shift"] * has_cross(spec) + ["label_t"] * DIVERGENCES[spec.divergence].splits_label
    if spec.label_smoothing:
        names.append("logit_sum")
    if metrics:
        names += ["moment_s", "moment_t", "arg_s", "arg_t"]
    return names


def bytes_per_token(spec: LossSpec, metrics: bool = False, itemsize: int = 8) -> int:
    """Bytes per token that a process sends to each other one, in one message, or (with sums) two or three."""
    return itemsize * (len(_wire(spec, metrics)) + 2 * has_sums(spec) + 2 * has_distant(spec))


def combine_distant(record: Tensor, of_all: Tensor, shards: Shards) -> None:
    """Make the sums of distant rows those of the whole vocabulary, in place.

    Args:
        record: ``(rows, len(COLUMNS))``, after the phase ``"distant"``.
        of_all: ``(rows, 2)``, the sums of the phase before, over all shards.
        shards: the other processes' parts.
    """
    logarithms = shards.gather(record[:, -2:]) / LOG2E
    distant = of_all[:, :1] > DISTANT
    record[:, -2:] = torch.where(distant, torch.logsumexp(logarithms, 0) * LOG2E, of_all)


def combine(record: Tensor, spec: LossSpec, shards: Shards, metrics: bool) -> None:
    """Make each process's ``(rows, len(COLUMNS))`` records those of the whole vocabulary, in place.

    Args:
        record: of this process's shard.
        metrics: whether the call wants metrics.
    """
    wire = _wire(spec, metrics)
    # Column by column: a list as an index would be copied to the device, for which the host waits.
    found = shards.gather(torch.stack([record[:, COLUMNS.index(name)] for name in wire], -1))
    part = dict.fromkeys(COLUMNS, record.new_zeros(shards.size, record.shape[0]))  # each (size, rows)
    part.update(zip(wire, found.unbind(-1), strict=True))
    whole = {}

    def below_top(maximum: Tensor) -> tuple[Tensor, Tensor]:
        """The largest of all, and by how much each shard's exceeds it; 0 stands in for -inf."""
        top = maximum.amax(0)
        shard, whole = (torch.where(torch.isneginf(x), 0.0, x) for x in (maximum, top))
        return top, shard - whole

    def scaled(sums: Tensor, by: Tensor) -> Tensor:
        """``sums`` times ``2**by``, where 0 times infinity is 0: such a shard adds nothing."""
        factor = torch.exp2(by)
        return torch.where((sums == 0) | (factor == 0), 0.0, sums * factor)

    # A shard's logits are less its own maximum; now they are to be less the largest.
    whole["max_s"], moved_s = below_top(part["max_s"])
    whole["max_t"], moved_t = below_top(part["max_t"])
    by_s, by_t = moved_s * (LOG2E / spec.temperature), moved_t * (LOG2E / spec.teacher_temperature)
    by_one = moved_s * LOG2E
    part["logit_sum"] = part["logit_sum"] + part["columns"] * moved_s
    part["moment_s"] = part["moment_s"] + part["z_s"] * moved_s
    part["moment_t"] = part["moment_t"] + part["z_t"] * moved_t
    if not has_cross(spec):
        apart = moved_t / spec.teacher_temperature - moved_s / spec.temperature
        for k, (of_t, _) in enumerate(stream_powers(spec)):
            weight = part["z_t"] if of_t else part["z_s"]
            part[f"stream_{k}"] = part[f"stream_{k}"] + weight * apart
    for name, by in (("z_s", by_s), ("moment_s", by_s), ("z_t", by_t), ("moment_t", by_t), ("z_one", by_one)):
        whole[name] = scaled(part[name], by).sum(0)
    whole["cross_shift"] = torch.zeros_like(whole["max_s"])
    for k, (of_t, of_s) in enumerate(stream_powers(spec)):
        name = f"stream_{k}"
        by = of_t * by_t + of_s * by_s
        if k == 0 and has_cross(spec):
            by = by + part["cross_shift"]
            top = torch.where(part[name] > 0, by, -math.inf).amax(0)
            shift = torch.where((top.abs() > NEAR) & torch.isfinite(top), top, 0.0)
            whole["cross_shift"], by = shift, by - shift
        whole[name] = scaled(part[name], by).sum(0)
    for name in ("logit_sum", "columns"):
        whole[name] = part[name].sum(0)
    for name in ("label_s", "label_t"):
        whole[name] = part[name].amax(0)
    owner = {}
    for side in ("s", "t"):
        # The first shard with the largest logit has it.
        owner[side] = (part[f"max_{side}"] == whole[f"max_{side}"]).to(torch.int8).argmax(0)
        whole[f"arg_{side}"] = part[f"arg_{side}"].gather(0, owner[side][None])[0]
    # Columns of two shards differ, whatever their numbers are there.
    whole["arg_t"] = torch.where(owner["s"] == owner["t"], whole["arg_t"], -2.0)
    for name, value in whole.items():
        record[:, COLUMNS.index(name)] = value
