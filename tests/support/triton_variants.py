"""Variants of the Triton kernels, and the arguments with which Triton compiles them without a GPU.

The targets are a T4 (sm_75), an A100 (sm_80), a Hopper (sm_90) and an AMD MI300 (gfx942).
"""

from __future__ import annotations

from typing import Any

from fastkd.divergences import DIVERGENCES

Variant = dict[str, Any]
PLAIN: Variant = {"student": "bf16", "teacher": "bf16", "power": 1, "vocab": 16, "strides": 1}
# Variants with the fewest and with the most optional terms.
FEW: Variant = PLAIN | {"power": 2}
LOADED: Variant = PLAIN | {
    "labels": True,
    "smoothing": True,
    "z_loss": True,
    "grad_teacher": True,
    "power": 0,
}
FLOAT: Variant = {"student": "fp32", "teacher": "fp32"}
# One divergence of each kind, for targets and options that are not compiled for every divergence.
KINDS = ("jeffreys", "skew_reverse_kl", "tvd", "alpha_beta")


def loaded(*divergences: str) -> dict[str, Variant]:
    return {f"{divergence}-loaded": LOADED | {"divergence": divergence} for divergence in divergences}


def phase(name: str, divergence: str, **extra: Any) -> Variant:
    """A variant of one phase, which reads and writes records."""
    return LOADED | {"divergence": divergence, "phase": name, "sharded": True} | extra


def main(divergence: str, shape: int | None = None, **extra: Any) -> Variant:
    """The most common call: KL at T = 2 plus cross-entropy, the student's gradient, an even vocabulary."""
    return FEW | {"labels": True, "divergence": divergence, "shape": shape} | extra


def sparse(divergence: str, tail: str, entries: int = 64, **extra: Any) -> Variant:
    """A sparse teacher, with every term of the loss, the metrics and both gradients."""
    return LOADED | {"kernel": "sparse", "divergence": divergence, "tail": tail, "entries": entries} | extra


# The divergences that have budgets below, on each shape that tuning may choose.
MAIN = ("forward_kl", "symmetric_jsd", "tvd")
SHAPES = {
    f"{divergence}-{kind}-{index}": main(divergence, index, **extra)
    for divergence in (*MAIN, "hellinger")
    for kind, extra in (("bf16", {}), ("fp32", FLOAT))
    for index in range(4)
}
USUAL: dict[str, Variant] = (
    {f"{divergence}-bf16": main(divergence) for divergence in MAIN}
    | {f"{divergence}-fp32": main(divergence, **FLOAT) for divergence in MAIN}
    | loaded("forward_kl", "jsd", "alpha_beta")
    | {
        "odd vocabulary": main("forward_kl", vocab=None),
        "mixed dtypes": LOADED | {"divergence": "forward_kl", "teacher": "fp32"},
        "metrics": LOADED | {"divergence": "decoupled", "metrics": True},
        "statistics": phase("statistics", "jeffreys", metrics=True),
        "scale": {"kernel": "scale", "student": "bf16", "strides": 1, "vocab": 16},
        "weights": {"kernel": "weights"},
        "totals": {"kernel": "totals"},
        "sparse": sparse("forward_kl", "bucket"),
    }
)
OTHERS = (
    loaded(
        *(divergence for divergence in DIVERGENCES if divergence not in ("forward_kl", "jsd", "alpha_beta"))
    )
    | {
        f"{divergence}-loaded-fp32": LOADED | FLOAT | {"divergence": divergence}
        for divergence in ("forward_kl", "jsd", "alpha_beta")
    }
    | {
        "renyi-plain": FEW | {"divergence": "renyi"},
        "float16": PLAIN | {"divergence": "forward_kl", "student": "fp16", "teacher": "fp16", "labels": True},
        "labels only": PLAIN | {"divergence": None, "labels": True, "z_loss": True},
        "value only": PLAIN | {"divergence": "jsd", "grad_student": False, "labels": True},
        "odd vocabulary-fp32": main("forward_kl", vocab=None, **FLOAT),
        "one column": PLAIN | {"divergence": "forward_kl", "vocab": 1, "labels": True},
        "any strides": LOADED | {"divergence": "jsd", "strides": None, "vocab": None},
        "statistics of powers": phase("statistics", "alpha_beta"),
        "sums": phase("sums", "jsd"),
        "finish": phase("finish", "alpha_beta", metrics=True),
        "off support": phase("finish", "off_support", grad_teacher=False, sharded=False),
        "upstream": PLAIN
        | {"divergence": "forward_kl", "student": "fp16", "teacher": "fp16", "upstream": True},
        "weights of a sum": {"kernel": "weights", "labels": True, "sum": True},
        "sparse of many entries": sparse("jsd", "renormalize", 511, metrics=True),
        "sparse drop": sparse("forward_kl", "drop", metrics=True),
        "sparse powers": sparse("alpha_beta", "bucket", metrics=True),
        "sparse distant": sparse("log_acceptance", "renormalize", metrics=True),
        "sparse odd": sparse("kl_tvd", "bucket", 50, vocab=None, student="fp32"),
        "scale odd": {"kernel": "scale", "student": "fp32", "strides": 1, "vocab": None},
    }
)
SMALL = ("scale", "weights", "totals")
ELSEWHERE = {name: USUAL[name] for name in ("forward_kl-bf16", "jsd-loaded", *SMALL)}
# The native kernels need sm_80, so that on a T4 Triton's run. It has no bfloat16 arithmetic.
HALF: Variant = {"student": "fp16", "teacher": "fp16"}
TURING = {f"{divergence}-fp16": main(divergence, **HALF) for divergence in ("forward_kl", "tvd")}
TURING |= {name: USUAL[name] | HALF for name in (*SMALL, "sparse")}
VARIANTS = {"sm_75": TURING, "sm_80": ELSEWHERE, "sm_90": USUAL, "gfx942": ELSEWHERE}
SLOW = {
    "sm_75": {"jsd-fp16": main("jsd", **HALF), "forward_kl-fp32": main("forward_kl", **FLOAT)},
    "sm_80": SHAPES | loaded(*KINDS) | {"sparse": USUAL["sparse"]},
    "sm_90": SHAPES | OTHERS,
    "gfx942": SHAPES | loaded(*KINDS) | {"sparse": USUAL["sparse"]},
}


def formulas_named(name: str | None) -> Any:
    """The object of a divergence, of ``"symmetric_jsd"`` or ``"off_support"``; None stands for no divergence.

    This and the functions below import the kernels only when they are called: tests that import this module
    also run where Triton cannot be imported.
    """
    from fastkd.backends.triton.divergences import FORMULAS, NOTHING

    if name is None:
        return NOTHING
    special = [formulas for one in FORMULAS.values() for formulas in one.at_beta.values()]
    return {formulas.name: formulas for formulas in (*FORMULAS.values(), *special)}[name]


def shape_of(variant: Variant) -> Any:
    from fastkd.backends.triton import shapes

    kernel, index = variant.get("kernel"), variant.get("shape")
    if kernel in ("scale", "weights", "totals"):
        return {"scale": shapes.SCALE, "weights": shapes.WEIGHTS, "totals": shapes.TOTALS}[kernel]
    if kernel == "sparse" or variant.get("phase") or variant.get("metrics"):
        return shapes.RECORDING
    formulas = formulas_named(variant["divergence"])
    if index is None:
        return shapes.usual(formulas, 128_256)
    return shapes.CANDIDATES[formulas.weight][index]


def itemsize(variant: Variant) -> int:
    return 4 if "fp32" in (variant.get("student"), variant.get("teacher")) else 2


def arguments(variant: Variant) -> tuple[Any, dict[str, str], dict[str, Any], dict[tuple[int], Any]]:
    """The kernel of a variant and its ASTSource arguments: signature, constants, attributes."""
    from fastkd.backends.triton import (
        host,
        kernel as loss,
        launch_small,
        launch_sparse,
        reduction,
        scale,
        sparse_kernel,
    )
    from fastkd.backends.triton.divergences import OFF_SUPPORT
    from fastkd.backends.triton.terms import CLASS_TERMS, Terms

    which = variant.get("kernel", "loss")
    kernel, unspecialised, suffixes = {
        "loss": (loss.dense_rows_kernel, loss.UNSPECIALISED, ("_S", "_T", "_GS", "_GT")),
        "sparse": (sparse_kernel.sparse_rows_kernel, sparse_kernel.UNSPECIALISED, ("_S", "_GS")),
        "scale": (scale.scale_rows_kernel, scale.UNSPECIALISED, ("", "_OUT")),
        "weights": (reduction.row_weights_kernel, reduction.UNSPECIALISED, ()),
        "totals": (reduction.totals_kernel, reduction.UNSPECIALISED, ()),
    }[which]
    student, shape = variant.get("student", "fp32"), shape_of(variant)
    teacher = variant.get("teacher", student)
    formulas = formulas_named(variant.get("divergence"))
    labels, metrics = variant.get("labels", False), which == "totals" or variant.get("metrics", False)
    pointers = {
        "student": student,
        "teacher": teacher if formulas.reads_teacher else None,
        "indices": "i64",
        "logprobs": "fp32",
        "labels": "i64" if labels else None,
        "loss_scale": "fp32",
        "grad_scale": "fp32",
        "upstream": "fp32" if variant.get("upstream") else None,
        "row_loss": "fp32",
        "metrics": "fp32" if metrics else None,
        "record": "fp32" if variant.get("phase") else None,
        "coefficient": "fp32" if formulas.name == "off_support" else None,
        "grad_student": student if variant.get("grad_student", True) else None,
        "grad_teacher": teacher if variant.get("grad_teacher") else None,
        "grad_logprobs": "fp32" if variant.get("grad_teacher") else None,
        "grad": student,
        "out": student,
        "factor": "fp32",
        **{name: "fp32" for name in ("token_weights", "weights", "loss", "means")},
        "items": None if variant.get("sum") else "i64",
    }
    width = 16 // itemsize(variant)
    # As the launcher would find them: 16-byte aligned memory, and contiguous rows or strided columns.
    columns = {16: 128_256, None: 50_257, 1: 1}[variant.get("vocab", 16)]
    strides = (0, columns, 1) if variant.get("strides") == 1 else (0, 7, 3)
    entries = variant.get("entries", 64)
    constants: dict[str, Any] = {
        "DIVERGENCE": formulas,
        "STUDENT": OFF_SUPPORT,
        "TERMS": Terms(
            phase=variant.get("phase", "all"),
            sharded=variant.get("sharded", False),
            labels=labels,
            metrics=metrics,
            cross_entropy=labels,
            smoothing=variant.get("smoothing", False),
            z_loss=variant.get("z_loss", False),
            power=variant.get("power", 0),
            sparse=which == "sparse",
        ),
        "CLASS_TERMS": CLASS_TERMS,
        "TAIL": variant.get("tail"),
        "HAS_REST": variant.get("tail") == "bucket",
        "IN_PLACE": False,
        "SUM": variant.get("sum", False),
        "BLOCK": shape.elements,
        "COLUMNS": launch_small.METRICS_PLACES,
        **launch_sparse.class_tile(entries),
        **host.alignment(width, columns, dict.fromkeys(suffixes or ("",), strides)),
        **shape.tile(itemsize(variant)),
    }
    signature: dict[str, str] = {}
    fixed: dict[str, Any] = {}
    attributes: dict[tuple[int], Any] = {}
    for index, name in enumerate(kernel.arg_names):
        value: Any = constants.get(name, ...)
        kind, multiple = "fp32", False
        if name == "factor" and which == "weights":
            pass
        elif name in pointers:
            kind, multiple = f"*{pointers[name]}", name not in unspecialised and name != "factor"
            value = None if pointers[name] is None else ...
        elif name in ("vocab", "student_columns", "teacher_columns", "columns"):
            kind, multiple = "i32", columns % 16 == 0
            value = 1 if columns == 1 else ...
        elif name in unspecialised:
            kind = "i32"
        elif name.endswith("stride"):
            kind, value = "i32", variant["strides"] or ...
        if value is not ...:
            signature[name], fixed[name] = "constexpr", value
            continue
        signature[name] = kind
        if multiple:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return kernel, signature, fixed, attributes
