"""Test sparse teachers: the three tails against the oracle, in both losses, and refused calls."""

from __future__ import annotations

import pytest
import torch
from support.arithmetic import without_float64
from support.cases import SPARSE_CASES
from support.closeness import assert_gradient, assert_value
from support.oracle import Sparse, reference_gradients
from support.targets import TARGETS, Target
from torch import Tensor

import fastkd

INF = float("inf")
# Every divergence with every tail that it accepts.
# For tests that do not depend on the divergence: forward_kl, whose renormalized form spans the whole
# vocabulary, jsd, whose form spans only the teacher's entries, and the other two tails.
FEW = [("forward_kl", "renormalize"), ("jsd", "renormalize"), ("tvd", "bucket"), ("forward_kl", "drop")]


def distinct(rows: int, columns: int, k: int) -> Tensor:
    return torch.rand(rows, columns).argsort(-1)[:, :k]


def make(
    leading: tuple[int, ...] = (2, 3), columns: int = 230, k: int = 9, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Student logits, indices, log-probabilities that sum to 0.8, and labels."""
    rows = torch.Size(leading).numel()
    s = torch.randn(*leading, columns) * 2
    logprobs = torch.log_softmax(torch.randn(rows, k) * 2, -1) + torch.log(torch.tensor(0.8))
    indices = distinct(rows, columns, k)
    labels = torch.randint(0, columns, leading)
    found = s, indices.view(*leading, k), logprobs.view(*leading, k), labels
    return tuple(x.to(device) for x in found)  # type: ignore[return-value]


def check(
    target: Target,
    s: Tensor,
    indices: Tensor,
    logprobs: Tensor,
    labels: Tensor | None,
    tail: str,
    factor: float = 1.0,
    **options: object,
) -> None:
    s, logprobs = s.detach().requires_grad_(), logprobs.detach().requires_grad_()
    teacher = fastkd.SparseTeacher(indices, logprobs, tail)
    loss = fastkd.kd_loss(s, teacher, labels, **target.options, **options)  # type: ignore[arg-type]
    expected, by_s, by_t = reference_gradients(s, Sparse(indices, logprobs, tail), labels, **options)
    assert_value(loss.detach().cpu(), expected.cpu())
    (2.0 * loss.sum()).backward()
    assert_gradient(s.grad, 2.0 * by_s, factor=factor)
    assert_gradient(logprobs.grad, 2.0 * by_t, factor=4 * factor)


@pytest.mark.repeats(interpreted=6)
@pytest.mark.parametrize(("divergence", "tail"), SPARSE_CASES)
def test_tails(target: Target, divergence: str, tail: str) -> None:
    s, indices, logprobs, labels = make(device=target.device)
    labels[0, 1] = -100
    check(
        target, s, indices, logprobs, labels, tail, divergence=divergence, kd_ratio=0.6, label_smoothing=0.1
    )
    check(target, s, indices, logprobs, None, tail, divergence=divergence, z_loss=1e-3, reduction="sum")


@pytest.mark.repeats(interpreted=6)
@pytest.mark.parametrize(("divergence", "tail"), SPARSE_CASES[:-1])
def test_temperatures(target: Target, divergence: str, tail: str) -> None:
    s, indices, logprobs, labels = make(device=target.device)
    options = {"divergence": divergence, "temperature": 2.0, "teacher_temperature": 0.7, "kd_ratio": 0.7}
    check(target, s, indices, logprobs, labels, tail, factor=2, **options)


@pytest.mark.parametrize("alpha", [-0.7, 0.3, 1.8])
@pytest.mark.parametrize(
    ("divergence", "tail"), [("alpha", "renormalize"), ("alpha", "bucket"), ("alpha_beta", "bucket")]
)
def test_powers(target: Target, divergence: str, tail: str, alpha: float) -> None:
    s, indices, logprobs, labels = make(device=target.device)
    check(target, s, indices, logprobs, labels, tail, factor=2, divergence=divergence, alpha=alpha)


@pytest.mark.parametrize("tail", ["renormalize", "bucket", "drop"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtypes(target: Target, tail: str, dtype: torch.dtype) -> None:
    if not target.runs(dtype):
        pytest.skip(f"no {dtype} here")
    s, indices, logprobs, labels = make(device=target.device)
    check(target, s.to(dtype), indices.int(), logprobs, labels, tail, factor=2, kd_ratio=0.5)


@pytest.mark.parametrize(("divergence", "tail"), FEW)
def test_entries_that_do_not_exist(target: Target, divergence: str, tail: str) -> None:
    s, indices, logprobs, labels = make(device=target.device)
    logprobs[..., 5:] = -INF
    logprobs[0, 0, 1:] = -INF
    indices[..., 5:] = 10**9  # any number will do
    indices[1, 1, 0] = 0  # absent entries may be mapped to column 0; this must not disturb the real column 0
    check(target, s, indices, logprobs, labels, tail, divergence=divergence, kd_ratio=0.5)


@pytest.mark.parametrize("tail", ["renormalize", "bucket"])
def test_all_columns_are_a_dense_teacher(target: Target, tail: str) -> None:
    s, t = torch.randn(4, 60, device=target.device), torch.randn(4, 60, device=target.device)
    order = distinct(4, 60, 60).to(target.device)
    logprobs = torch.log_softmax(t, -1).gather(-1, order)
    for divergence in ("forward_kl", "reverse_kl", "jsd"):
        grads = []
        for teacher in (fastkd.SparseTeacher(order, logprobs, tail), t):
            x = s.clone().requires_grad_()
            loss = fastkd.kd_loss(x, teacher, divergence=divergence, **target.options)
            loss.backward()
            grads.append((loss.detach(), x.grad))
        # The tail's mass is 0 here, but is computed as 1 minus a sum, with float32's rounding of 1.
        assert_value(grads[0][0].cpu(), grads[1][0].cpu(), atol=3e-6)
        assert_gradient(grads[0][1], grads[1][1], factor=3)


def test_dropped_mass_is_unbiased(target: Target) -> None:
    """In random-sampling KD the expected gradient over all draws equals the gradient of the dense teacher."""
    s, t = torch.randn(1, 5, device=target.device), torch.randn(1, 5, device=target.device)
    p = torch.softmax(t, -1)
    mean = torch.zeros_like(s)
    for i in range(5):
        for j in range(5):  # two draws with replacement, each with weight 1/2
            drawn = torch.bincount(torch.tensor([i, j]), minlength=5).to(target.device)
            logprobs = torch.log(drawn / 2)[None]
            x = s.clone().requires_grad_()
            teacher = fastkd.SparseTeacher(torch.arange(5, device=target.device)[None], logprobs, "drop")
            fastkd.kd_loss(x, teacher, **target.options).backward()
            mean += (p[0, i] * p[0, j]) * x.grad
    dense = s.clone().requires_grad_()
    fastkd.kd_loss(dense, t, **target.options).backward()
    torch.testing.assert_close(mean, dense.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tail", ["renormalize", "bucket", "drop"])
def test_ignored_rows_are_not_read(target: Target, tail: str) -> None:
    s, indices, logprobs, labels = make(device=target.device)
    labels[0, 1] = labels[1, 0] = -100
    s[0, 1], logprobs[1, 0] = float("nan"), float("nan")
    indices[0, 1], indices[1, 0] = -7, 10**12
    x, w = s.requires_grad_(), logprobs.requires_grad_()
    loss = fastkd.kd_loss(x, fastkd.SparseTeacher(indices, w, tail), labels, kd_ratio=0.5, **target.options)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(x.grad).all() and torch.isfinite(w.grad).all()
    assert (x.grad[0, 1] == 0).all() and (x.grad[1, 0] == 0).all() and (w.grad[1, 0] == 0).all()


@pytest.mark.parametrize("view", ["shifted", "columns_outer"])
def test_strides(target: Target, view: str) -> None:
    s, indices, logprobs, labels = make(device=target.device)
    wide = s.new_full((2, 4, 230), float("nan"))
    wide[:, :-1] = s
    strided = wide[:, :-1] if view == "shifted" else s.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    check(target, strided, indices, logprobs, labels, "bucket", kd_ratio=0.5)


@pytest.mark.parametrize(("divergence", "tail"), FEW)
def test_inplace_and_padded_vocabulary(target: Target, divergence: str, tail: str) -> None:
    s, indices, logprobs, labels = make(columns=200, device=target.device)
    padded = torch.full((2, 3, 208), float("nan"), device=target.device)
    padded[..., :200] = s
    x = padded.requires_grad_()
    teacher = fastkd.SparseTeacher(indices, logprobs, tail)
    options = {"divergence": divergence, "kd_ratio": 0.5}
    loss = fastkd.kd_loss(x * 1.0, teacher, labels, inplace=True, vocab_size=200, **options, **target.options)
    loss.backward()
    expected, by_s, _ = reference_gradients(s, Sparse(indices, logprobs, tail), labels, **options)
    assert_value(loss.detach().cpu(), expected.cpu())
    assert_gradient(x.grad[..., :200], by_s)
    assert (x.grad[..., 200:] == 0).all()


@pytest.mark.repeats(interpreted=4)
@pytest.mark.parametrize(("divergence", "tail"), FEW)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_linear(target: Target, divergence: str, tail: str, reduction: str, chunk_size: int | None) -> None:
    _, indices, logprobs, labels = make(device=target.device)
    labels[1, 2] = -100
    h = torch.randn(2, 3, 16, device=target.device, requires_grad=True)
    w = (torch.randn(230, 16, device=target.device) * 0.5).requires_grad_()
    logprobs.requires_grad_()
    options = {"divergence": divergence, "kd_ratio": 0.5, "reduction": reduction}
    teacher = fastkd.SparseTeacher(indices, logprobs, tail)
    loss = fastkd.linear_kd_loss(h, w, teacher, labels, chunk_size=chunk_size, **options, **target.options)
    upstream = torch.randn_like(loss)
    loss.backward(upstream)
    h64, w64, l64 = (x.detach().double().requires_grad_() for x in (h, w, logprobs))
    from support.oracle import kd_loss

    exact = kd_loss(h64 @ w64.t(), Sparse(indices, l64, tail), labels, **options)
    exact.backward(upstream.double())
    assert_value(loss.detach().cpu(), exact.detach().cpu())
    for ours, theirs in ((h, h64), (w, w64), (logprobs, l64)):
        assert_gradient(ours.grad, theirs.grad, factor=6)


def test_refused() -> None:
    s, indices, logprobs, _ = make()

    def call(**changes: object) -> Tensor:
        fields = {"indices": indices, "logprobs": logprobs, "tail": "renormalize"}
        options = {k: changes.pop(k) for k in list(changes) if k not in fields}
        return fastkd.kd_loss(s, fastkd.SparseTeacher(**(fields | changes)), **options)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="did you mean 'bucket'"):
        call(tail="buckets")
    with pytest.raises(ValueError, match="decoupled.*pass all logits"):
        call(divergence="decoupled")
    with pytest.raises(ValueError, match="did you mean 'tvd'"):
        call(divergence="tvdd", tail="drop")
    with pytest.raises(ValueError, match="'drop'.*reverse_kl"):
        call(tail="drop", divergence="reverse_kl")
    for temperatures in ({"temperature": 2.0}, {"teacher_temperature": 2.0}):
        with pytest.raises(ValueError, match="temperature 1 only"):
            call(tail="drop", **temperatures)
    with pytest.raises(ValueError, match=r"token 4 sum to 1\.\d+, .*tail='bucket'"):
        more = logprobs.clone()
        more[1, 1] += 0.4
        call(tail="bucket", logprobs=more)
    with pytest.raises(TypeError, match="int64 or int32"):
        call(indices=indices.float())
    with pytest.raises(ValueError, match="must be equal"):
        call(indices=indices[..., :-1])
    with pytest.raises(ValueError, match="leading shape"):
        call(indices=indices[:1], logprobs=logprobs[:1])
    for wrong in (-1, 230, 2**40):
        bad = indices.clone()
        bad[1, 1, 3] = wrong
        with pytest.raises(IndexError, match=rf"index {wrong} at token 4 is outside \[0, 230\)"):
            call(indices=bad)
    bad = indices.clone()
    bad[1, 1, 3] = bad[1, 1, 5]
    with pytest.raises(ValueError, match=f"repeats index {int(bad[1, 1, 5])} at token 4"):
        call(indices=bad)
    logits = s.requires_grad_() * 1.0
    before = logits.detach().clone()
    with pytest.raises(ValueError, match="repeats"):
        fastkd.kd_loss(logits, fastkd.SparseTeacher(bad, logprobs), inplace=True)
    assert torch.equal(logits.detach(), before)


@pytest.mark.parametrize("wrong", ["outside", "repeated"])
def test_wrong_entries_on_a_gpu_are_nan(wrong: str) -> None:
    """On a GPU, wrong entries mark their row as bad, since raising would make the host wait for the device.

    This tests the function that finds these rows, on CPU tensors.
    """
    from fastkd.ops.tokens import Tokens
    from fastkd.spec import LossSpec

    spec = LossSpec("forward_kl", 0.5, 0.5, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, -100, 20)
    indices = torch.tensor([[1, 2], [3, 4], [5, 6]])
    indices[1, 1] = 20 if wrong == "outside" else 3
    tokens = Tokens.__new__(Tokens)
    tokens.spec, tokens.labels, tokens.indices = spec, None, indices
    tokens.logprobs, tokens.loss_scale, tokens.grad_scale = torch.zeros(3, 2), torch.ones(3), torch.ones(3)
    bad = tokens._bad_indices(20)
    assert bad is not None and bad.tolist() == [False, True, False]


@pytest.mark.gpu
def test_wrong_entries_on_a_gpu() -> None:
    s, indices, logprobs, _ = make(device="cuda")
    indices[0, 1, 0] = 230
    indices[1, 1, 3] = indices[1, 1, 5]
    logprobs[1, 0] += 0.5
    x = s.requires_grad_()
    loss = fastkd.kd_loss(x, fastkd.SparseTeacher(indices, logprobs, "bucket"), reduction="none")
    loss.sum().backward()
    assert loss.isnan().flatten().tolist() == [False, True, False, True, True, False]
    assert torch.isfinite(x.grad[0, 0]).all() and torch.isfinite(x.grad[1, 2]).all()


@pytest.mark.parametrize("support", ["teacher", "student", "union"])
@pytest.mark.parametrize("given", ["logits", "hidden"])
def test_from_logits(support: str, given: str) -> None:
    """The entries are the requested columns, once each, with log-probabilities over the whole vocabulary."""
    h_s, w_s, h_t, w_t = torch.randn(2, 3, 8), torch.randn(50, 8), torch.randn(2, 3, 12), torch.randn(53, 12)
    s, t = h_s @ w_s.T, torch.tanh((h_t @ w_t.T)[..., :50] / 5) * 5
    if given == "logits":
        teacher, student = t, s
    else:
        teacher, student = fastkd.HiddenTeacher(h_t, w_t, logit_softcap=5.0), fastkd.HiddenTeacher(h_s, w_s)
    sparse = fastkd.SparseTeacher.from_logits(
        teacher, 7, student=student, support=support, tail="bucket", vocab_size=50
    )
    assert sparse.tail == "bucket" and sparse.indices.shape == (2, 3, 14 if support == "union" else 7)
    every = torch.log_softmax(t, -1)
    for place in [(i, j) for i in range(2) for j in range(3)]:
        exists = sparse.logprobs[place] > -INF
        columns = sparse.indices[place][exists]
        tops = {"teacher": t[place].topk(7).indices, "student": s[place].topk(7).indices}
        asked = tops.values() if support == "union" else [tops[support]]
        assert sorted(columns.tolist()) == sorted({c for top in asked for c in top.tolist()})
        torch.testing.assert_close(sparse.logprobs[place][exists], every[place][columns])


def test_from_logits_in_chunks_with_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    t, s = torch.randn(5, 40, requires_grad=True), torch.randn(5, 40)
    whole = fastkd.SparseTeacher.from_logits(t, 6, student=s, support="union")
    monkeypatch.setattr("fastkd.teachers.CHUNK_ELEMENTS", 80)
    sparse = fastkd.SparseTeacher.from_logits(t, 6, student=s, support="union")
    assert torch.equal(whole.indices, sparse.indices) and torch.equal(whole.logprobs, sparse.logprobs)
    fastkd.kd_loss(s, sparse).backward()
    dense = t.detach().clone().requires_grad_()
    logprobs = torch.log_softmax(dense, -1).gather(-1, sparse.indices)
    logprobs = torch.where(sparse.logprobs > -INF, logprobs, -INF)
    fastkd.kd_loss(s, fastkd.SparseTeacher(sparse.indices, logprobs)).backward()
    assert_gradient(t.grad, dense.grad)


def test_from_logits_refuses() -> None:
    s, t = torch.randn(2, 9), torch.randn(2, 9)
    for wrong in (0, 10, True, 2.0):
        with pytest.raises(ValueError, match=r"k must be an int in \[1, 9\]"):
            fastkd.SparseTeacher.from_logits(t, wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pass student="):
        fastkd.SparseTeacher.from_logits(t, 3, support="student")
    with pytest.raises(ValueError, match="did you mean 'union'"):
        fastkd.SparseTeacher.from_logits(t, 3, student=s, support="unions")
    with pytest.raises(ValueError, match="leading shape"):
        fastkd.SparseTeacher.from_logits(t, 3, student=s[:1], support="student")


def test_comparing_teachers_is_asking_for_the_same_one() -> None:
    """Teachers are compared and hashed by identity, not by their tensors' values."""
    one, other = (fastkd.SparseTeacher(torch.zeros(2, 3).long(), torch.zeros(2, 3)) for _ in range(2))
    assert one == one and one != other and len({one, other}) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_bucket_accepts_the_rounding_of_a_whole_distribution(dtype: torch.dtype) -> None:
    """tail='bucket' accepts log-probabilities that sum to more than 1 only by the rounding of their dtype."""
    logprobs = torch.log_softmax(torch.randn(64, 20) * 3, -1).to(dtype)
    indices = torch.arange(20).expand(64, 20)
    loss = fastkd.kd_loss(torch.randn(64, 50), fastkd.SparseTeacher(indices, logprobs, "bucket"))
    assert torch.isfinite(loss)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_metrics_of_a_bucket(target: Target, temperature: float) -> None:
    """The student's entropy is that of its softmax at the loss's temperature; the teacher's is that of its
    entries and the bucket."""
    s, indices, logprobs, labels = make(device=target.device)
    teacher = fastkd.SparseTeacher(indices, logprobs, "bucket")
    for ratio in (0.5, 0.0):
        options = {"temperature": temperature, "kd_ratio": ratio, **target.options}
        _, metrics = fastkd.kd_loss(s, teacher, labels, return_metrics=True, **options)
        log_q = torch.log_softmax(s.double() / temperature, -1)
        assert_value(metrics.student_entropy.cpu(), -(log_q.exp() * log_q).sum(-1).mean().cpu())
        rest = torch.log1p(-logprobs.double().exp().sum(-1, keepdim=True))
        log_p = torch.log_softmax(torch.cat([logprobs.double(), rest], -1) / temperature, -1)
        assert_value(metrics.teacher_entropy.cpu(), -(log_p.exp() * log_p).sum(-1).mean().cpu())
        exact = reference_gradients(s, Sparse(indices, logprobs, "bucket"), temperature=temperature)[0]
        assert_value(metrics.kd.cpu(), exact.cpu())


# Native is left out: it runs on CPUs and NVIDIA GPUs, which have float64.
@pytest.mark.parametrize("target", [p for p in TARGETS if p.values[0].backend != "native"], indirect=True)
@pytest.mark.parametrize("tail", ["renormalize", "bucket", "drop"])
def test_float64_is_never_used(target: Target, tail: str) -> None:
    """No float64 tensor is made, since some devices have no float64."""
    s, indices, logprobs, labels = make(device=target.device)
    s, logprobs = s.requires_grad_(), logprobs.requires_grad_()
    teacher = fastkd.SparseTeacher(indices, logprobs, tail)
    with without_float64():
        loss, metrics = fastkd.kd_loss(
            s, teacher, labels, kd_ratio=0.5, z_loss=1e-3, return_metrics=True, **target.options
        )
        loss.backward()
    assert all(x.dtype != torch.float64 for x in (loss, *metrics))
