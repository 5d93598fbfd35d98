"""Test float16: no representable gradient is lost or infinite, and mixed-precision training matches float32.

A float16 number is at most 65,504, and it loses digits below 6e-5. A gradient over a vocabulary that is
divided by the number of tokens and multiplied by a GradScaler's 65,536 passes through that whole range.
"""

from __future__ import annotations

import pytest
import torch
from support.oracle import kd_loss as oracle_loss
from support.targets import Target
from torch import Tensor, nn

import fastkd
from fastkd.divergences import DIVERGENCES
from fastkd.ops import head as heads

UNIT = 2.0**-11  # half a unit in the last place of a normal number, relative to it
TINY = 2.0**-25  # half a unit in the last place of a subnormal number


def assert_rounded_once(found: Tensor, exact: Tensor, slack: float = 1e-5) -> None:
    """Assert that ``found`` is ``exact`` rounded to float16, up to float32's own error.

    It may be infinite only where the rounded ``exact`` is.
    """
    exact = exact.double()
    bound = exact.abs() * (UNIT + slack) + TINY + slack * exact.abs().amax()
    fits = exact.abs() < 65_504
    assert torch.isfinite(found[fits]).all()
    assert ((found.double() - exact).abs() <= bound)[fits].all()


@pytest.mark.repeats(48, interpreted=7)
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("upstream", [1.0, 65_536.0, 3e-4])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradients_of_logits(target: Target, divergence: str, upstream: float, reduction: str) -> None:
    s, t = (torch.randn(5, 300, device=target.device).half().requires_grad_() for _ in range(2))
    labels = torch.randint(0, 300, (5,), device=target.device)
    labels[2] = -100
    options = {"kd_ratio": 0.7, "divergence": divergence, "temperature": 2.0, "reduction": reduction}
    (upstream * fastkd.kd_loss(s, t, labels, **options, **target.options).sum()).backward()
    exact = [x.detach().double().requires_grad_() for x in (s, t)]
    (upstream * oracle_loss(*exact, labels, **options).sum()).backward()
    for x, e in zip((s, t), exact, strict=True):
        assert_rounded_once(x.grad, e.grad)


@pytest.mark.parametrize("divergence", ["reverse_kl", "jeffreys"])
@pytest.mark.parametrize("inplace", [False, True])
def test_columns_that_the_teacher_bans(target: Target, divergence: str, inplace: bool) -> None:
    """Gradients in columns that the teacher bans are a few hundred, far from the largest float16."""
    x, t = torch.randn(8, 64, device=target.device), torch.randn(8, 64, device=target.device)
    t[:, 0], x[:, 0] = -1e4, x[:, 0] + 2
    x, t = x.half().requires_grad_(), t.half()
    loss = fastkd.kd_loss(x * 1.0, t, divergence=divergence, inplace=inplace, **target.options)
    loss.backward()
    exact = x.detach().double().requires_grad_()
    oracle_loss(exact, t.double(), divergence=divergence).backward()
    assert_rounded_once(x.grad, exact.grad)
    assert exact.grad.abs().max() > 64  # 1,024 times as much would not fit in float16


def test_weights_that_do_not_sum_to_1(target: Target) -> None:
    """A sparse teacher may hold counts of draws, which the division by num_items normalises."""
    indices = torch.tensor([[1, 2, 3], [4, 5, 6]], device=target.device)
    counts = torch.tensor([[80.0, 15.0, 5.0], [70.0, 20.0, 10.0]], device=target.device)
    teacher = fastkd.SparseTeacher(indices, counts.log(), tail="drop")
    logits = torch.randn(2, 40, device=target.device).half()
    grads = []
    for dtype in (torch.float16, torch.float32):
        s = logits.detach().clone().to(dtype).requires_grad_()
        fastkd.kd_loss(s, teacher, num_items=200, **target.options).backward()
        grads.append(s.grad)
    assert_rounded_once(*grads)


def outliers(tokens: int = 512, width: int = 16, vocab: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states with a channel that is 1 everywhere, a weight, and a teacher with a favourite column."""
    hidden, teacher = torch.randn(tokens, width), torch.randn(tokens, vocab)
    hidden[:, 0] = 1.0
    teacher[:, 7] += 6
    return hidden, torch.randn(vocab, width) * 0.1, teacher


@pytest.mark.repeats(11, interpreted=3)
@pytest.mark.parametrize("chunk_size", [None, 256, 100])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("upstream", [1.0, 4096.0, 1e-3])
def test_sums_over_tokens(target: Target, chunk_size: int | None, reduction: str, upstream: float) -> None:
    """The head's gradients stay right where they sum hundreds of tokens of the same sign."""
    tokens = 64 if target.backend == "triton" and target.device == "cpu" else 512
    given = [x.to(target.device).half() for x in outliers(tokens)]
    factor = upstream / (1 if reduction == "mean" else tokens)
    h, w, t = (x.clone().requires_grad_() for x in given)
    options = {"reduction": reduction, "temperature": 2.0}
    loss = fastkd.linear_kd_loss(h, w, t, chunk_size=chunk_size, **options, **target.options)
    (factor * loss.sum()).backward()
    exact = [x.double().requires_grad_() for x in given]
    (factor * oracle_loss(exact[0] @ exact[1].t(), exact[2], **options).sum()).backward()
    for x, e in zip((h, w), exact, strict=False):
        assert x.grad.dtype == torch.float16
        assert_rounded_once(x.grad, e.grad, slack=1e-4)


@pytest.mark.parametrize("scale", [1e-4, 64.0])
def test_a_logit_scale(target: Target, scale: float) -> None:
    given = [x.to(target.device).half() for x in outliers(64)]
    h, w, t = (x.clone().requires_grad_() for x in given)
    fastkd.linear_kd_loss(h, w, t, logit_scale=scale, **target.options).backward()
    exact = [x.double().requires_grad_() for x in given]
    oracle_loss(exact[0] @ exact[1].t() * scale, exact[2]).backward()
    for x, e in zip((h, w), exact, strict=False):
        assert_rounded_once(x.grad, e.grad, slack=1e-4)


def test_products_of_half_operands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test the path of a GPU that multiplies float16 matrices into float32.

    The float16 gradients that enter these products are near 1 for every upstream gradient.
    """

    def product(a: Tensor, b: Tensor, out: Tensor) -> None:
        assert a.dtype == b.dtype == torch.float16 and out.dtype == torch.float32
        assert torch.isfinite(a).all()
        out.copy_(a.float() @ b.float())

    monkeypatch.setattr(heads, "_products_in_float32", lambda device: True)
    monkeypatch.setattr(heads, "_mm_to_float32", product)
    given = [x.half() for x in outliers()]
    given[2][:, 3] = -1e4  # a large gradient of the reverse KL
    bias = torch.randn(200).half()
    for upstream in (1.0, 1e-4, 512.0):
        h, w, b = (x.clone().requires_grad_() for x in (*given[:2], bias))
        loss = fastkd.linear_kd_loss(h, w, given[2], student_bias=b, divergence="reverse_kl", chunk_size=200)
        (upstream * loss).backward()
        exact = [x.double().requires_grad_() for x in (*given[:2], bias)]
        logits = exact[0] @ exact[1].t() + exact[2]
        (upstream * oracle_loss(logits, given[2].double(), divergence="reverse_kl")).backward()
        for x, e in zip((h, w, b), exact, strict=True):
            assert_rounded_once(x.grad, e.grad, slack=2e-3)


class Model(nn.Module):
    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.embedding, self.inner = nn.Embedding(vocab, 24), nn.Linear(24, 24)
        self.head = nn.Linear(24, vocab)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden: Tensor = torch.tanh(self.inner(self.embedding(tokens)))
        return hidden


def trained(divergence: str, fused: bool, half: bool, steps: int = 50) -> tuple[list[float], list[float]]:
    """The losses and the scales of a short run, in float16 with autocast and a GradScaler or in float32."""
    torch.manual_seed(3)
    vocab = 120
    student, teacher = Model(vocab), Model(vocab)
    tokens = torch.randint(0, vocab, (8, 16))
    with torch.no_grad():
        for p in teacher.head.parameters():
            p.mul_(4)
        soft = teacher.head(teacher(tokens))
    labels = soft.argmax(-1)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5)
    scaler = torch.amp.GradScaler("cpu", enabled=half, init_scale=2.0**16, growth_interval=20)
    options = {"kd_ratio": 0.5, "divergence": divergence, "temperature": 2.0}
    losses, scales = [], []
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16, enabled=half):
            hidden = student(tokens)
            if fused:
                head = student.head
                loss = fastkd.linear_kd_loss(
                    hidden, head.weight, soft, labels, student_bias=head.bias, chunk_size=50, **options
                )
            else:
                loss = fastkd.kd_loss(student.head(hidden), soft, labels, **options)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
        scales.append(scaler.get_scale())
    return losses, scales


@pytest.mark.repeats(8)
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("fused", [False, True], ids=["kd_loss", "linear_kd_loss"])
def test_training_with_a_grad_scaler(divergence: str, fused: bool) -> None:
    expected, _ = trained(divergence, fused, half=False)
    found, scales = trained(divergence, fused, half=True)
    assert found[-1] < 0.9 * found[0]
    assert abs(found[-1] - expected[-1]) <= 0.02 * abs(expected[-1])
    assert scales[-1] >= 1024, "the scale keeps falling: gradients are infinite"
