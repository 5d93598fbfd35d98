"""Records of rows: the results of a kernel's first sweep, in a form that shards of a vocabulary can combine.

The layout is that of ``csrc/params.h``, which describes each column. In all sums the logits are relative to
the row maximum. float64 then keeps the digits of any row, and float32 enough on a device without float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastkd.backends.shards import Shards
from fastkd.divergences import DIVERGENCES
from fastkd.spec import LossSpec

COLUMNS = (
    *("max_s", "max_t", "z_s", "z_t", "z_ce", "stream_0", "stream_1", "stream_2", "cross_shift"),
    *("logit_sum", "label_s", "label_t", "moment_s", "moment_t", "arg_s", "arg_t", "columns"),
    *("sum_0", "sum_1"),
)
LOG2E = math.log2(math.e)
# A cross stream needs no shift while its exponent of 2 is at most this in magnitude.
NEAR = 64.0
# The sum |q - p| above which a row is distant: 1 - sum |q - p| / 2 would have lost three bits.
DISTANT = 1.75


def stream_powers(spec: LossSpec) -> tuple[tuple[float, float], ...]:
    """For each stream, the powers of the teacher's and the student's exponentials by which it scales."""
    return DIVERGENCES[spec.divergence].streams(spec.alpha, spec.beta) if reads_teacher(spec) else ()


def reads_teacher(spec: LossSpec) -> bool:
    """Whether the kernels read a dense teacher."""
    return spec.kd_weight != 0 and spec.divergence != "off_support"


def has_sums(spec: LossSpec) -> bool:
    """Whether the divergence needs a sweep between the first and the last."""
    return reads_teacher(spec) and DIVERGENCES[spec.divergence].sums


def has_distant(spec: LossSpec) -> bool:
    """Whether rows that share little probability need one more sweep, whose sums are logarithms."""
    return reads_teacher(spec) and DIVERGENCES[spec.divergence].distant


def has_cross(spec: LossSpec) -> bool:
    """Whether stream 0 is a sum of powers of both sides."""
    return reads_teacher(spec) and DIVERGENCES[spec.divergence].cross


def _wire(spec: LossSpec, metrics: bool) -> list[str]:
    """The columns that a call needs from the other shards."""
    names = ["max_s", "z_s", "z_ce", "label_s", "columns"]
    if reads_teacher(spec):
        names += ["max_t", "z_t", *(f"stream_{k}" for k in range(len(stream_powers(spec))))]
        names += ["cross_shift"] * has_cross(spec) + ["label_t"] * DIVERGENCES[spec.divergence].splits_label
    if spec.label_smoothing:
        names.append("logit_sum")
    if metrics:
        names += ["moment_s", "moment_t", "arg_s", "arg_t"]
    return names


def bytes_per_token(spec: LossSpec, metrics: bool = False, itemsize: int = 8) -> int:
    """Bytes per token that a process sends to each other process: one message, or with sums two or three."""
    return itemsize * (len(_wire(spec, metrics)) + 2 * has_sums(spec) + 2 * has_distant(spec))


def combine_distant(record: Tensor, of_all: Tensor, shards: Shards) -> None:
    """Combine the sums of distant rows over all shards, in place.

    Args:
        record: ``(rows, len(COLUMNS))``, after the phase ``"distant"``.
        of_all: ``(rows, 2)``, the sums of the phase ``"sums"``, over all shards.
        shards: the other processes' parts.
    """
    logarithms = shards.gather(record[:, -2:]) / LOG2E
    distant = of_all[:, :1] > DISTANT
    record[:, -2:] = torch.where(distant, torch.logsumexp(logarithms, 0) * LOG2E, of_all)


def combine(record: Tensor, spec: LossSpec, shards: Shards, metrics: bool) -> None:
    """Combine the shards' records ``(rows, len(COLUMNS))`` into those of the whole vocabulary, in place.

    Args:
        record: the records of this process's shard.
        metrics: whether the call has metrics.
    """
    wire = _wire(spec, metrics)
    # Column by column: a list as an index would be copied to the device, and the host would wait for that.
    found = shards.gather(torch.stack([record[:, COLUMNS.index(name)] for name in wire], -1))
    part = dict.fromkeys(COLUMNS, record.new_zeros(shards.size, record.shape[0]))  # each (size, rows)
    part.update(zip(wire, found.unbind(-1), strict=True))
    whole = {}

    def below_top(maximum: Tensor) -> tuple[Tensor, Tensor]:
        """The maximum over all shards, and each shard's maximum minus that, with 0 in place of -inf."""
        top = maximum.amax(0)
        shard, whole = (torch.where(torch.isneginf(x), 0.0, x) for x in (maximum, top))
        return top, shard - whole

    def scaled(sums: Tensor, by: Tensor) -> Tensor:
        """``sums`` times ``2**by``, with 0 times infinity as 0: such a shard adds nothing."""
        factor = torch.exp2(by)
        return torch.where((sums == 0) | (factor == 0), 0.0, sums * factor)

    # A shard's sums are relative to its own maximum; make them relative to the maximum of all shards.
    whole["max_s"], moved_s = below_top(part["max_s"])
    whole["max_t"], moved_t = below_top(part["max_t"])
    by_s, by_t = moved_s * (LOG2E / spec.temperature), moved_t * (LOG2E / spec.teacher_temperature)
    by_ce = moved_s * LOG2E
    part["logit_sum"] = part["logit_sum"] + part["columns"] * moved_s
    part["moment_s"] = part["moment_s"] + part["z_s"] * moved_s
    part["moment_t"] = part["moment_t"] + part["z_t"] * moved_t
    if not has_cross(spec):
        apart = moved_t / spec.teacher_temperature - moved_s / spec.temperature
        for k, (of_t, _) in enumerate(stream_powers(spec)):
            weight = part["z_t"] if of_t else part["z_s"]
            part[f"stream_{k}"] = part[f"stream_{k}"] + weight * apart
    for name, by in (("z_s", by_s), ("moment_s", by_s), ("z_t", by_t), ("moment_t", by_t), ("z_ce", by_ce)):
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
        # If several shards have the largest logit, the first one counts as its owner.
        owner[side] = (part[f"max_{side}"] == whole[f"max_{side}"]).to(torch.int8).argmax(0)
        whole[f"arg_{side}"] = part[f"arg_{side}"].gather(0, owner[side][None])[0]
    # Columns of two different shards differ, even if they have the same number in each.
    whole["arg_t"] = torch.where(owner["s"] == owner["t"], whole["arg_t"], -2.0)
    for name, value in whole.items():
        record[:, COLUMNS.index(name)] = value
