"""An output head, a chunk of rows at a time: logits, and the gradients of what made them."""

from __future__ import annotations

import torch
from torch import Tensor

from fastkd.backends.base import Backend
from fastkd.ops.rows import wide

# Rows of logits on a GPU begin at multiples of this: a cache line, for bulk copies and matrix instructions.
ROW_BYTES = 128
# The exponent of 2 of a float16 gradient's largest element once it has been scaled for a matrix product.
FLOAT16_TOP = 10.0


def logits_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of a chunk of logits, and of their gradient, for hidden states of ``dtype``.

    float16 logits are held in float32: a gradient of theirs may be too large or too small for float16 before
    the upstream gradient (a GradScaler's) is known, while the sums made of it are not.
    """
    return torch.float32 if dtype == torch.float16 else dtype


def row_pitch(vocab: int, dtype: torch.dtype, device_type: str) -> int:
    """Elements from one row of logits to the next."""
    if device_type != "cuda":
        return vocab
    step = ROW_BYTES // logits_dtype(dtype).itemsize
    return -(-vocab // step) * step


def row_bytes(weight: Tensor | None, vocab: int) -> int:
    """Bytes of a row of logits of this head; 0 without a head."""
    if weight is None:
        return 0
    return row_pitch(vocab, weight.dtype, weight.device.type) * logits_dtype(weight.dtype).itemsize


class Head:
    """``softcap(scale * (hidden @ weight.T + bias))`` in chunks, and its gradients.

    Args:
        hidden, weight, bias: ``(..., H)``, ``(V, H)``, ``(V,)`` or None, of one dtype.
        vocab: rows of the weight that exist.
        rows: of a chunk, at most.
        read: ``(rows,)`` bool, the rows that are read. The hidden states of others may hold anything.
        gradients: where the gradients by hidden, weight and bias go, or None: of the shape of their inputs,
            in their dtype or a wider one.
    """

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: float,
        softcap: float | None,
        vocab: int,
        rows: int,
        read: Tensor,
        gradients: tuple[Tensor | None, Tensor | None, Tensor | None],
    ) -> None:
        self.hidden, self.read = hidden.reshape(-1, hidden.shape[-1]), read
        self.weight = weight[:vocab]
        self.bias = None if bias is None else bias[:vocab]
        self.scale, self.softcap = scale, softcap
        self.wanted = any(x is not None for x in gradients)
        by_hidden, self.by_weight, self.by_bias = gradients
        self.by_hidden = None if by_hidden is None else by_hidden.view(self.hidden.shape)
        # Whether float16 operands make a float32 product. Elsewhere they are widened.
        self.half = hidden.dtype == torch.float16 and _products_in_float32(hidden.device)
        if hidden.dtype == torch.float16 and not self.half:
            self.weight = self.weight.float()
            self.bias = None if self.bias is None else self.bias.float()
        pitch = row_pitch(vocab, hidden.dtype, hidden.device.type)
        self.logits = torch.empty(
            (rows, pitch), dtype=logits_dtype(hidden.dtype), device=hidden.device
        )[:, :vocab]  # fmt: skip
        self.sums: Tensor | None = None
        if self.by_weight is not None:
            # The products of several chunks are summed in float32, and rounded once where they have to be.
            self.sums = self.by_weight
            if rows < len(self.hidden) and self.by_weight.dtype != wide(weight):
                self.sums = torch.empty_like(self.by_weight, dtype=wide(weight))
            # No chunk writes the rows past the vocabulary, nor any row where there are no tokens.
            self.sums[vocab if len(self.hidden) else 0 :].zero_()
        self.bias_sums: Tensor | None = None
        if self.by_bias is not None:
            self.bias_sums = torch.zeros(weight.shape[0], dtype=wide(weight), device=weight.device)

    def announce(self, runner: Backend) -> None:
        """Tell ``runner`` which memory is going to be written."""
        for x in (
            self.logits if self.weight.shape[0] == self.logits.stride(0) else None,
            self.by_hidden,
            self.sums,
        ):
            runner.about_to_write(x)

    def forward(self, start: int, stop: int) -> Tensor:
        """Logits ``(1, stop - start, vocab)`` of these rows, in memory that the next call reuses."""
        logits, hidden = self.logits[: stop - start], self.hidden[start:stop]
        if self.half:
            _mm_to_float32(hidden, self.weight.t(), logits)
            if self.bias is not None:
                logits.add_(self.bias)
        elif self.bias is None:
            torch.mm(hidden.to(logits.dtype), self.weight.t(), out=logits)
        else:
            torch.addmm(self.bias, hidden.to(logits.dtype), self.weight.t(), out=logits)
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits[None]

    def gradient(self, start: int, stop: int) -> Tensor | None:
        """Where the row kernel writes the gradient by these rows' logits: over the logits."""
        return self.logits[None, : stop - start] if self.wanted else None

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
        vocab, first = self.weight.shape[0], start == 0
        if self.bias_sums is not None:
            self.bias_sums[:vocab] += grad.sum(0, dtype=self.bias_sums.dtype)
        hidden = self.hidden[start:stop]
        if self.sums is not None:
            # The gradient of a row that is not read is 0, and 0 * NaN would not be.
            hidden = torch.where(self.read[start:stop, None], hidden, 0.0)
        if self.half:
            self._backward_of_half(start, stop, grad, hidden)
            return
        if self.by_hidden is not None:
            torch.mm(grad, self.weight, out=self.by_hidden[start:stop])
        if self.sums is not None:
            _add_product(self.sums[:vocab], grad.t(), hidden.to(grad.dtype), first=first)

    def _backward_of_half(self, start: int, stop: int, grad: Tensor, hidden: Tensor) -> None:
        # As float16 numbers near 1, whatever their size was; the product is divided by the same power of two.
        finite = torch.where(torch.isfinite(grad), grad.abs(), 0.0).amax()
        exponent = torch.where(finite == 0, 0.0, FLOAT16_TOP - torch.ceil(torch.log2(finite)))
        half, inverse = (grad * torch.exp2(exponent)).half(), torch.exp2(-exponent)
        vocab = self.weight.shape[0]
        if self.by_hidden is not None:
            _mm_to_float32(half, self.weight, self.by_hidden[start:stop])
            self.by_hidden[start:stop].mul_(inverse)
        if self.sums is not None:
            into = self.sums[:vocab]
            product = into if start == 0 else torch.empty_like(into)
            _mm_to_float32(half.t(), hidden, product)
            product.mul_(inverse)
            if start != 0:
                into.add_(product)

    def finish(self) -> None:
        """Give the logits' memory back, and round the sums into the gradients."""
        del self.logits
        if self.by_weight is not None and self.sums is not None and self.sums is not self.by_weight:
            self.by_weight.copy_(self.sums)
        if self.by_bias is not None and self.bias_sums is not None:
            self.by_bias.copy_(self.bias_sums)


def _add_product(into: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
    """``into += a @ b``, or ``into = a @ b`` for the ``first``; ``into`` has their dtype or is float32."""
    if into.dtype == a.dtype:
        if first:
            torch.mm(a, b, out=into)
        else:
            into.addmm_(a, b)
    elif _products_in_float32(into.device):
        if first:
            _mm_to_float32(a, b, into)
        else:
            torch.addmm(into, a, b, out_dtype=into.dtype, out=into)
    elif first:
        into.copy_(a @ b)
    else:
        into.add_(a @ b)


def _products_in_float32(device: torch.device) -> bool:
    """Whether torch writes a product of 16-bit numbers as float32, unrounded, or adds it to a float32 sum.

    Elsewhere the product is a tensor of its own, written, read again and rounded once more.
    """
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    return device.type == "cuda" and torch.version.hip is None and version >= (2, 11)


def _mm_to_float32(a: Tensor, b: Tensor, out: Tensor) -> None:
    torch.mm(a, b, out_dtype=torch.float32, out=out)
