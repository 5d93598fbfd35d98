"""Test students whose vocabulary is a part of their teacher's: draft models, pruned vocabularies."""

from __future__ import annotations

import itertools

import pytest
import torch
from support.closeness import assert_gradient, assert_value, during
from support.oracle import divergence as oracle_divergence, reference_gradients
from support.targets import Target
from torch import Tensor

import fastkd
from fastkd.divergences import DIVERGENCES

INF = float("inf")
STUDENT, TEACHER = 23, 41
# Divergences that are infinite, at their default parameters, if the teacher gives mass to other columns.
INFINITE_OUTSIDE = [
    d.name for d in DIVERGENCES.values() if d.infinite_outside(d.default("alpha"), d.default("beta"))
]
FINITE_OUTSIDE = [name for name in DIVERGENCES if name not in INFINITE_OUTSIDE]


def make(target: Target, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Student logits, teacher logits, labels, and the teacher column of each student column."""
    s, t = torch.randn(2, 3, STUDENT) * 2, torch.randn(2, 3, TEACHER) * 2
    labels = torch.randint(0, STUDENT, (2, 3))
    labels[1, 1] = -100
    t[1, 1] = s[1, 1] = float("nan")
    columns = torch.randperm(TEACHER)[:STUDENT]
    found = s.to(dtype), t.to(dtype), labels, columns
    return tuple(x.to(target.device) for x in found)  # type: ignore[return-value]


def with_rest(s: Tensor, t: Tensor, columns: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Logits of both sides over the student's columns and one more for all other columns of the teacher."""
    others = torch.ones(TEACHER, dtype=torch.bool, device=t.device)
    others[columns] = False
    rest = temperature * torch.logsumexp(t[..., others] / temperature, -1, keepdim=True)
    nothing = torch.full_like(s[..., :1], -INF)
    return torch.cat([s, nothing], -1), torch.cat([t[..., columns], rest], -1)


@pytest.mark.repeats(interpreted=6)
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperatures", [(1.0, None), (2.0, 0.7)])
def test_renormalized(target: Target, divergence: str, temperatures: tuple[float, float | None]) -> None:
    """With teacher_columns alone, the teacher is renormalized over the student's columns."""
    s, t, labels, columns = make(target)
    options = {"divergence": divergence, "kd_ratio": 0.6, "label_smoothing": 0.1, "z_loss": 1e-3}
    options |= {"temperature": temperatures[0], "teacher_temperature": temperatures[1]}
    x, y = s.clone().requires_grad_(), t.clone().requires_grad_()
    loss = fastkd.kd_loss(x, y, labels, teacher_columns=columns, **options, **target.options)
    loss.backward()
    exact, by_s, by_t = reference_gradients(s, t[..., columns], labels, **options)
    assert_value(loss.detach().cpu(), exact.cpu())
    assert_gradient(x.grad, by_s, factor=2)
    assert_gradient(y.grad[..., columns], by_t, factor=4)
    others = torch.ones(TEACHER, dtype=torch.bool, device=t.device).index_fill(0, columns, False)
    assert (y.grad[..., others] == 0).all()


@pytest.mark.repeats(interpreted=9)
@pytest.mark.parametrize("divergence", FINITE_OUTSIDE)
@pytest.mark.parametrize("temperatures", [(1.0, None), (2.0, 0.7)])
def test_with_a_rest(target: Target, divergence: str, temperatures: tuple[float, float | None]) -> None:
    """With teacher_tail='bucket', the teacher's other columns count as one more class."""
    s, t, labels, columns = make(target)
    options = {"divergence": divergence, "kd_ratio": 0.6, "z_loss": 1e-3}
    options |= {"temperature": temperatures[0], "teacher_temperature": temperatures[1]}
    x, y = s.clone().requires_grad_(), t.clone().requires_grad_()
    tail = {"teacher_columns": columns, "teacher_tail": "bucket"}
    loss = fastkd.kd_loss(x, y, labels, **tail, **options, **target.options)
    loss.backward()
    x64, y64 = (torch.where(labels[..., None] < 0, 0.0, z.double()).requires_grad_() for z in (s, t))
    whole = with_rest(x64, y64, columns, temperatures[1] or temperatures[0])
    from support.oracle import kd_loss

    exact = kd_loss(*whole, labels, **options)
    by_s, by_t = torch.autograd.grad(exact, (x64, y64))
    assert_value(loss.detach().cpu(), exact.detach().cpu())
    assert_gradient(x.grad, by_s.nan_to_num(0.0), factor=2)
    assert_gradient(y.grad, by_t, factor=4)


def test_acceptance_is_the_true_one(target: Target) -> None:
    """Speculative decoding accepts a draft with probability sum min(p, q), p over the whole vocabulary."""
    s, t, _, columns = make(target)
    s, t = s.nan_to_num(0.3), t.nan_to_num(0.1)
    options = {"teacher_columns": columns, "teacher_tail": "bucket", **target.options}
    loss = fastkd.kd_loss(s, t, divergence="log_acceptance", reduction="none", **options)
    q = torch.zeros(2, 3, TEACHER, dtype=torch.float64, device=s.device)
    q[..., columns] = torch.softmax(s.double(), -1)
    accepted = torch.minimum(torch.softmax(t.double(), -1), q).sum(-1)
    assert_value(loss.cpu(), -torch.log(accepted).cpu())


@pytest.mark.parametrize("tail", ["renormalize", "bucket"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_heads(target: Target, tail: str, reduction: str, chunk_size: int | None) -> None:
    """Student and teacher may each be given as logits or as hidden states with a softcap; all four agree."""
    _, _, labels, columns = make(target)
    sides = [torch.randn(2, 3, 8), torch.randn(STUDENT, 8), torch.randn(2, 3, 12), torch.randn(TEACHER, 12)]
    sides = [x.to(target.device) for x in sides]
    options = {"divergence": "tvd", "kd_ratio": 0.5, "reduction": reduction, "teacher_columns": columns}
    options["teacher_tail"] = tail
    found = []
    for student_head, teacher_head in itertools.product((True, False), repeat=2):
        h_s, w_s, h_t, w_t = (x.clone().requires_grad_() for x in sides)
        teacher: Tensor | fastkd.HiddenTeacher = fastkd.HiddenTeacher(h_t, w_t, logit_softcap=5.0)
        if not teacher_head:
            teacher = 5.0 * torch.tanh(h_t @ w_t.t() / 5.0)
        if student_head:
            loss = fastkd.linear_kd_loss(
                *(h_s, w_s, teacher, labels),
                logit_softcap=4.0,
                chunk_size=chunk_size,
                **options,
                **target.options,
            )
        else:
            s = 4.0 * torch.tanh(h_s @ w_s.t() / 4.0)
            loss = fastkd.kd_loss(s, teacher, labels, **options, **target.options)
        upstream = torch.linspace(0.5, 2, loss.numel(), device=loss.device).view(loss.shape)
        found.append((loss.detach(), *torch.autograd.grad(loss, (h_s, w_s, h_t, w_t), upstream)))
    for way in found[:-1]:
        for ours, theirs in zip(way, found[-1], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("tail", ["renormalize", "bucket"])
def test_dtypes_and_inplace(target: Target, dtype: torch.dtype, tail: str) -> None:
    if not target.runs(dtype):
        pytest.skip(f"no {dtype} here")
    s, t, labels, columns = make(target, dtype)
    options = {"divergence": "reverse_kl", "teacher_columns": columns, "teacher_tail": tail, **target.options}
    for inplace in (False, True):
        with during(inplace=inplace):
            x, y = s.clone().requires_grad_(), t.clone().requires_grad_()
            loss = fastkd.kd_loss(x * 1, y, labels, inplace=inplace, **options)
            loss.backward()
            safe = (torch.where(labels[..., None] < 0, 0.0, z.double()) for z in (s, t))
            x64, y64 = (z.requires_grad_() for z in safe)
            whole = (x64, y64[..., columns]) if tail == "renormalize" else with_rest(x64, y64, columns, 1.0)
            rows = oracle_divergence("reverse_kl", *(torch.log_softmax(z, -1) for z in whole[::-1]))
            exact = (rows * (labels >= 0)).sum() / (labels >= 0).sum()
            by_s, by_t = torch.autograd.grad(exact, (x64, y64))
            assert_value(loss.detach().cpu(), exact.detach().cpu())
            assert_gradient(x.grad, by_s.nan_to_num(0.0), factor=2)
            assert_gradient(y.grad, by_t, factor=4)


def test_padded_students_and_a_teacher_of_nothing_else(target: Target) -> None:
    s, t, labels, columns = make(target)
    t[0, 0] = t[0, 0].index_fill(-1, columns, 1.0)
    others = torch.ones(TEACHER, dtype=torch.bool, device=t.device).index_fill(0, columns, False)
    t[0, 0][others] = -INF
    padded = torch.cat([s, s.new_full((2, 3, 4), float("nan"))], -1)
    for tail in ("renormalize", "bucket"):
        options = {"divergence": "jsd", "teacher_tail": tail, "teacher_columns": columns, **target.options}
        found = []
        for student, more in ((s, {}), (padded, {"vocab_size": STUDENT})):
            x, y = student.clone().requires_grad_(), t.clone().requires_grad_()
            loss = fastkd.kd_loss(x, y, labels, **options, **more)
            loss.backward()
            assert torch.isfinite(loss) and torch.isfinite(y.grad).all()
            found.append((loss.detach(), x.grad[..., :STUDENT], y.grad))
        assert (x.grad[..., STUDENT:] == 0).all()
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("tail", ["renormalize", "bucket"])
def test_metrics(target: Target, tail: str) -> None:
    s, t, labels, columns = make(target)
    s[0, 0] = t[0, 0, columns]
    t[0, 0, columns[4]] = t[0, 0].max() + 1
    s[0, 0, 4] = s[0, 0].max() + 2
    options = {"divergence": "tvd", "teacher_tail": tail, "teacher_columns": columns, "kd_ratio": 0.5}
    _, found = fastkd.kd_loss(s, t, labels, return_metrics=True, **options, **target.options)
    valid = labels >= 0
    x, y = s[valid].double(), t[valid].double()
    top = y.argmax(-1) if tail == "bucket" else columns[y[:, columns].argmax(-1)]
    assert_value(found.agreement.cpu(), (columns[x.argmax(-1)] == top).double().mean().cpu())
    both = with_rest(x, y, columns, 1.0) if tail == "bucket" else (x, y[:, columns])
    log_q, log_p = (torch.log_softmax(z, -1) for z in both)
    for log, name in ((log_q, "student_entropy"), (log_p, "teacher_entropy")):
        entropy = -torch.where(log.exp() == 0, 0.0, log.exp() * log).sum(-1).mean()
        assert_value(getattr(found, name).cpu(), entropy.cpu())
    assert_value(found.kd.cpu(), 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1).mean().cpu())


@pytest.mark.parametrize("tail", ["renormalize", "bucket"])
def test_sparse_teachers_speak_of_their_own_columns(target: Target, tail: str) -> None:
    """A sparse teacher's indices are columns of the teacher; teacher_columns maps them to the student's."""
    s, t, labels, columns = make(target)
    s, t = s.nan_to_num(0.0), t.nan_to_num(0.0)
    logprobs, indices = torch.log_softmax(t, -1).topk(9)
    x = s.clone().requires_grad_()
    loss = fastkd.kd_loss(
        x, fastkd.SparseTeacher(indices, logprobs, tail), labels, teacher_columns=columns, **target.options
    )
    loss.backward()
    place = torch.full((TEACHER,), -1, device=s.device)
    place[columns] = torch.arange(STUDENT, device=s.device)
    known = place[indices] >= 0
    assert known.any() and not known.all()
    mapped = fastkd.SparseTeacher(place[indices].clamp(min=0), logprobs.masked_fill(~known, -INF), tail)
    y = s.clone().requires_grad_()
    same = fastkd.kd_loss(y, mapped, labels, **target.options)
    same.backward()
    torch.testing.assert_close(loss, same)
    torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.parametrize("tail", ["renormalize", "bucket"])
def test_transforms_and_compile(tail: str) -> None:
    s, t, _, columns = make(Target("native"))
    s, t = s.nan_to_num(0.0), t.nan_to_num(0.0)

    def loss(x: Tensor) -> Tensor:
        return fastkd.kd_loss(x, t, divergence="jsd", teacher_columns=columns, teacher_tail=tail)

    x = s.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(x), x)
    torch.testing.assert_close(torch.func.grad(loss)(s), expected)
    y = s.clone().requires_grad_()
    torch.compile(loss, fullgraph=True, backend="aot_eager")(y).backward()
    torch.testing.assert_close(y.grad, expected)


def test_refused() -> None:
    s, t, labels, columns = make(Target("native"))

    def refuse(error: type[Exception], match: str, **options: object) -> None:
        with pytest.raises(error, match=match):
            fastkd.kd_loss(s, t, labels, **{"teacher_columns": columns, **options})  # type: ignore[arg-type]

    refuse(TypeError, "int64 tensor of shape", teacher_columns=columns.int())
    refuse(ValueError, r"teacher_columns must have shape \(23,\)", teacher_columns=columns[:-1])
    refuse(
        IndexError,
        r"teacher_columns\[3\] is 41, outside \[0, 41\)",
        teacher_columns=columns.index_fill(0, torch.tensor(3), 41),
    )
    refuse(ValueError, "more than once", teacher_columns=torch.full_like(columns, 7))
    refuse(ValueError, "did you mean 'bucket'", teacher_tail="buckets")
    for name in INFINITE_OUTSIDE:
        refuse(ValueError, "infinite where the teacher has", divergence=name, teacher_tail="bucket")
    refuse(ValueError, "infinite", divergence="alpha", alpha=1.5, teacher_tail="bucket")
    refuse(
        ValueError,
        "label_smoothing does not go",
        divergence="tvd",
        label_smoothing=0.1,
        teacher_tail="bucket",
        kd_ratio=0.5,
    )
    head = fastkd.HiddenTeacher(torch.randn(2, 3, 4), torch.randn(TEACHER, 4))
    with pytest.raises(IndexError, match="outside"):
        fastkd.kd_loss(s, head, labels, teacher_columns=columns + 30)
