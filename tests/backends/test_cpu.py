"""Test the particulars of the CPU kernels: instruction sets, long rows, rounding, unusual logits."""

from __future__ import annotations

import math

import pytest
import torch
from support.cases import EVERY_CASE
from support.closeness import assert_gradient, assert_value, during
from support.oracle import reference_gradients

import fastkd
from fastkd import _settings
from fastkd.backends import native
from fastkd.backends.base import Call
from fastkd.backends.record import COLUMNS
from fastkd.spec import LossSpec


def test_every_isa_can_be_forced_and_agrees() -> None:
    s, t = torch.randn(3, 1000), torch.randn(3, 1000)
    values = {}
    for isa in native.cpu_isas():
        with native.forced_isa(isa):
            assert native.cpu_isa() == isa
            values[isa] = fastkd.kd_loss(s, t).item()
    assert native.cpu_isas()[-1] == "baseline"
    assert max(values.values()) - min(values.values()) < 1e-6


def test_the_environment_chooses_the_isa(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        monkeypatch.setenv("FASTKD_CPU_ISA", "baseline")
        _settings.cpu_isa.cache_clear()
        assert native.cpu_isa() == "baseline"
        monkeypatch.setenv("FASTKD_CPU_ISA", "sse9")
        _settings.cpu_isa.cache_clear()
        with pytest.raises(ValueError, match="sse9.*baseline"):
            fastkd.kd_loss(torch.zeros(1, 3), torch.zeros(1, 3), backend="native")
    finally:
        _settings.cpu_isa.cache_clear()


# Powers that do not add up to 1, as the default ones do: the kernel then keeps a power of the student's, too.
PARAMETERS = {"alpha_beta": {"alpha": 0.2, "beta": 0.7}}


def _both_gradients(
    s: torch.Tensor, t: torch.Tensor, both: bool, **options: object
) -> tuple[torch.Tensor, ...]:
    s, t = s.clone().requires_grad_(), t.clone().requires_grad_(both)
    loss = fastkd.kd_loss(s, t, backend="native", reduction="none", **options)
    loss.sum().backward()
    return loss.detach(), s.grad, t.grad


def _rising(columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows whose logits rise, so that every block of columns raises the maximum that exponentials refer to.

    In row 0 both sides are alike. In row 1 the teacher is first ahead by more than a shared shift allows,
    then level. Row 2 begins with -inf on both sides.
    """
    rise = torch.linspace(-60, 20, columns)
    s, t = (torch.randn(3, columns) + rise for _ in range(2))
    t[0] = s[0] + 0.1 * torch.randn(columns)
    t[1] = torch.where(torch.arange(columns) < columns // 2, t[1] + 25, t[1])
    s[2, : columns // 3] = t[2, : columns // 3] = -torch.inf
    return s, t


@pytest.mark.parametrize("isa", native.cpu_isas())
@EVERY_CASE
def test_maxima_that_rise_from_block_to_block(
    isa: str, divergence: str, parameters: dict[str, float]
) -> None:
    s, t = _rising(5200)
    labels = torch.tensor([5199, 3, 3000])
    options = {"divergence": divergence, **parameters, "kd_ratio": 0.5, "temperature": 2.0}
    expected, by_s, by_t = reference_gradients(s, t, labels, reduction="none", **options)
    with native.forced_isa(isa):
        for both in (False, True):
            loss, grad_s, grad_t = _both_gradients(s, t, both, labels=labels, **options)
            assert_value(loss, expected)
            assert_gradient(grad_s, by_s)
            if both:
                assert_gradient(grad_t, by_t)
        _, grad_s, grad_t = _both_gradients(s, s, True, divergence=divergence, **parameters, labels=labels)
        if divergence != "decoupled":  # which computes the label separately, so the gradient may be rounding
            assert (grad_s == 0).all() and (grad_t == 0).all()


def _with_an_event(event: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Two rows of several blocks. The event puts logits in row 0 that the fast path cannot handle."""
    s, t = torch.randn(2, 4096) * 2, torch.randn(2, 4096) * 2
    first, late = slice(0, 100), slice(2200, 2700)  # the columns that set the first shifts; a later block
    if event == "far above":  # exceeds the range of a float32's exponent field
        s[0, 2400], t[0, 2400] = 500.0, 498.0
    elif event == "above":  # within that range, but not when squared
        s[0, late] += 120
        t[0, late] += 120
    elif event == "one above":  # within that range at a high temperature, but not at temperature 1
        s[0, 2400], t[0, 2400] = 97.0, 96.0
    elif event == "one side above":
        t[0, late] += 60
    elif event == "far below":
        s[0, late] -= 400
        t[0, late] -= 300
    elif event == "above to begin with":
        s[0, first] += 300
        t[0, first] += 400
    elif event == "below to begin with":
        s[0, first] -= 60
        t[0, first] -= 400
    elif event == "masked to begin with":
        s[0, first] = t[0, first] = -torch.inf
    elif event == "masked":
        s[0, late] = t[0, late] = -torch.inf
    elif event == "student alone masked":
        s[0, late] = -torch.inf
    return s.to(dtype), t.to(dtype)


@pytest.mark.repeats(100)
@pytest.mark.parametrize("isa", native.cpu_isas())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "event",
    [
        "nothing",
        "far above",
        "above",
        "one above",
        "one side above",
        "far below",
        "above to begin with",
        "below to begin with",
        "masked to begin with",
        "masked",
        "student alone masked",
    ],
)
@pytest.mark.parametrize(
    "divergence",
    [
        "forward_kl",
        "reverse_kl",
        "jeffreys",
        "jsd",
        "skew_forward_kl",
        "skew_reverse_kl",
        "tvd",
        "hellinger",
        "alpha_beta",
        "decoupled",
    ],
)
def test_blocks_of_any_logits(isa: str, dtype: torch.dtype, event: str, divergence: str) -> None:
    s, t = _with_an_event(event, dtype)
    labels = torch.tensor([700, 3999])
    options = {"divergence": divergence, **PARAMETERS.get(divergence, {}), "kd_ratio": 0.5}
    for temperatures in [
        *({"temperature": temperature} for temperature in (2.0, 3.0, 4.0, 8.0, 16.0)),
        {"temperature": 1.0, "teacher_temperature": 2.0},
    ]:
        expected, by_s, _ = reference_gradients(s, t, labels, reduction="none", **options, **temperatures)
        with native.forced_isa(isa):
            loss, grad_s, _ = _both_gradients(s, t, False, labels=labels, **options, **temperatures)
        with during(**temperatures):
            finite = expected.isfinite()
            assert torch.equal(loss[~finite].double(), expected[~finite])
            assert_value(loss[finite], expected[finite], rtol=1e-5)
            assert_gradient(grad_s[finite], by_s[finite], factor=10)  # log-ratios reach some hundreds


@pytest.mark.parametrize("isa", native.cpu_isas())
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd", "hellinger"])
def test_logits_too_large_for_the_short_exponential(isa: str, divergence: str) -> None:
    s, t = (torch.randn(2, 2048) * 2 + 2.0**21 for _ in range(2))
    # At this temperature a logit is its own exponent of 2, without rounding.
    options = {"divergence": divergence, "temperature": math.log2(math.e)}
    expected, by_s, _ = reference_gradients(s, t, reduction="none", **options)
    with native.forced_isa(isa):
        loss, grad_s, _ = _both_gradients(s, t, False, **options)
    assert_value(loss, expected)
    assert_gradient(grad_s, by_s)


@pytest.mark.parametrize("isa", native.cpu_isas())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("side", [0, 1], ids=["student", "teacher"])
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_a_nonfinite_logit_affects_only_its_row(
    isa: str, dtype: torch.dtype, side: int, number: float
) -> None:
    """NaN or +inf in a logit makes only its own row NaN."""
    rows = _with_an_event("nothing", dtype)
    clean, _, _ = _both_gradients(*rows, False)
    rows[side][0, 3000] = number
    with native.forced_isa(isa):
        loss, grad, _ = _both_gradients(*rows, False)
    assert loss[0].isnan() and grad[0].isnan().all()
    assert_value(loss[1], clean[1])
    assert grad[1].isfinite().all()


@pytest.mark.parametrize("divergence", ["forward_kl", "jsd", "hellinger", "alpha_beta"])
def test_rows_too_long_to_keep(divergence: str) -> None:
    """Rows too long to keep the first sweep's exponentials give the right result."""
    s = torch.randn(1, 530_001)
    t = s + 0.3 * torch.randn_like(s)
    options = {"divergence": divergence, **PARAMETERS.get(divergence, {})}
    expected, by_s, _ = reference_gradients(s, t, reduction="none", **options)
    loss, grad_s, _ = _both_gradients(s, t, False, **options)
    assert_value(loss, expected)
    assert_gradient(grad_s, by_s)


@pytest.mark.parametrize("columns", [110_592, 110_001], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("divergence", ["forward_kl", "jsd", "reverse_kl"])
@pytest.mark.parametrize("isa", native.cpu_isas()[:-1])  # the baseline has no stores that bypass the caches
def test_a_gradient_written_past_the_caches_has_the_same_bits(
    isa: str, divergence: str, columns: int
) -> None:
    s, t = torch.randn(40, columns), torch.randn(1, columns).expand(40, columns)
    labels = torch.arange(40) * 2700
    options = {"divergence": divergence, "kd_ratio": 0.5}
    with native.forced_isa(isa):
        whole = _both_gradients(s, t, False, labels=labels, **options)  # more than 16 MB
        part = _both_gradients(s[:7], t[:7], False, labels=labels[:7], **options)
    assert torch.equal(whole[0][:7], part[0])
    assert torch.equal(whole[1][:7], part[1])


@pytest.mark.parametrize("isa", native.cpu_isas())
@pytest.mark.parametrize("divergence", ["forward_kl", "decoupled"])
@pytest.mark.parametrize("digits", [0x7FC00000, 0x7FFFF800, 0x7FFFFFFF], ids=hex)
def test_nan_of_any_payload_stays_nan(isa: str, divergence: str, digits: int) -> None:
    """A NaN with many mantissa bits set stays NaN. Rounding it to bfloat16 by integer arithmetic would carry
    into the sign and give -0."""
    worst = torch.tensor(digits, dtype=torch.int32).view(torch.float32)
    s = torch.randn(3, 700).bfloat16().requires_grad_()
    t = torch.randn(3, 700)
    t[1, 5] = t[2, 9] = worst
    labels = torch.tensor([5, 0, 9])  # in the last row the NaN is at the label
    with native.forced_isa(isa):
        fastkd.kd_loss(s, t, labels, kd_ratio=0.5, divergence=divergence, backend="native").backward()
    assert s.grad is not None and not s.grad[0].isnan().any()
    assert s.grad[1].isnan().all()
    assert s.grad[2].isnan().all() if divergence == "forward_kl" else s.grad[2].isnan().any()


@pytest.mark.parametrize("isa", native.cpu_isas())
@pytest.mark.parametrize("both", [False, True])
def test_bfloat16_gradients_are_rounded_to_nearest(isa: str, both: bool) -> None:
    """Each gradient is a nearest bfloat16. On a tie the vector code rounds away from 0 and torch to even.

    The teacher's columns are strided, which keeps both calls off the fast path; that one would add up in
    another order. Both calls thus compute the same float32 gradient: one rounds it, the other returns it.
    """
    s, t = torch.randn(4, 2051).bfloat16(), torch.randn(4, 2051).t().contiguous().t()
    with native.forced_isa(isa):
        loss, rounded, by_t = _both_gradients(s, t, both)
        same_loss, exact, same_by_t = _both_gradients(s.float(), t, both)
    assert torch.equal(loss, same_loss) and (not both or torch.equal(by_t, same_by_t))
    exact = exact.double()
    torch.testing.assert_close(
        (rounded.double() - exact).abs(), (exact.bfloat16().double() - exact).abs(), rtol=0, atol=0
    )


@pytest.mark.parametrize("isa", native.cpu_isas())
def test_bfloat16_gradients_of_plain_blocks_are_rounded_to_nearest(isa: str) -> None:
    s, t = torch.randn(4, 4096).bfloat16(), torch.randn(4, 4096).bfloat16()
    _, exact, _ = reference_gradients(s, t, reduction="sum")
    with native.forced_isa(isa):
        _, rounded, _ = _both_gradients(s, t, False)
    nearest = (exact.bfloat16().double() - exact).abs()
    # float32's error in q - p is a fraction of the larger of the two, and may decide a tie the other way.
    p, q = (x.double().softmax(-1) for x in (t, s))
    assert ((rounded.double() - exact).abs() <= nearest + 2e-5 * torch.maximum(p, q)).all()


@pytest.mark.parametrize("isa", native.cpu_isas())
@pytest.mark.parametrize(
    ("divergence", "temperature"),
    [
        *(
            (d, t)
            for d in ("forward_kl", "reverse_kl", "jsd", "skew_forward_kl", "tvd", "hellinger", "alpha_beta")
            for t in (0.5, 2.0)
        ),
        ("jsd", 30.0),
    ],
)
def test_near_models_in_16_bits(isa: str, divergence: str, temperature: float) -> None:
    """The divergence of near models must not be swamped by the error of the fast path's short exponential."""
    s = torch.randn(4, 9000) * 3
    s, t = s.bfloat16(), (s + 0.05 * torch.randn_like(s)).bfloat16()
    options = {"divergence": divergence, **PARAMETERS.get(divergence, {}), "temperature": temperature}
    expected, by_s, _ = reference_gradients(s, t, reduction="none", **options)
    with native.forced_isa(isa):
        loss, grad_s, _ = _both_gradients(s, t, False, **options)
    assert_value(loss, expected, rtol=5e-3 if temperature < 10 else 2e-2, atol=0)
    assert_gradient(grad_s, by_s)


@pytest.mark.parametrize("isa", native.cpu_isas())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("divergence", ["skew_forward_kl", "skew_reverse_kl"])
def test_skews_of_near_models_keep_their_digits(isa: str, divergence: str, dtype: torch.dtype) -> None:
    """Sums of p log(p / m) alone would lose them in the roundings of p, whose first order cancels exactly."""
    s = torch.randn(4, 5000, dtype=torch.float64) * 2
    s, t = s.to(dtype), (s + 0.02 * torch.randn_like(s)).to(dtype)
    for temperature in (1.0, 30.0):
        for beta in (0.1, 0.9):
            options = {"divergence": divergence, "beta": beta, "temperature": temperature}
            expected, by_s, by_t = reference_gradients(s, t, reduction="none", **options)
            with native.forced_isa(isa):
                loss, grad_s, grad_t = _both_gradients(s, t, True, **options)
            assert_value(loss, expected, rtol=1e-10 if dtype == torch.float64 else 5e-4, atol=0)
            assert_gradient(grad_s, by_s)
            assert_gradient(grad_t, by_t)


@pytest.mark.parametrize("isa", native.cpu_isas())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("beta", [0.1, 0.9])
def test_jsd_of_near_models_far_from_one_half(isa: str, beta: float, dtype: torch.dtype) -> None:
    """Log-ratios that ignored the rounding of 1 / z would add it to the value, times 1/2 - beta."""
    s = torch.randn(8, 8192) * 2
    s, t = s.to(dtype), (s + 0.05 * torch.randn_like(s)).to(dtype)
    options = {"divergence": "jsd", "beta": beta, "temperature": 30.0}
    expected, by_s, by_t = reference_gradients(s, t, reduction="none", **options)
    with native.forced_isa(isa):
        loss, grad_s, grad_t = _both_gradients(s, t, True, **options)
    assert_value(loss, expected, rtol=4e-2, atol=0)
    assert_gradient(grad_s, by_s)
    assert_gradient(grad_t, by_t)


@pytest.mark.parametrize("isa", native.cpu_isas())
def test_a_shard_without_columns_writes_only_its_padding(isa: str) -> None:
    """A rank whose columns are all padding zeroes their gradient, and writes nothing beside them."""
    columns, rows = 3, 2
    memory = torch.full((rows, 64), 7.0)
    spec = LossSpec("forward_kl", 0.5, 0.5, 1.0, 1.0, 1.0, 1.0, 0.5, 0.0, 0.0, -100, 0)
    call = Call(
        student=torch.randn(1, rows, columns),
        teacher=torch.randn(1, rows, columns),
        labels=torch.full((rows,), -1),
        loss_scale=torch.ones(rows),
        grad_scale=torch.ones(rows),
        spec=spec,
        row_loss=torch.zeros(rows),
        grad_student=memory[None, :, :columns],
        shards=object(),  # type: ignore[arg-type]  the kernel only needs it not to be None
    )
    record = torch.zeros(rows, len(COLUMNS), dtype=torch.float64)
    with native.forced_isa(isa):
        native.NativeBackend().launch(call, "statistics", record)
        for name in ("z_s", "z_t", "z_ce", "columns"):  # as if added by the other shards
            record[:, COLUMNS.index(name)] = 1.0
        native.NativeBackend().launch(call, "finish", record)
    assert (memory[:, :columns] == 0).all() and (memory[:, columns:] == 7).all()


def test_scaling_refuses_columns_that_are_apart() -> None:
    """The kernel has no column stride, so with strided columns it would scale the elements in between."""
    near, apart = torch.ones(1, 2, 3), torch.ones(1, 3, 2).mT
    for grad, out in ((near, apart), (apart, near)):
        with pytest.raises(AssertionError, match="contiguous"):
            native.NativeBackend().scale_rows(grad, torch.ones(2), out)
