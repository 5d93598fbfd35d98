"""The compiled kernels. The only module that turns tensors into addresses and streams.

Tensors are checked here once more, since a wrong address does not raise: it corrupts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from fastkd import _settings
from fastkd.backends.base import Backend
from fastkd.spec import LossSpec

try:
    from fastkd import _C
except ImportError as error:
    _C = None  # type: ignore[assignment]
    _IMPORT_ERROR = f"the compiled module fastkd._C does not load ({error}): reinstall with 'pip install .'"
else:
    _IMPORT_ERROR = ""

_forced_isa: list[str] = []


def cpu_isas() -> list[str]:
    """Instruction sets that this CPU runs, best first."""
    return [] if _C is None else _C.cpu_isas()


def cpu_isa() -> str:
    """The instruction set in use: forced by a test, by ``FASTKD_CPU_ISA``, or the best."""
    wanted = _forced_isa[-1] if _forced_isa else _settings.cpu_isa()
    available = cpu_isas()
    if wanted is None:
        return available[0]
    if wanted not in available:
        raise ValueError(f"instruction set {wanted!r} cannot run here: choose from {', '.join(available)}")
    return wanted


@contextmanager
def forced_isa(isa: str) -> Iterator[None]:
    """Run CPU kernels with ``isa`` inside the block."""
    _forced_isa.append(isa)
    try:
        yield
    finally:
        _forced_isa.pop()


def built_with_cuda() -> str | None:
    """The CUDA version the module was built with, or None."""
    return _C.cuda_version if _C is not None and _C.built_with_cuda else None


class NativeBackend(Backend):
    """C++ on a CPU, CUDA C++ on an NVIDIA GPU."""

    name = "native"

    def missing(self, device: torch.device, dtype: torch.dtype | None = None) -> str | None:
        if _C is None:
            return _IMPORT_ERROR
        if device.type == "cpu":
            return None
        if device.type != "cuda" or torch.version.hip is not None:
            return "the native kernels run on CPUs and NVIDIA GPUs: use backend='triton' or 'reference'"
        if not _C.built_with_cuda:
            return "fastkd was built without CUDA: put nvcc on PATH and reinstall with FASTKD_CUDA=ON"
        if dtype == torch.float64:
            return "the CUDA kernels have no float64: use backend='reference'"
        return _C.cuda_missing(device.index if device.index is not None else 0)

    def empty(self, shape: Sequence[int], like: Tensor) -> Tensor:
        out = super().empty(shape, like)
        if out.device.type == "cpu":
            _C.cpu_advise_huge_pages(_address(out), out.numel() * out.element_size())
        return out

    def dense_rows(
        self,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor | None,
        loss_scale: Tensor,
        grad_scale: Tensor,
        spec: LossSpec,
        row_loss: Tensor,
        grad_student: Tensor | None,
        grad_teacher: Tensor | None,
    ) -> None:
        device, rows, wide = student.device, row_loss.numel(), row_loss.dtype
        if student.shape[:2] != teacher.shape[:2] or student.shape[0] * student.shape[1] != rows:
            raise AssertionError("rows of student, teacher and row_loss differ")
        if not 0 < spec.vocab_size <= min(student.shape[2], teacher.shape[2]):
            raise AssertionError("vocab_size outside the rows")
        for x, dtype in ((labels, torch.int64), (loss_scale, wide), (grad_scale, wide), (row_loss, wide)):
            if x is not None and (x.dtype != dtype or x.numel() != rows or not x.is_contiguous()):
                raise AssertionError("a per-row tensor is not contiguous or has the wrong dtype or length")
        for grad, logits in ((grad_student, student), (grad_teacher, teacher)):
            if grad is not None and (grad.shape != logits.shape or grad.dtype != logits.dtype):
                raise AssertionError("a gradient does not match its logits")
        for x in (teacher, labels, loss_scale, grad_scale, row_loss, grad_student, grad_teacher):
            if x is not None and x.device != device:
                raise AssertionError("tensors on different devices")

        params = _C.DenseParams()
        params.rows, params.inner, params.vocab = rows, student.shape[1], spec.vocab_size
        params.student, params.teacher = _rows(student), _rows(teacher)
        params.grad_student, params.grad_teacher = _rows(grad_student), _rows(grad_teacher)
        params.set_rows(
            labels=_address(labels),
            loss_scale=_address(loss_scale),
            grad_scale=_address(grad_scale),
            row_loss=_address(row_loss),
            wide=wide == torch.float64,
        )
        params.divergence = getattr(_C.Divergence, spec.divergence if spec.kd_weight != 0 else "none")
        params.beta, params.kd_weight, params.ce_weight = spec.beta, spec.kd_weight, spec.ce_weight
        params.temperature, params.teacher_temperature = spec.temperature, spec.teacher_temperature
        params.label_smoothing, params.z_loss = spec.label_smoothing, spec.z_loss
        params.ignore_index = spec.ignore_index
        if device.type == "cpu":
            _C.cpu_dense_rows(params, cpu_isa(), torch.get_num_threads())
        else:
            _C.cuda_dense_rows(params, *_place(device))

    def scale_rows(self, grad: Tensor, factor: Tensor, out: Tensor) -> None:
        if grad.shape != out.shape or grad.dtype != out.dtype or factor.shape != grad.shape[:1]:
            raise AssertionError("shapes or dtypes differ")
        if grad.device != out.device or factor.device != grad.device:
            raise AssertionError("tensors on different devices")
        params = _C.ScaleParams(
            rows=grad.shape[0],
            columns=grad.shape[1],
            grad=_address(grad),
            out=_address(out),
            dtype=_dtype(grad),
            grad_stride=grad.stride(0),
            out_stride=out.stride(0),
            factor=_address(factor),
            factor_stride=factor.stride(0),
            wide=factor.dtype == torch.float64,
        )
        if grad.device.type == "cpu":
            _C.cpu_scale_rows(params, cpu_isa(), torch.get_num_threads())
        else:
            _C.cuda_scale_rows(params, *_place(grad.device))


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _dtype(x: Tensor) -> _C.Dtype:
    return getattr(_C.Dtype, str(x.dtype).removeprefix("torch."))


def _rows(x: Tensor | None) -> _C.Rows:
    if x is None:
        return _C.Rows(
            data=0, dtype=_C.Dtype.float32, outer_stride=0, inner_stride=0, column_stride=1, columns=0
        )
    outer, inner, column = x.stride()
    return _C.Rows(
        data=_address(x),
        dtype=_dtype(x),
        outer_stride=outer,
        inner_stride=inner,
        column_stride=column,
        columns=x.shape[2],
    )


def _place(device: torch.device) -> tuple[int, int]:
    """The device's index and the address of the stream that is current there."""
    stream = torch.cuda.current_stream(device)
    return stream.device_index, stream.cuda_stream
