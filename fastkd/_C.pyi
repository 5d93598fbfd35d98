"""The compiled module: parameter structs and the kernels that take them. Addresses are plain integers."""

from typing import ClassVar

class Dtype:
    float32: ClassVar[Dtype]
    bfloat16: ClassVar[Dtype]
    float16: ClassVar[Dtype]
    float64: ClassVar[Dtype]

class Divergence:
    """``none``, ``off_support`` and the names in ``fastkd.divergences.DIVERGENCES``."""

    __members__: ClassVar[dict[str, Divergence]]
    none: ClassVar[Divergence]
    off_support: ClassVar[Divergence]

class Phase:
    __members__: ClassVar[dict[str, Phase]]
    all: ClassVar[Phase]
    statistics: ClassVar[Phase]
    sums: ClassVar[Phase]
    distant: ClassVar[Phase]
    finish: ClassVar[Phase]

class Tail:
    renormalize: ClassVar[Tail]
    bucket: ClassVar[Tail]
    drop: ClassVar[Tail]

class Rows:
    def __init__(
        self,
        data: int,
        dtype: Dtype,
        outer_stride: int,
        inner_stride: int,
        column_stride: int,
        columns: int,
    ) -> None: ...

class DenseParams:
    def __init__(
        self,
        *,
        divergence: Divergence,
        alpha: float,
        beta: float,
        temperature: float,
        teacher_temperature: float,
        kd_weight: float,
        kd_metric: float,
        ce_weight: float,
        label_smoothing: float,
        z_loss: float,
        ignore_index: int,
        vocab: int,
    ) -> None: ...
    def of_call(
        self,
        *,
        rows: int,
        inner: int,
        student: Rows,
        teacher: Rows,
        grad_student: Rows,
        grad_teacher: Rows,
        labels: int,
        loss_scale: int,
        grad_scale: int,
        row_loss: int,
        metrics: int,
        coefficient: int,
        record: int,
        wide: bool,
        phase: Phase,
        sharded: bool,
        cluster: int,
        cluster_rows: int,
    ) -> DenseParams: ...
    def set_sparse(
        self,
        *,
        indices: int,
        logprobs: int,
        grad: int,
        entries: int,
        tail: Tail,
        divergence: Divergence,
        has_rest: bool,
        class_temperature: float,
        most_mass: float,
    ) -> None: ...

class ScaleParams:
    def __init__(
        self,
        *,
        rows: int,
        inner: int,
        grad: Rows,
        out: Rows,
        factor: int,
        factor_stride: int,
        wide: bool,
    ) -> None: ...

class Scalar:
    float32: ClassVar[Scalar]
    float64: ClassVar[Scalar]
    bfloat16: ClassVar[Scalar]
    float16: ClassVar[Scalar]
    int64: ClassVar[Scalar]
    int32: ClassVar[Scalar]
    bool: ClassVar[Scalar]

class Divisor:
    factor: ClassVar[Divisor]
    sum: ClassVar[Divisor]
    items: ClassVar[Divisor]

class WeightParams:
    def __init__(
        self,
        rows: int,
        labels: int,
        ignore_index: int,
        token_weights: int,
        token_weights_type: Scalar,
        divisor: Divisor,
        factor: float,
        items: int,
        items_type: Scalar,
        weights: int,
        wide: bool,
        /,
    ) -> None: ...

class TotalsParams:
    def __init__(
        self,
        rows: int,
        row_loss: int,
        metrics: int,
        loss_scale: int,
        loss: int,
        means: int,
        wide: bool,
        /,
    ) -> None: ...

def divergence_traits(divergence: Divergence, alpha: float, beta: float) -> dict[str, object]: ...

class CpuBlock:
    """Memory with the buffer protocol, kept for the next block when it is no longer used."""

    def __init__(self, bytes: int) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

def cpu_kept_bytes() -> int: ...
def cpu_keep_at_most(limit: int) -> int: ...
def cpu_isas() -> list[str]: ...
def cpu_advise_huge_pages(data: int, bytes: int) -> None: ...
def cpu_first_bad_label(labels: int, rows: int, total: int, ignore_index: int) -> int: ...
def cpu_row_weights(params: WeightParams) -> None: ...
def cpu_totals(params: TotalsParams) -> None: ...
def cpu_dense_rows(params: DenseParams, isa: str, threads: int) -> None: ...
def cpu_scale_rows(params: ScaleParams, isa: str, threads: int) -> None: ...

CUDA_MAX_ENTRIES: int
CLUSTER_NONE: int
CLUSTER_CHOSEN: int
CLUSTER_ANY: int
RECORD_COLUMNS: tuple[str, ...]
METRIC_COLUMNS: tuple[str, ...]
built_with_cuda: bool
# The names below exist only where built_with_cuda is true.
cuda_version: str

def cuda_missing(device: int) -> str | None: ...
def cuda_dense_rows(params: DenseParams, device: int, stream: int) -> None: ...
def cuda_scale_rows(params: ScaleParams, device: int, stream: int) -> None: ...
def cuda_row_weights(params: WeightParams, device: int, stream: int) -> None: ...
def cuda_totals(params: TotalsParams, device: int, stream: int) -> None: ...
