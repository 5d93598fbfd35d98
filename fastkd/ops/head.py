"""An output head, a chunk of rows at a time: logits, and the gradients of what made them."""

from __future__ import annotations

import torch
from torch import Tensor

from fastkd.backends.base import Backend
from fastkd.ops.rows import wide

# Of a GPU's row of logits: cache lines, and wide accesses, bulk copies and matrix instructions at any row.
ROW_BYTES = 128


def row_pitch(vocab: int, like: Tensor) -> int:
    """Elements from one row of logits to the next."""
    if like.device.type != "cuda":
        return vocab
    step = ROW_BYTES // like.element_size()
    return -(-vocab // step) * step


class Head:
    """``softcap(scale * (hidden @ weight.T + bias))`` in chunks, and its gradients.

    Args:
        runner: allocates large results.
        hidden, weight, bias: ``(..., H)``, ``(V, H)``, ``(V,)`` or None.
        vocab: rows of the weight that exist.
        rows: of a chunk, at most.
        wanted: whether the gradients by hidden, weight and bias are.
    """

    def __init__(
        self,
        runner: Backend,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: float,
        softcap: float | None,
        vocab: int,
        rows: int,
        wanted: list[bool],
    ) -> None:
        self.hidden = hidden.reshape(-1, hidden.shape[-1])
        self.weight = weight[:vocab]
        self.bias = None if bias is None else bias[:vocab]
        self.scale, self.softcap = scale, softcap
        self.wanted = any(wanted)
        self.logits = runner.empty((rows, row_pitch(vocab, hidden)), hidden)[:, :vocab]
        self.by_hidden = torch.empty_like(self.hidden) if wanted[0] else None
        self.by_weight = self.by_bias = None
        if wanted[1]:
            # 16-bit products of several chunks are summed in float32 and rounded once, at the end.
            dtype = weight.dtype if rows >= self.hidden.shape[0] else wide(weight)
            self.by_weight = runner.empty(weight.shape, weight.new_empty(0, dtype=dtype))
            # What no chunk writes.
            self.by_weight[vocab if len(self.hidden) else 0 :].zero_()
        if wanted[2]:
            self.by_bias = torch.zeros(weight.shape[0], dtype=wide(weight), device=weight.device)

    def forward(self, start: int, stop: int) -> Tensor:
        """Logits ``(1, stop - start, vocab)`` of these rows, in memory that the next call reuses."""
        logits = self.logits[: stop - start]
        if self.bias is None:
            torch.mm(self.hidden[start:stop], self.weight.t(), out=logits)
        else:
            torch.addmm(self.bias, self.hidden[start:stop], self.weight.t(), out=logits)
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits[None]

    def slope(self, logits: Tensor) -> Tensor | None:
        """d capped / d uncapped, taken before the logits are overwritten; None where it is 1."""
        return None if self.softcap is None else 1 - (logits[0] / self.softcap).square()

    def backward(self, start: int, stop: int, grad: Tensor, slope: Tensor | None) -> None:
        """Take the gradient ``(1, stop - start, vocab)`` by these rows' logits into those of the tensors."""
        grad = grad[0]
        if slope is not None:
            grad.mul_(slope)
        if self.scale != 1.0:
            grad.mul_(self.scale)
        vocab = self.weight.shape[0]
        if self.by_hidden is not None:
            torch.mm(grad, self.weight, out=self.by_hidden[start:stop])
        if self.by_weight is not None:
            _add_product(self.by_weight[:vocab], grad.t(), self.hidden[start:stop], first=start == 0)
        if self.by_bias is not None:
            self.by_bias[:vocab] += grad.sum(0, dtype=self.by_bias.dtype)

    def release(self) -> None:
        """Give the logits' memory back: the gradients are made where it was."""
        del self.logits

    def gradients(self) -> list[Tensor]:
        """By hidden (flattened), weight and bias in the inputs' dtype; empty where not wanted."""
        found = (self.by_hidden, self.by_weight, self.by_bias)
        return [self.hidden.new_empty(0) if g is None else g.to(self.hidden.dtype) for g in found]


def _add_product(into: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
    """``into += a @ b``, or ``into = a @ b`` for the ``first``; ``into`` has their dtype or is float32."""
    if into.dtype == a.dtype:
        if first:
            torch.mm(a, b, out=into)
        else:
            into.addmm_(a, b)
    elif _sums_in_float32(into.device):
        if first:
            torch.mm(a, b, out_dtype=into.dtype, out=into)
        else:
            torch.addmm(into, a, b, out_dtype=into.dtype, out=into)
    else:
        # Autocast would recast float16 to its own dtype.
        with torch.autocast(a.device.type, enabled=False):
            product = a @ b
        if first:
            into.copy_(product)
        else:
            into.add_(product)


def _sums_in_float32(device: torch.device) -> bool:
    """Whether torch adds a 16-bit product to a float32 sum as it writes it, unrounded. Elsewhere the product
    is a tensor of its own, written, read again and rounded once more."""
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    return device.type == "cuda" and torch.version.hip is None and version >= (2, 11)
