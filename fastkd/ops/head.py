"""An output head, a chunk of rows at a time: logits, and the gradients of hidden states, weight and bias."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastkd.backends import memory
from fastkd.backends.base import Backend
from fastkd.ops.rows import wide

# On a GPU, rows of logits begin at whole cache lines, which suits bulk copies and matrix instructions.
ROW_BYTES = 128
# float16 gradients are scaled for a matrix product: their largest element becomes at most 2**FLOAT16_TOP.
FLOAT16_TOP = 10.0
# Elements of a 16-bit product that are computed at a time before they are added to float32 sums.
PRODUCT_ELEMENTS = 2**21


def logits_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of a chunk of logits, and of their gradient, for hidden states of ``dtype``.

    Logits of float16 heads are float32: until the upstream gradient (a GradScaler's) multiplies it, their
    gradient may be too large or too small for float16. The sums over it are float32 as well.
    """
    return torch.float32 if dtype == torch.float16 else dtype


def row_pitch(vocab: int, dtype: torch.dtype, device_type: str) -> int:
    """Elements from one row of logits to the next."""
    if device_type != "cuda":
        return vocab
    step = ROW_BYTES // logits_dtype(dtype).itemsize
    return -(-vocab // step) * step


def row_bytes(weight: Tensor | None, vocab: int, softcap: float | None = None) -> int:
    """Bytes per row of this head's logits, and on a GPU of what :class:`Head` keeps beside them.

    These are the slope of a softcap, and the gradient's float16 copy. 0 without a head.
    """
    if weight is None:
        return 0
    size = logits_dtype(weight.dtype).itemsize
    if weight.device.type == "cuda":
        size += (softcap is not None) * size + (weight.dtype == torch.float16) * torch.float16.itemsize
    return row_pitch(vocab, weight.dtype, weight.device.type) * size


class Head:
    """``softcap(scale * (hidden @ weight.T + bias))`` in chunks, and its gradients.

    Args:
        hidden, weight, bias: ``(..., H)``, ``(V, H)``, ``(V,)`` or None, of one dtype.
        vocab: rows of the weight that exist.
        rows: the most rows of a chunk.
        read: ``(rows,)`` bool, the rows that are read. The hidden states of other rows may hold anything.
        gradients: memory for the gradients of hidden, weight and bias, each of its input's shape and of its
            dtype or a wider one, or None.
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
        # Whether torch multiplies float16 operands into a float32 product; if not, they are widened.
        self.half = hidden.dtype == torch.float16 and _products_in_float32(hidden.device)
        if hidden.dtype == torch.float16 and not self.half:
            self.weight = self.weight.float()
            self.bias = None if self.bias is None else self.bias.float()
        pitch = row_pitch(vocab, hidden.dtype, hidden.device.type)
        self.logits = memory.empty((rows, pitch), logits_dtype(hidden.dtype), hidden.device)[:, :vocab]
        self.sums: Tensor | None = None
        if self.by_weight is not None:
            # The products of several chunks are summed in float32, and rounded once at the end if need be.
            self.sums = self.by_weight
            if rows < len(self.hidden) and self.by_weight.dtype != wide(weight):
                self.sums = memory.empty_like(self.by_weight, wide(weight))
            # No chunk writes the rows beyond the vocabulary, or any row if there are no tokens.
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
        """Where the row kernel writes the gradient of these rows' logits: over the logits."""
        return self.logits[None, : stop - start] if self.wanted else None

    def slope(self, logits: Tensor) -> Tensor | None:
        """d capped / d uncapped, computed before the logits are overwritten; None if there is no cap."""
        if self.softcap is None:
            return None
        # One operator: chunks are large, and so would be the results of several.
        return torch.addcmul(logits.new_ones(()), logits[0], logits[0], value=-1 / self.softcap**2)

    def backward(self, start: int, stop: int, grad: Tensor, slope: Tensor | None) -> None:
        """Propagate the gradient ``(1, stop - start, vocab)`` of these rows' logits to the head's tensors."""
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
            # The gradient of a row that is not read is 0, but 0 * NaN would be NaN.
            hidden = torch.where(self.read[start:stop, None], hidden, 0.0)
        if self.half:
            self._backward_of_half(start, stop, grad, hidden)
            return
        if self.by_hidden is not None:
            torch.mm(grad, self.weight, out=self.by_hidden[start:stop])
        if self.sums is not None:
            _add_product(self.sums[:vocab], grad.t(), hidden.to(grad.dtype), first=first)

    def _backward_of_half(self, start: int, stop: int, grad: Tensor, hidden: Tensor) -> None:
        # A power of two brings the largest element to 2**FLOAT16_TOP or just below, so that gradients of any
        # size fit float16; the product is divided by the same power. Rows that are not finite have no say.
        largest = torch.linalg.vector_norm(grad, ord=math.inf, dim=-1)
        finite = torch.where(torch.isfinite(largest), largest, 0.0).amax()
        exponent = torch.where(finite == 0, 0.0, FLOAT16_TOP - torch.ceil(torch.log2(finite)))
        half = torch.mul(grad, torch.exp2(exponent), out=torch.empty_like(grad, dtype=torch.float16))
        inverse = torch.exp2(-exponent)
        vocab = self.weight.shape[0]
        if self.by_hidden is not None:
            _mm_to_float32(half, self.weight, self.by_hidden[start:stop])
            self.by_hidden[start:stop].mul_(inverse)
        if self.sums is not None:
            into = self.sums[:vocab]
            product = into if start == 0 else memory.empty_like(into)
            _mm_to_float32(half.t(), hidden, product)
            product.mul_(inverse)
            if start != 0:
                into.add_(product)

    def finish(self) -> None:
        """Free the logits' memory, and round the sums into the gradients."""
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
    else:
        _add_rounded_product(into, a, b, first=first)


def _add_rounded_product(into: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
    """The sum for a product that torch writes in the dtype of ``a``, a few of its rows at a time.

    They stay in the caches between the steps. Torch adds tensors of two dtypes several times more slowly than
    it converts one and adds it.
    """
    step = max(1, PRODUCT_ELEMENTS // max(1, b.shape[1]))
    product = b.new_empty(min(step, into.shape[0]), b.shape[1])
    wider = torch.empty_like(product, dtype=into.dtype)
    for start in range(0, into.shape[0], step):
        rows = into[start : start + step]
        part = torch.mm(a[start : start + step], b, out=product[: len(rows)])
        if first:
            rows.copy_(part)
        else:
            rows.add_(wider[: len(rows)].copy_(part))


def _products_in_float32(device: torch.device) -> bool:
    """Whether torch can write a product of 16-bit matrices as float32, unrounded, or add it to a float32 sum.

    If not, the product is a tensor of its own, which is rounded once more, written, and read again.
    """
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    return device.type == "cuda" and torch.version.hip is None and version >= (2, 11)


def _mm_to_float32(a: Tensor, b: Tensor, out: Tensor) -> None:
    torch.mm(a, b, out_dtype=torch.float32, out=out)
