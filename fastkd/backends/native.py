"""The compiled kernels. The only module that turns tensors into addresses and streams.

Tensors are checked here once more, since a wrong address does not raise: it corrupts memory.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fastkd import _settings
from fastkd.backends.base import Call, SparseRows, Weighing
from fastkd.backends.extension import _C, IMPORT_ERROR
from fastkd.backends.kernels import KernelBackend, Phase
from fastkd.backends.record import COLUMNS, reads_teacher
from fastkd.backends.sparse import has_rest
from fastkd.divergences import DIVERGENCES
from fastkd.spec import METRICS, LossSpec

# Huge pages, of 2 MiB each, may help tensors of at least this many elements.
HUGE_PAGES_FROM = 2**20

_forced_isa: list[str] = []
_forced_cluster: list[tuple[int, int]] = []  # blocks, and rows that a cluster takes


def cpu_isas() -> list[str]:
    """The instruction sets that this CPU can run, best first."""
    return [] if _C is None else _C.cpu_isas()


def cpu_isa() -> str:
    """The instruction set in use: that of :func:`forced_isa`, that of ``FASTKD_CPU_ISA``, or the best."""
    return _runnable(_forced_isa[-1] if _forced_isa else _settings.cpu_isa())


@functools.cache
def _runnable(wanted: str | None) -> str:
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


@contextmanager
def forced_cuda_kernel(name: str, blocks: int | None = None, rows: int | None = None) -> Iterator[None]:
    """Run CUDA calls inside the block with the ``"stream"`` kernel, the ``"cluster"`` one (Hopper), or the
    ``"chosen"`` one.

    The cluster has ``blocks`` blocks and takes ``rows`` rows one after the other (at most 16), or as many as
    fastkd would choose. Calls for which only one kernel exists (those with phases or a sparse teacher) keep
    it; other calls raise if the kernel cannot run.
    """
    clusters = {
        "stream": _C.CLUSTER_NONE,
        "cluster": blocks or _C.CLUSTER_ANY,
        "chosen": _C.CLUSTER_CHOSEN,
    }
    _forced_cluster.append((clusters[name], rows or 0))
    try:
        yield
    finally:
        _forced_cluster.pop()


def built_with_cuda() -> str | None:
    """The CUDA version the module was built with, or None."""
    return _C.cuda_version if _C is not None and _C.built_with_cuda else None


def block(size: int) -> _C.CpuBlock | None:
    """Memory of this many bytes with the buffer protocol; None without the compiled module.

    Raises:
        MemoryError: the system has no such memory.
    """
    return None if _C is None else _C.CpuBlock(size)


def keep_at_most(limit: int) -> int:
    """Set how many bytes of unused blocks are kept, and return the limit before."""
    return 0 if _C is None else _C.cpu_keep_at_most(limit)


def kept_bytes() -> int:
    """The bytes of unused blocks that are kept."""
    return 0 if _C is None else _C.cpu_kept_bytes()


def nothing_traces(*tensors: Tensor | None) -> bool:
    """Whether a tensor is its memory and no more: no mode (fake tensors, tracing) sees the operators, no
    transform of torch.func or torch.compile does, and none of ``tensors`` is of a class of its own.
    """
    if any([x is not None and type(x) is not Tensor for x in tensors]):
        return False
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
    )


class NativeBackend(KernelBackend):
    """C++ on a CPU, CUDA C++ on an NVIDIA GPU."""

    name = "native"
    float64_records = True

    def missing(self, device: torch.device, dtype: torch.dtype | None = None) -> str | None:
        if _C is None:
            return IMPORT_ERROR
        if device.type == "cpu":
            return None
        if device.type != "cuda" or torch.version.hip is not None:
            return "the native kernels run on CPUs and NVIDIA GPUs: use backend='triton' or 'reference'"
        if not _C.built_with_cuda:
            return "fastkd was built without CUDA: put nvcc on PATH and reinstall with FASTKD_CUDA=ON"
        if dtype == torch.float64:
            return "the CUDA kernels have no float64: use backend='reference'"
        return _C.cuda_missing(device.index if device.index is not None else 0)

    def about_to_write(self, x: Tensor | None) -> None:
        if x is not None and x.device.type == "cpu" and x.numel() >= HUGE_PAGES_FROM:
            _C.cpu_advise_huge_pages(_address(x), x.numel() * x.element_size())

    def first_bad_label(self, labels: Tensor, total: int, ignore_index: int) -> int:
        if labels.dtype != torch.int64 or not labels.is_contiguous():
            raise AssertionError("labels are not contiguous int64")
        return _C.cpu_first_bad_label(_address(labels), labels.numel(), total, ignore_index)

    def takes_sparse(self, device: torch.device, entries: int, sharded: bool) -> bool:
        # A shard's entries need the statistics of the other shards. On a GPU, a block's shared memory has
        # to hold the entries.
        return not sharded and (device.type == "cpu" or 1 <= entries <= _C.CUDA_MAX_ENTRIES)

    def row_weights(self, given: Weighing) -> Tensor | None:
        weights = torch.empty(given.tokens, dtype=given.dtype, device=given.device)
        kind, factor, divisor, types = _C.Divisor.factor, 0.0, given.divisor, _SCALARS
        token_weights, items = given.token_weights, None
        if token_weights is not None and token_weights.dtype not in types:
            token_weights = token_weights.to(given.dtype)
        if divisor is None:
            kind = _C.Divisor.sum
        elif isinstance(divisor, Tensor):
            kind, items = _C.Divisor.items, divisor if divisor.dtype in types else divisor.to(given.dtype)
        else:
            factor = 1.0 / divisor if divisor != 0 else 0.0
        params = _C.WeightParams(
            given.tokens,
            _address(given.labels),
            given.ignore_index,
            _address(token_weights),
            types[torch.float32 if token_weights is None else token_weights.dtype],
            kind,
            factor,
            _address(items),
            types[torch.float32 if items is None else items.dtype],
            _address(weights),
            given.dtype == torch.float64,
        )
        if given.device.type == "cpu":
            _C.cpu_row_weights(params)
        else:
            _C.cuda_row_weights(params, *_place(given.device))
        return weights

    def totals(
        self, row_loss: Tensor | None, metrics: Tensor | None, loss_scale: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        loss = None if row_loss is None else loss_scale.new_empty(())
        means = None if metrics is None else metrics.new_empty(len(METRICS) + 1)
        params = _C.TotalsParams(
            loss_scale.numel(),
            _address(row_loss),
            _address(metrics),
            _address(loss_scale),
            _address(loss),
            _address(means),
            loss_scale.dtype == torch.float64,
        )
        if loss_scale.device.type == "cpu":
            _C.cpu_totals(params)
        else:
            _C.cuda_totals(params, *_place(loss_scale.device))
        return loss, means

    def launch(
        self,
        call: Call,
        phase: Phase = "all",
        record: Tensor | None = None,
        coefficient: Tensor | None = None,
    ) -> None:
        spec, student = call.spec, call.student
        teacher = call.teacher if isinstance(call.teacher, Tensor) and spec.kd_weight != 0 else None
        _check(call, teacher, record, coefficient)
        sparse = call.teacher if isinstance(call.teacher, SparseRows) and phase == "all" else None
        if spec.kd_weight == 0:
            sparse = None
        cluster, cluster_rows = _forced_cluster[-1] if _forced_cluster else (_C.CLUSTER_CHOSEN, 0)
        # Without a divergence only a metric, the entropy, needs the student's temperature.
        cooled = spec.kd_weight != 0 or call.metrics is not None
        params = _arithmetic(spec, sparse is not None, cooled).of_call(
            rows=call.row_loss.numel(),
            inner=student.shape[1],
            student=_rows(student),
            teacher=_rows(teacher),
            grad_student=_rows(call.grad_student),
            grad_teacher=_rows(call.grad_teacher),
            labels=_address(call.labels),
            loss_scale=_address(call.loss_scale),
            grad_scale=_address(call.grad_scale),
            row_loss=_address(call.row_loss),
            metrics=_address(call.metrics),
            coefficient=_address(coefficient),
            record=_address(record),
            wide=call.row_loss.dtype == torch.float64,
            phase=_PHASES[phase],
            sharded=call.shards is not None,
            cluster=cluster,
            cluster_rows=cluster_rows,
        )
        if sparse is not None:
            params.set_sparse(
                indices=_address(sparse.indices),
                logprobs=_address(sparse.logprobs),
                grad=_address(sparse.grad),
                entries=sparse.indices.shape[1],
                tail=getattr(_C.Tail, sparse.tail),
                divergence=_divergence(spec),
                has_rest=has_rest(sparse.tail, spec),
                class_temperature=sparse.class_temperature,
                most_mass=sparse.most_mass,
            )
        if student.device.type == "cpu":
            _C.cpu_dense_rows(params, cpu_isa(), torch.get_num_threads())
        else:
            _C.cuda_dense_rows(params, *_place(student.device))

    def scale_rows(self, grad: Tensor, factor: Tensor, out: Tensor) -> None:
        if grad.shape != out.shape or grad.dtype != out.dtype or factor.shape != (grad.shape[:2].numel(),):
            raise AssertionError("shapes or dtypes differ")
        if grad.device != out.device or factor.device != grad.device:
            raise AssertionError("tensors on different devices")
        if grad.shape[2] > 1 and not grad.stride(2) == out.stride(2) == 1:
            raise AssertionError("a row is not contiguous")
        params = _C.ScaleParams(
            rows=factor.numel(),
            inner=grad.shape[1],
            grad=_rows(grad),
            out=_rows(out),
            factor=_address(factor),
            factor_stride=factor.stride(0),
            wide=factor.dtype == torch.float64,
        )
        if grad.device.type == "cpu":
            _C.cpu_scale_rows(params, cpu_isa(), torch.get_num_threads())
        else:
            _C.cuda_scale_rows(params, *_place(grad.device))


def _divergence(spec: LossSpec) -> _C.Divergence:
    found: _C.Divergence = getattr(_C.Divergence, spec.divergence if spec.kd_weight != 0 else "none")
    return found


# A training run has the same few settings in every step.
@functools.lru_cache(maxsize=64)
def _arithmetic(spec: LossSpec, sparse: bool, cooled: bool) -> _C.DenseParams:
    """The settings of a launch without its tensors.

    Args:
        sparse: whether a sparse teacher is part of it.
        cooled: whether the student's temperature is read.
    """
    return _C.DenseParams(
        divergence=_C.Divergence.off_support if sparse else _divergence(spec),
        alpha=spec.alpha,
        beta=spec.beta,
        temperature=spec.temperature if cooled else 1.0,
        teacher_temperature=spec.teacher_temperature,
        kd_weight=spec.kd_weight,
        kd_metric=spec.kd_metric,
        ce_weight=spec.ce_weight,
        label_smoothing=spec.label_smoothing,
        z_loss=spec.z_loss,
        ignore_index=spec.ignore_index,
        vocab=spec.vocab_size,
    )


def _check(call: Call, teacher: Tensor | None, record: Tensor | None, coefficient: Tensor | None) -> None:
    """Raise ``AssertionError`` unless the tensors are what the kernels assume to be at their addresses."""
    student, rows, wide = call.student, call.row_loss.numel(), call.row_loss.dtype
    if student.shape[0] * student.shape[1] != rows:
        raise AssertionError("rows of student and row_loss differ")
    if teacher is not None and student.shape[:2] != teacher.shape[:2]:
        raise AssertionError("rows of student and teacher differ")
    widths = [x.shape[2] for x in (student, teacher) if x is not None]
    if not 0 <= call.spec.vocab_size <= min(widths):
        raise AssertionError("vocab_size outside the rows")
    sparse = call.teacher if isinstance(call.teacher, SparseRows) else None
    if teacher is None and sparse is None and coefficient is None and reads_teacher(call.spec):
        raise AssertionError("a divergence without a teacher")
    entries = 0 if sparse is None else sparse.indices.shape[1]
    per_row = (
        *(((sparse.indices, torch.int64, entries),) if sparse else ()),
        *(((x, wide, entries) for x in (sparse.logprobs, sparse.grad)) if sparse else ()),
        (call.labels, torch.int64, 1),
        (call.loss_scale, wide, 1),
        (call.grad_scale, wide, 1),
        (call.row_loss, wide, 1),
        (coefficient, wide, 1),
        (call.metrics, wide, len(METRICS)),
        (record, torch.float64, len(COLUMNS)),
    )
    for x, dtype, width in per_row:
        if x is not None and (x.dtype != dtype or x.numel() != rows * width or not x.is_contiguous()):
            raise AssertionError("a per-row tensor is not contiguous or has the wrong dtype or length")
        if x is not None and x.device != student.device:
            raise AssertionError("tensors on different devices")
    if call.labels is None and reads_teacher(call.spec) and DIVERGENCES[call.spec.divergence].splits_label:
        raise AssertionError("a divergence that treats the label apart, without labels")
    logits = call.teacher if isinstance(call.teacher, Tensor) else None
    for grad, of in ((call.grad_student, student), (call.grad_teacher, logits)):
        if grad is None:
            continue
        if of is None or grad.shape != of.shape or grad.dtype != of.dtype or grad.device != student.device:
            raise AssertionError("a gradient does not match its logits")
    if teacher is not None and teacher.device != student.device:
        raise AssertionError("tensors on different devices")


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


_DTYPES = (
    {}
    if _C is None
    else {
        torch.float32: _C.Dtype.float32,
        torch.bfloat16: _C.Dtype.bfloat16,
        torch.float16: _C.Dtype.float16,
        torch.float64: _C.Dtype.float64,
    }
)
# The types of weights and counts that a kernel reads; others are converted first.
_SCALARS = (
    {}
    if _C is None
    else {
        getattr(torch, name): getattr(_C.Scalar, name)
        for name in ("float32", "float64", "bfloat16", "float16", "int64", "int32", "bool")
    }
)
_PHASES = {} if _C is None else dict(_C.Phase.__members__)
_NO_ROWS = None if _C is None else _C.Rows(0, _C.Dtype.float32, 0, 0, 1, 0)


def _rows(x: Tensor | None) -> _C.Rows:
    if x is None:
        return _NO_ROWS
    outer, inner, column = x.stride()
    return _C.Rows(_address(x), _DTYPES[x.dtype], outer, inner, column, x.shape[2])


def _place(device: torch.device) -> tuple[int, int]:
    """The device's index and the address of its current stream."""
    stream = torch.cuda.current_stream(device)
    return stream.device_index, stream.cuda_stream
