"""Test how the losses work with autograd, torch.compile and torch.library."""

from __future__ import annotations

import pytest
import torch
from support.cases import SPARSE_CASES
from support.closeness import assert_gradient, assert_value
from support.oracle import reference_gradients

import fastkd
from fastkd.divergences import DIVERGENCES
from fastkd.spec import METRICS, LossSpec, names_of, numbers_of, spec_of

# Parameters other than the defaults.
PARAMETERS = {
    "jsd": {"beta": 0.2},
    "skew_forward_kl": {"beta": 0.6},
    "skew_reverse_kl": {"beta": 0.6},
    "alpha": {"alpha": -0.7},
    "renyi": {"alpha": 1.8},
    "alpha_beta": {"alpha": -0.5, "beta": 1.5},
    "decoupled": {"beta": 4.0},
}


# kl_tvd's gradient takes its weight as a constant, so it is not the slope of the value.
@pytest.mark.parametrize("divergence", [name for name in DIVERGENCES if name != "kl_tvd"])
@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("parameters", [0, 1])
def test_gradcheck(divergence: str, backend: str, parameters: int) -> None:
    s = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    t = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([1, -100, 4])

    def loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return fastkd.kd_loss(
            a,
            b,
            labels,
            kd_ratio=0.6,
            temperature=1.7,
            teacher_temperature=0.8,
            divergence=divergence,
            label_smoothing=0.1,
            z_loss=0.01,
            reduction="none",
            backend=backend,
            **(PARAMETERS.get(divergence, {}) if parameters else {}),
        )

    torch.autograd.gradcheck(loss, (s, t))


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize(("divergence", "tail"), [case for case in SPARSE_CASES if case[0] != "kl_tvd"])
def test_gradcheck_sparse(divergence: str, tail: str, backend: str) -> None:
    s = torch.randn(2, 9, dtype=torch.float64, requires_grad=True)
    logprobs = torch.log_softmax(torch.randn(2, 4, dtype=torch.float64), -1) - 0.3
    indices = torch.tensor([[1, 3, 8, 0], [5, 2, 7, 4]])

    def loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        teacher = fastkd.SparseTeacher(indices, b, tail)
        return fastkd.kd_loss(
            a,
            teacher,
            torch.tensor([3, 6]),
            kd_ratio=0.6,
            divergence=divergence,
            reduction="none",
            backend=backend,
        )

    torch.autograd.gradcheck(loss, (s, logprobs.requires_grad_()))


def test_second_order_raises() -> None:
    s = torch.randn(3, 7, requires_grad=True)
    (grad,) = torch.autograd.grad(fastkd.kd_loss(s, torch.randn(3, 7)), s, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        grad.square().sum().backward()


def test_no_graph_where_none_is_wanted() -> None:
    s = torch.randn(3, 7, requires_grad=True)
    with torch.no_grad():
        assert not fastkd.kd_loss(s, s).requires_grad
    assert not fastkd.kd_loss(s.detach(), s.detach()).requires_grad
    t = torch.randn(3, 7, requires_grad=True)
    fastkd.kd_loss(s.detach(), t).backward()
    assert t.grad is not None


def test_non_leaf_inputs_and_scaled_losses() -> None:
    x = torch.randn(4, 5, requires_grad=True)
    w = torch.randn(5, 30)
    t = torch.randn(4, 30)
    (fastkd.kd_loss(x @ w, t) / 8).backward()
    s = x.detach().double().requires_grad_()
    _, by_s, _ = reference_gradients((s @ w.double()).detach(), t)
    assert_gradient(x.grad, by_s @ w.double().t() / 8)


@pytest.mark.parametrize("keep", [False, True])
def test_upstream_factor_is_applied_once(keep: bool) -> None:
    s = torch.randn(4, 30, requires_grad=True)
    t = torch.randn(4, 30)
    (0.25 * fastkd.kd_loss(s, t)).backward(retain_graph=keep)
    _, by_s, _ = reference_gradients(s, t)
    assert_gradient(s.grad, 0.25 * by_s)


def test_autocast_changes_nothing_inside_the_loss() -> None:
    s, t = torch.randn(4, 300), torch.randn(4, 300)
    plain = fastkd.kd_loss(s, t), fastkd.kd_loss(s, t, backend="reference")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = fastkd.kd_loss(s, t), fastkd.kd_loss(s, t, backend="reference")
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("inputs", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_heads_follow_autocast(dtype: torch.dtype, inputs: torch.dtype) -> None:
    """Hidden states and weight may have different dtypes; autocast casts both, as it does for F.linear."""
    h = torch.randn(8, 16).to(inputs).requires_grad_()
    head = torch.nn.Linear(16, 300)
    wide = torch.randn(8, 32), torch.randn(300, 32, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=dtype):
        loss = fastkd.linear_kd_loss(
            h, head.weight, fastkd.HiddenTeacher(*wide), student_bias=head.bias, chunk_size=3
        )
    loss.backward()
    found = h.grad, head.weight.grad, head.bias.grad
    assert found[0].dtype == inputs and found[1].dtype == torch.float32
    cast = [x.detach().to(dtype).requires_grad_() for x in (h, head.weight, head.bias)]
    teacher = fastkd.HiddenTeacher(*(x.to(dtype) for x in wide))
    expected = fastkd.linear_kd_loss(*cast[:2], teacher, student_bias=cast[2], chunk_size=3)
    expected.backward()
    assert torch.equal(loss, expected)
    for grad, leaf in zip(found, cast, strict=True):
        assert torch.equal(grad, leaf.grad.to(grad.dtype))


def test_autocast_does_not_cast_float64_heads() -> None:
    h, w, t = torch.randn(4, 8).double(), torch.randn(30, 8).double(), torch.randn(4, 30).double()
    expected = fastkd.linear_kd_loss(h, w, t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fastkd.linear_kd_loss(h, w, t), expected)


def test_second_order_raises_in_place_too() -> None:
    x = torch.randn(3, 7, requires_grad=True)
    (grad,) = torch.autograd.grad(
        fastkd.kd_loss(x * 2, torch.randn(3, 7), inplace=True), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="second derivative"):
        grad.square().sum().backward()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compile_without_graph_breaks(reduction: str) -> None:
    t, labels = torch.randn(2, 5, 40), torch.randint(0, 40, (2, 5))
    w = torch.randn(40, 8)

    def step(h: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        dense = fastkd.kd_loss(h @ weight.t(), t, labels, kd_ratio=0.5, temperature=2.0, reduction=reduction)
        linear = fastkd.linear_kd_loss(
            h, weight, t, labels, kd_ratio=0.5, temperature=2.0, reduction=reduction
        )
        return 3.0 * (dense.sum() + linear.sum())

    results = []
    for run in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        h = torch.linspace(-1, 1, 80).view(2, 5, 8).requires_grad_()
        weight = w.clone().requires_grad_()
        loss = run(h, weight)
        loss.backward()
        results.append((loss.detach(), h.grad, weight.grad))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled)


@pytest.mark.slow
def test_compile_with_inductor() -> None:
    s, t = torch.randn(6, 40, requires_grad=True), torch.randn(6, 40)
    loss = torch.compile(lambda x: fastkd.kd_loss(x * 2.0, t, temperature=2.0), fullgraph=True)(s)
    loss.backward()
    expected, by_s, _ = reference_gradients((s * 2.0).detach(), t, temperature=2.0)
    assert_value(loss.detach(), expected)
    assert_gradient(s.grad, 2.0 * by_s)


def test_compile_does_not_recompile_per_batch_size() -> None:
    import torch._dynamo.testing

    counter = torch._dynamo.testing.CompileCounter()
    step = torch.compile(lambda s, t: fastkd.kd_loss(s, t), fullgraph=True, backend=counter, dynamic=True)
    for rows in (3, 5, 9, 17):
        step(torch.randn(rows, 20), torch.randn(rows, 20))
    assert counter.frame_count == 1


SPEC = LossSpec("forward_kl", 0.5, 0.5, 2.0, 2.0, 4.0, 4.0, 0.0, 0.0, 0.0, -100, 12)
SPARSE = LossSpec("forward_kl", 0.5, 0.5, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, -100, 12)


def packed(spec: LossSpec) -> tuple[object, ...]:
    """The spec in the form that the ops accept."""
    return (*names_of(spec), numbers_of(spec), None)


@pytest.mark.parametrize("changing", [False, True])
def test_a_spec_arrives_as_it_was_sent(changing: bool) -> None:
    """A LossSpec survives being packed into an operator's arguments and unpacked again."""
    spec = LossSpec("jsd", *(0.1 * i for i in range(1, 10)), -7, 12)
    numbers = torch.tensor(numbers_of(spec), dtype=torch.float64) if changing else None
    assert spec_of(names_of(spec), () if changing else numbers_of(spec), numbers) == spec


def test_opcheck() -> None:
    s, t, scale = torch.randn(2, 3, 12), torch.randn(2, 3, 12), torch.rand(6)
    labels = torch.randint(0, 12, (2, 3))
    results = (torch.empty(6), torch.empty(6, len(METRICS)), torch.empty_like(s))
    source = (t, None, None, labels, scale, scale, *packed(SPEC), None, None)
    torch.library.opcheck(torch.ops.fastkd.dense_kd, (s, *source, *results, torch.empty_like(t)))
    torch.library.opcheck(torch.ops.fastkd.dense_kd, (s, *source, results[0], None, None, None))
    indices, logprobs = torch.rand(2, 3, 12).argsort(-1)[..., :4], torch.rand(2, 3, 4).log() - 3
    source = (logprobs, indices, "bucket", labels, scale, scale, *packed(SPARSE), None, None)
    torch.library.opcheck(torch.ops.fastkd.dense_kd, (s, *source, *results, torch.empty_like(logprobs)))
    torch.library.opcheck(torch.ops.fastkd.scale_rows, (s, torch.rand(6), None, torch.empty_like(s)))


def test_opcheck_linear() -> None:
    scale, labels = torch.rand(6), torch.randint(0, 12, (6,))
    student = (torch.randn(6, 4), torch.randn(12, 4), torch.randn(12))
    heads = (torch.randn(12, 5), torch.randn(12))
    end = (4, None, None, torch.empty(6), torch.empty(6, len(METRICS)))  # chunk_size, group, backend, results
    by_student = [torch.empty_like(x) for x in student]

    def check(teacher: torch.Tensor, indices: object, tail: object, spec: LossSpec, *head: object) -> None:
        source = (teacher, indices, tail, labels, scale, scale, *packed(spec))
        by_teacher = [x if x is None else torch.empty_like(x) for x in (teacher, *head)]
        heads = (*student, 1.0, None, *head, 1.0, None, None, False)
        arguments = (*heads, *source, *end, *by_student, *by_teacher)
        torch.library.opcheck(torch.ops.fastkd.linear_kd, arguments)

    check(torch.randn(6, 5), None, None, SPEC, *heads)
    check(torch.randn(6, 12), None, None, SPEC, None, None)
    check(torch.rand(6, 3).log(), torch.rand(6, 12).argsort(-1)[:, :3], "drop", SPARSE, None, None)
