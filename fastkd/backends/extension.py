"""Imports the compiled module, and refuses one that was built from other sources than these."""

from __future__ import annotations

from fastkd.backends.record import COLUMNS
from fastkd.divergences import DIVERGENCES
from fastkd.spec import METRICS

# A module that was built before one of these existed has to be built again. They are the names in _C.pyi that
# do not depend on CUDA, which a test compares.
NEEDED = (
    "Dtype",
    "Divergence",
    "Phase",
    "Tail",
    "Rows",
    "DenseParams",
    "ScaleParams",
    "Scalar",
    "Divisor",
    "WeightParams",
    "TotalsParams",
    "divergence_traits",
    "CpuBlock",
    "cpu_kept_bytes",
    "cpu_keep_at_most",
    "cpu_isas",
    "cpu_advise_huge_pages",
    "cpu_first_bad_label",
    "cpu_row_weights",
    "cpu_totals",
    "cpu_dense_rows",
    "cpu_scale_rows",
    "CUDA_MAX_ENTRIES",
    "CLUSTER_NONE",
    "CLUSTER_CHOSEN",
    "CLUSTER_ANY",
    "RECORD_COLUMNS",
    "METRIC_COLUMNS",
    "built_with_cuda",
)


def differences() -> list[str]:
    """How the names in the compiled module differ from those in the Python sources, one sentence each."""
    lacking = [name for name in NEEDED if not hasattr(_C, name)]
    if lacking:
        return [f"it lacks {', '.join(lacking)}"]
    # "none" and "off_support" are for calls that do not read a dense teacher.
    compiled, known = set(_C.Divergence.__members__), {"none", "off_support", *DIVERGENCES}
    here, there = "fastkd.divergences.DIVERGENCES", "csrc/divergences/list.h"
    faults = [f"{here} has {name!r}, but {there} has not" for name in sorted(known - compiled)]
    faults += [f"{there} has {name!r}, but {here} has not" for name in sorted(compiled - known)]
    for names, compiled_names in ((COLUMNS, "RECORD_COLUMNS"), (METRICS, "METRIC_COLUMNS")):
        if getattr(_C, compiled_names, None) != names:
            faults.append(f"csrc/params.h has other {compiled_names}")
    return faults + [fault for name in known & compiled for fault in _other_traits(name)]


def _other_traits(name: str) -> list[str]:
    """How a functor's traits differ from the attributes of its object, at the default parameters."""
    if name not in DIVERGENCES:
        return []
    divergence = DIVERGENCES[name]
    alpha, beta = divergence.default("alpha"), divergence.default("beta")
    stated: dict[str, object] = {"streams": divergence.streams(alpha, beta)}
    stated |= {trait: getattr(divergence, trait) for trait in ("cross", "sums", "distant", "splits_label")}
    compiled = _C.divergence_traits(getattr(_C.Divergence, name), alpha, beta)
    return [
        f"{name} has {trait}={stated[trait]} in fastkd.divergences and {compiled[trait]} in csrc/divergences"
        for trait in stated
        if stated[trait] != compiled[trait]
    ]


try:
    from fastkd import _C as _C
except ImportError as error:
    _C = None  # type: ignore[assignment]
    IMPORT_ERROR = f"the compiled module fastkd._C does not load ({error}): reinstall with 'pip install .'"
else:
    IMPORT_ERROR = ""
    if _faults := differences():
        raise ImportError(
            f"fastkd._C was built from other sources ({', '.join(_faults)}): reinstall with 'pip install .'"
        )
