"""Tests of the CUDA kernels by themselves; ``test_cuda_emulation.py`` runs them on the emulated kernels."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from fastkd.backends import record as records
from fastkd.backends.base import Call
from fastkd.backends.native import NativeBackend, forced_cuda_kernel, forced_isa
from fastkd.backends.registry import REGISTRY
from fastkd.divergences import DIVERGENCES
from fastkd.spec import METRICS, LossSpec

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ULP = {torch.float32: 2e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}
SHARES = ("jsd", "skew_forward_kl", "skew_reverse_kl")
POWERS = tuple(name for name in DIVERGENCES if DIVERGENCES[name].cross)
# Divergences that stay finite even if student and teacher are nearly disjoint.
DISTANT = ("renyi", "log_acceptance")
# A divergence's name and its parameters.
Named = tuple[str, dict[str, float]]
NAMED: list[Named] = [(name, {}) for name in DIVERGENCES]
OTHERS: list[Named] = [("alpha", {"alpha": a}) for a in (-0.5, 0.5, 2.0)]
OTHERS += [("renyi", {"alpha": a}) for a in (0.5, 2.0)]
OTHERS += [("alpha_beta", {"alpha": a, "beta": b}) for a, b in ((0.2, 0.7), (-0.5, 2.0))]
OTHERS += [(name, {"beta": b}) for name, b in itertools.product((*SHARES, "decoupled"), (0.1, 0.9))]
named = pytest.mark.parametrize("divergence", NAMED, ids=lambda d: d[0])
parameters = pytest.mark.parametrize(
    "divergence", NAMED + OTHERS, ids=lambda d: "-".join(map(str, (d[0], *d[1].values())))
)
KERNEL = NativeBackend()


def spec(vocab: int, divergence: Named = NAMED[0], **changes: float) -> LossSpec:
    fields = dict(divergence=divergence[0], alpha=0.4, beta=0.3, temperature=2.0, teacher_temperature=2.0)
    fields |= dict(kd_weight=0.7, kd_metric=4.0, ce_weight=0.4, label_smoothing=0.1, z_loss=1e-3)
    return LossSpec(**(fields | dict(ignore_index=-100, vocab_size=vocab) | divergence[1] | changes))


def call_of(
    s: Tensor,
    t: Tensor,
    labels: Tensor | None,
    arithmetic: LossSpec,
    in_place: bool = False,
    metrics: bool = False,
) -> Call:
    """A call whose outputs are filled with 7, which shows what the kernel does not write."""
    rows, wide = s.shape[0] * s.shape[1], torch.float64 if s.dtype == torch.float64 else torch.float32

    def empty(*shape: int) -> Tensor:
        return torch.full(shape, 7.0, dtype=wide)

    return Call(
        s,
        t,
        labels,
        torch.linspace(0.5, 2.0, rows).to(wide),
        torch.linspace(2.0, 0.5, rows).to(wide),
        arithmetic,
        empty(rows),
        s if in_place else torch.full_like(s, 7.0),
        t if in_place else torch.full_like(t, 7.0),
        empty(rows, len(METRICS)) if metrics else None,
    )


def results(call: Call) -> list[Tensor]:
    assert call.grad_student is not None and call.grad_teacher is not None
    found = [call.row_loss, call.grad_student.clone(), call.grad_teacher.clone()]
    return found if call.metrics is None else [*found, call.metrics]


def expected_of(call: Call) -> list[Tensor]:
    """The results of the same call in float64 from the reference backend."""
    assert isinstance(call.teacher, Tensor)
    exact = call_of(
        call.student.double(), call.teacher.double(), call.labels, call.spec, False, call.metrics is not None
    )
    REGISTRY["reference"].rows(exact)
    return results(exact)


def assert_near(
    found: list[Tensor], expected: list[Tensor], arithmetic: LossSpec, largest: float = 0.0
) -> None:
    """Compare results with the exact ones.

    ``largest`` is the largest log-ratio of the two sides; where two of them cancel, their rounding remains.
    """
    # The formula magnifies the difference of two sums near 1 by 1 / (a b).
    a, b = (
        arithmetic.alpha,
        arithmetic.beta if arithmetic.divergence == "alpha_beta" else 1 - arithmetic.alpha,
    )
    noise = 5e-7 + 2e-7 * largest
    noise = noise / abs(a * b) if arithmetic.divergence in ("alpha", "alpha_beta") else noise
    for ours, exact in zip(found, expected, strict=True):
        bound = ULP[ours.dtype] * exact[exact.isfinite()].abs().amax() + noise
        torch.testing.assert_close(ours.double(), exact, atol=float(bound), rtol=2e-5, equal_nan=True)


def compare(
    s: Tensor,
    t: Tensor,
    labels: Tensor | None,
    arithmetic: LossSpec,
    in_place: bool = False,
    metrics: bool = False,
    largest: float = 0.0,
) -> None:
    """Compare the kernel, with its threads taking turns in both orders, with float64."""
    expected = expected_of(call_of(s, t, labels, arithmetic, metrics=metrics))
    found = []
    for isa in ("emulated_cuda", "emulated_cuda_backwards"):
        originals = s.clone(), t.clone()
        call = call_of(s, t, labels, arithmetic, in_place, metrics)
        with forced_isa(isa):
            KERNEL.rows(call)
        found.append(results(call))
        s.copy_(originals[0]), t.copy_(originals[1])
    for forwards, backwards in zip(*found, strict=True):
        assert forwards.equal(backwards) or (forwards.isnan() | (forwards == backwards)).all()
    assert_near(found[0], expected, arithmetic, largest)


def logits(rows: int, columns: int, dtype: torch.dtype, offset: int = 0, scale: float = 3.0) -> Tensor:
    """Logits of shape (1, rows, columns) that begin ``offset`` elements after an aligned address."""
    storage = torch.empty(rows * columns + 16, dtype=dtype)
    return (
        storage[offset : offset + rows * columns]
        .view(1, rows, columns)
        .copy_(torch.randn(1, rows, columns) * scale)
    )


@pytest.mark.parametrize("student, teacher", list(itertools.product(DTYPES, DTYPES)), ids=str)
@named
@pytest.mark.parametrize("in_place", [False, True])
def test_dtypes_alignments_and_padding(
    student: torch.dtype, teacher: torch.dtype, divergence: Named, in_place: bool
) -> None:
    for columns, offsets in ((1, (0, 0)), (9, (3, 3)), (130, (1, 5)), (1001, (0, 0)), (1000, (2, 2))):
        if columns == 1 and divergence[0] == "decoupled":
            continue  # there is no column besides the label
        s = logits(3, columns, student, offsets[0])
        t = logits(3, columns + 8, teacher, offsets[1])
        s[..., columns - columns // 10 :] = float("nan")  # padding
        t[..., columns - columns // 10 :] = float("nan")
        vocab = columns - columns // 10
        labels = torch.tensor([0, vocab - 1, vocab // 2])
        compare(s, t, labels, spec(vocab, divergence), in_place, metrics=columns == 1000)


KERNELS = [("stream", None), ("cluster", 1), ("cluster", 2), ("cluster", 16)]


# There are more blocks than groups of columns, a whole number of stages, and rows that do not divide evenly.
@named
@pytest.mark.parametrize("kernel, blocks", KERNELS)
def test_kernels(divergence: Named, kernel: str, blocks: int | None) -> None:
    for (columns, offset), dtype in itertools.product(((5, 1), (1003, 3), (6144, 0)), DTYPES):
        s, t = logits(4, columns + 2, dtype, offset), logits(4, columns + 10, dtype, offset)
        s[..., columns:] = t[..., columns:] = float("nan")  # padding
        s[0, 2], t[0, 2] = float("nan"), float("inf")  # ignored
        labels = torch.tensor([0, columns - 1, -100, columns // 2])
        with forced_cuda_kernel(kernel, blocks):
            compare(s, t, labels, spec(columns, divergence), in_place=dtype == torch.bfloat16)


def test_rows_that_no_cluster_takes() -> None:
    """The cluster kernel refuses sides whose 16-byte boundaries differ, strided columns, and more columns
    than 16 blocks hold; if it is not forced, another kernel runs such calls."""
    wide = logits(1, 500_000, torch.float32)
    calls = [
        (logits(2, 50, torch.float32), logits(2, 50, torch.float32, 1)),
        (logits(2, 50, torch.bfloat16), logits(2, 51, torch.bfloat16)),
        (torch.randn(50, 3, 2).permute(2, 1, 0), logits(6, 50, torch.float32).view(2, 3, 50)),
        (wide, wide.flip(2)),
    ]
    for s, t in calls:
        labels = torch.zeros(s.shape[0] * s.shape[1], dtype=torch.int64)
        call = call_of(s, t, labels, spec(min(s.shape[2], t.shape[2])))
        with forced_cuda_kernel("cluster"), pytest.raises(RuntimeError):
            KERNEL.rows(call)
        compare(s, t, labels, call.spec)


@named
def test_distant_blocks(divergence: Named) -> None:
    """Each block of a cluster has a different row maximum, and one has only -inf."""
    for dtype in DTYPES:
        s, t = logits(2, 4096, dtype, scale=1.0), logits(2, 4096, dtype, scale=1.0)
        s[..., 1024:2048] -= 40
        t[..., 2048:3072] += 25
        s[..., 3584:] = t[..., 3584:] = -float("inf")
        changes = dict(label_smoothing=0.0, temperature=2.0, teacher_temperature=2.0)
        with forced_cuda_kernel("cluster", 8):
            compare(s, t, torch.tensor([5, 2500]), spec(4096, divergence, **changes))


@named
@pytest.mark.parametrize("kernel, metrics", [("stream", False), ("stream", True), ("cluster", False)])
def test_far_rows(divergence: Named, kernel: str, metrics: bool) -> None:
    """Logits far from 0, or far from the other side's.

    They are on a grid that float32 represents exactly, so that float64 sees the same distributions.
    """
    lowest = torch.finfo(torch.float32).min
    for columns in (7, 1100):
        s, t = ((torch.randn(1, 7, columns) * 2).round() * 64 for _ in range(2))
        s[:, 0] += 1e9
        t[:, 1] -= 1e9
        s[:, 2:], t[:, 2:] = s[:, 2:] / 64, t[:, 2:] / 64
        s[:, 2] += 100
        t[:, 3] -= 1000
        s[:, 4], t[:, 5] = lowest, lowest
        s[:, 6, 4:6] = t[:, 6, 4:6] = lowest
        for row, temperature in itertools.product(range(7), (1.0, 0.7)):
            changes = dict(temperature=temperature, teacher_temperature=temperature, label_smoothing=0.0)
            changes["z_loss"] = 0.0 if row in (4, 5) else 1e-20  # else its z_loss overflows float32
            cut, labels = slice(row, row + 1), torch.tensor([row % columns])
            largest = 600 / temperature if row < 2 else 10.0
            arithmetic = spec(columns, divergence, **changes)
            with forced_cuda_kernel(kernel, 2 if kernel == "cluster" else None):
                compare(s[:, cut], t[:, cut], labels, arithmetic, metrics=metrics, largest=largest)
            if kernel == "stream":
                call = call_of(s[:, cut], t[:, cut], labels, arithmetic, metrics=metrics)
                found = in_shards(call, [0, 3, columns - 3])
                assert_near(found, expected_of(call), arithmetic, largest)


@parameters
@pytest.mark.parametrize("temperatures", [(1.0, 1.0), (2.0, 2.0), (1.7, 0.8)], ids=str)
def test_parameters(divergence: Named, temperatures: tuple[float, float]) -> None:
    s, t, labels = logits(3, 700, torch.float32), logits(3, 700, torch.float32), torch.tensor([5, 699, 400])
    both = dict(zip(("temperature", "teacher_temperature"), temperatures, strict=True))
    for metrics in (False, True):
        compare(s, t, labels, spec(700, divergence, **both), metrics=metrics)
        compare(s, t, labels, spec(700, divergence, **both, ce_weight=0.0, z_loss=0.0), metrics=metrics)


@named
def test_full_blocks(divergence: Named) -> None:
    s, t = logits(1, 20_003, torch.bfloat16), logits(1, 20_003, torch.bfloat16)
    compare(s, t, torch.tensor([17_000]), spec(20_003, divergence, temperature=1.0, teacher_temperature=1.5))


@named
def test_strides(divergence: Named) -> None:
    s = torch.randn(77, 3, 2).permute(2, 1, 0) * 3  # neighbouring columns are 6 elements apart
    t = torch.randn(2, 4, 90)[:, :-1]
    compare(s, t, torch.randint(0, 70, (6,)), spec(70, divergence))


@named
@pytest.mark.parametrize("metrics", [False, True])
def test_labels_outside_the_vocabulary(divergence: Named, metrics: bool) -> None:
    s, t = logits(6, 40, torch.float32), logits(6, 40, torch.float32)
    s[0, 4] = t[0, 4] = float("nan")  # ignored
    labels = torch.tensor([3, 40, -1, 2**40, -100, 39])
    compare(s, t, labels, spec(40, divergence))
    call = call_of(s, t, labels, spec(40, divergence), metrics=True)
    KERNEL.rows(call)
    assert call.metrics is not None and call.metrics.isnan().all(-1).tolist() == [
        False,
        True,
        True,
        True,
        False,
        False,
    ]


@named
def test_nan_spoils_its_row_alone(divergence: Named) -> None:
    s, t = logits(4, 300, torch.float32), logits(4, 300, torch.float32)
    s[0, 0, 0] = t[0, 1, 299] = float("nan")
    s[0, 2, :200] = float("nan")
    compare(s, t, torch.tensor([5, 6, 299, 8]), spec(300, divergence))


@named
def test_minus_infinity(divergence: Named) -> None:
    s, t = logits(3, 2000, torch.float32), logits(3, 2000, torch.float32)
    s[..., :1700] = t[..., :1700] = -float("inf")
    t[0, 1, 1900:] = -float("inf")  # only the teacher
    without = dict(label_smoothing=0.0)
    compare(s[:, :2], t[:, :2], torch.tensor([1800, 1801]), spec(2000, divergence, **without), metrics=True)


def test_cross_entropy_alone_clears_the_teachers_gradient() -> None:
    s, t = logits(2, 100, torch.float32), logits(2, 100, torch.bfloat16)
    for metrics in (False, True):
        compare(s, t, torch.tensor([3, 99]), spec(100, kd_weight=0.0), metrics=metrics)
        compare(s, t, None, spec(100, kd_weight=0.0, z_loss=0.0), metrics=metrics)


@named
@pytest.mark.parametrize("shift, temperature", [(1e3, 1.0), (-1e3, 2.0), (30.0, 0.05), (0.0, 100.0)])
def test_distant_rows_and_extreme_temperatures(divergence: Named, shift: float, temperature: float) -> None:
    s, t, labels = logits(2, 500, torch.float32), logits(2, 500, torch.float32), torch.tensor([1, 2])
    s += shift
    changes = dict(temperature=temperature, teacher_temperature=temperature, label_smoothing=0.0, z_loss=0.0)
    call = call_of(s, t, labels, spec(500, divergence, **changes))
    expected = expected_of(call)
    KERNEL.rows(call)
    found = results(call)
    torch.testing.assert_close(found[0].double(), expected[0], rtol=2e-4, atol=1e-5)
    # The rounding of log-ratios, which are as large as the logits' difference over T. A gradient divides it
    # by T once more.
    noise = 2e-7 * float((s - t).abs().amax()) / temperature**2
    for ours, exact in zip(found[1:], expected[1:], strict=True):
        assert (ours.double() - exact).norm() <= 2e-4 * exact.norm() + noise


@pytest.mark.parametrize("divergence", [d for d in NAMED + OTHERS if d[0] in DISTANT], ids=str)
@pytest.mark.parametrize("metrics", [False, True])
def test_rows_without_common_ground(divergence: Named, metrics: bool) -> None:
    """Each side's likely columns are 400 nats lower on the other side, so min(p, q) underflows float32."""
    s, t = logits(2, 900, torch.float32, scale=1.0), logits(2, 900, torch.float32, scale=1.0)
    s[..., :450] += 400
    t[..., 450:] += 400
    for temperature in (1.0, 2.0):
        changes = dict(temperature=temperature, teacher_temperature=temperature, ce_weight=0.0, z_loss=0.0)
        call = call_of(s, t, None, spec(900, divergence, **changes), metrics=metrics)
        KERNEL.rows(call)
        assert call.row_loss.isfinite().all()
        for ours, exact in zip(results(call), expected_of(call), strict=True):
            torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-5, equal_nan=True)


@parameters
def test_equal_rows_have_no_divergence(divergence: Named) -> None:
    for dtype, metrics in itertools.product(DTYPES, (False, True)):
        s = logits(2, 5000, dtype)
        temperatures = dict(temperature=1.3, teacher_temperature=1.3)
        arithmetic = spec(5000, divergence, ce_weight=0.0, z_loss=0.0, **temperatures)
        call = call_of(s, s.clone(), torch.tensor([7, 4000]), arithmetic, metrics=metrics)
        KERNEL.rows(call)
        assert not any(x.any() for x in results(call)[:3])
        assert call.metrics is None or (not call.metrics[:, 0].any() and call.metrics[:, 4].all())


@named
def test_the_first_of_equal_logits_agrees(divergence: Named) -> None:
    s, t = torch.zeros(1, 4, 300), torch.zeros(1, 4, 300)
    s[0, :, [40, 250]] = 1.0
    t[0, torch.arange(4), torch.tensor([40, 250, 40, 250])] = 2.0
    call = call_of(s, t, torch.tensor([40, 40, 250, 250]), spec(300, divergence), metrics=True)
    KERNEL.rows(call)
    assert call.metrics is not None and call.metrics[:, 4].tolist() == [1.0, 0.0, 1.0, 0.0]


def test_a_confident_model_keeps_its_digits() -> None:
    s, t, labels = logits(3, 600, torch.float32), logits(3, 600, torch.float32), torch.tensor([5, 70, 599])
    s[0, [0, 1, 2], labels] += torch.tensor([6.0, 12.0, 18.0])
    for name, metrics in itertools.product(("forward_kl", "decoupled"), (False, True)):
        arithmetic = spec(600, (name, {}), kd_weight=1e-30, ce_weight=1.0, label_smoothing=0.0, z_loss=0.0)
        call = call_of(s, t, labels, arithmetic, metrics=metrics)
        KERNEL.rows(call)
        for ours, exact in zip(results(call)[:2], expected_of(call), strict=False):
            torch.testing.assert_close(ours.double(), exact, rtol=5e-5, atol=0.0)


class Halves:
    """A stand-in for :class:`fastkd.backends.shards.Shards` where all shards are in one process."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.said: list[Tensor] = []

    def gather(self, x: Tensor) -> Tensor:
        if len(self.said) < self.size:
            self.said.append(x.clone())
            return torch.stack([x] * self.size)
        return torch.stack(self.said)


def in_shards(call: Call, widths: list[int]) -> list[Tensor]:
    """Run ``call`` in phases on shards of its columns, and put the results together again."""
    assert isinstance(call.teacher, Tensor)
    rows, metrics = call.row_loss.numel(), call.metrics is not None
    shards, calls, found = Halves(len(widths)), [], []
    for s, t, start in zip(
        call.student.split(widths, 2),
        call.teacher.split(widths, 2),
        itertools.accumulate([0, *widths]),
        strict=False,
    ):
        labels = None if call.labels is None else torch.where(call.labels == -100, -100, call.labels - start)
        # A label that belongs to another shard must not become -100, which would mark its row as ignored.
        labels = (
            labels if labels is None else torch.where((labels == -100) & (call.labels != -100), -101, labels)
        )
        calls.append(call_of(s, t, labels, call.spec._replace(vocab_size=s.shape[2]), metrics=metrics))
        calls[-1].shards = shards  # type: ignore[assignment]
        found.append(torch.zeros(rows, len(records.COLUMNS), dtype=torch.float64))
        KERNEL.launch(calls[-1], "statistics", found[-1])
    for heard in (False, True):
        for part in found:
            records.combine(part if heard else part.clone(), call.spec, shards, metrics)  # type: ignore[arg-type]
    if records.has_sums(call.spec):
        for part, record in zip(calls, found, strict=True):
            KERNEL.launch(part, "sums", record)
        total = torch.stack([record[:, -2:] for record in found]).sum(0)
        for record in found:
            record[:, -2:] = total
    if records.has_distant(call.spec):
        for part, record in zip(calls, found, strict=True):
            KERNEL.launch(part, "distant", record)
        again = Halves(len(widths))
        for heard in (False, True):
            for record in found:
                records.combine_distant(record if heard else record.clone(), total, again)  # type: ignore[arg-type]
    for part, record in zip(calls, found, strict=True):
        KERNEL.launch(part, "finish", record)
    for part in calls[1:]:
        assert part.row_loss.equal(calls[0].row_loss)
        assert part.metrics is None or part.metrics.allclose(calls[0].metrics, 0.0, 0.0, equal_nan=True)
    whole = [results(part) for part in calls]
    grads = [torch.cat([part[k] for part in whole], 2) for k in (1, 2)]
    return [whole[0][0], *grads, *whole[0][3:]]


@parameters
@pytest.mark.parametrize("temperatures", [(1.0, 1.0), (2.0, 2.0), (1.7, 0.8)], ids=str)
def test_shards(divergence: Named, temperatures: tuple[float, float]) -> None:
    s, t = logits(4, 600, torch.float32), logits(4, 600, torch.float32)
    s[0, 2, :290] -= 50  # maxima far apart
    t[0, 2, 350:] -= 30
    labels = torch.tensor([0, 599, 300, -100])
    both = dict(zip(("temperature", "teacher_temperature"), temperatures, strict=True))
    for metrics in (False, True):
        call = call_of(s, t, labels, spec(600, divergence, **both), metrics=metrics)
        expected = expected_of(call)
        for widths in ([600], [280, 320], [0, 37, 563]):
            assert_near(in_shards(call, widths), expected, call.spec)


@pytest.mark.parametrize("divergence", [d for d in NAMED + OTHERS if d[0] in (*POWERS, *DISTANT)], ids=str)
def test_shards_without_common_ground(divergence: Named) -> None:
    s, t = logits(2, 800, torch.float32, scale=1.0), logits(2, 800, torch.float32, scale=1.0)
    s[..., :400] += 90
    t[..., 400:] += 90
    call = call_of(s, t, None, spec(800, divergence, ce_weight=0.0, z_loss=0.0))
    for ours, exact in zip(in_shards(call, [300, 500]), expected_of(call), strict=True):
        assert (ours.double() - exact).norm() <= 1e-4 * exact.norm() + 1e-5


def test_shards_of_masked_columns() -> None:
    for divergence in NAMED:
        s, t = logits(2, 500, torch.float32), logits(2, 500, torch.float32)
        s[..., :200] = t[..., :200] = -float("inf")
        call = call_of(
            s, t, torch.tensor([210, 480]), spec(500, divergence, label_smoothing=0.0), metrics=True
        )
        assert_near(in_shards(call, [200, 300]), expected_of(call), call.spec)


def test_a_confident_models_shards() -> None:
    s, t, labels = logits(2, 600, torch.float32), logits(2, 600, torch.float32), torch.tensor([5, 599])
    s[0, [0, 1], labels] += 30
    arithmetic = spec(600, kd_weight=0.0, ce_weight=1.0, label_smoothing=0.0, z_loss=0.0)
    call = call_of(s, t, labels, arithmetic)
    for ours, exact in zip(in_shards(call, [300, 300])[:2], expected_of(call), strict=False):
        torch.testing.assert_close(ours.double(), exact, rtol=5e-5, atol=1e-20)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("metrics", [False, True])
def test_off_support(dtype: torch.dtype, metrics: bool) -> None:
    """Off a sparse teacher's columns the gradient is a coefficient times q."""
    for temperature, columns in itertools.product((1.0, 2.0, 0.7), (9, 1003)):
        s, t = logits(4, columns, dtype), logits(4, columns, dtype)
        arithmetic = spec(columns, ("off_support", {}), temperature=temperature)
        call = call_of(s, t, torch.tensor([3, columns - 1, 0, -100]), arithmetic, metrics=metrics)
        record = torch.zeros(4, len(records.COLUMNS), dtype=torch.float64)
        coefficient = torch.tensor([0.3, -1.0, 0.0, 5.0])
        KERNEL.launch(call, "statistics", record)
        assert not record[3].any()
        KERNEL.launch(call, "finish", record, coefficient)
        exact = call_of(s.double(), t.double(), call.labels, arithmetic, metrics=metrics)
        REGISTRY["reference"].launch(exact, "finish", record, coefficient.double())  # type: ignore[attr-defined]
        assert_near(results(call), results(exact), arithmetic)
        lse = record[:3, 0] / temperature + record[:3, 2].log()
        torch.testing.assert_close(
            lse, torch.logsumexp(s[0, :3].double() / temperature, -1), rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scale_rows(dtype: torch.dtype) -> None:
    for rows, columns, offset in ((3, 1, 0), (2, 777, 1), (2, 20_001, 0)):
        grad = logits(rows, columns, dtype, offset)[0]
        factor = torch.tensor([1.0, -0.3, 2.5])[:rows]
        expected = (grad.float() * factor[:, None]).to(dtype)
        out = torch.full_like(grad, 7.0)
        KERNEL.scale_rows(grad, factor, out)
        assert out.equal(expected)
        KERNEL.scale_rows(grad, factor, grad)
        assert grad.equal(expected)
