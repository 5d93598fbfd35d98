"""Compile the Triton kernels' variants ahead of time, without a GPU, and inspect the machine code.

Registers, spills and access widths determine the speed of these kernels, and all three are fixed at compile
time. The targets are an A100 (sm_80), a Hopper (sm_90) and an AMD MI300 (gfx942).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import pytest
from support.sass import cuobjdump, instructions, loops, summary

pytest.importorskip("fastkd.backends.triton.launch", exc_type=ImportError)

import triton

from fastkd.divergences import DIVERGENCES

# Triton's compiler before 3.8 spills up to this many bytes, but only in calls with metrics or records.
OLD = tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 8)
SPILLED = {"metrics": 72, "statistics": 8}
# An MI300 has 512 vector registers per lane, so 168 leave room for three waves per SIMD.
MAX_REGISTERS_AMD = 168

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
        "scale odd": {"kernel": "scale", "student": "fp32", "strides": None, "vocab": None},
    }
)
ELSEWHERE = {"forward_kl-bf16": USUAL["forward_kl-bf16"], "jsd-loaded": USUAL["jsd-loaded"]}
VARIANTS = {"sm_80": ELSEWHERE, "sm_90": USUAL, "gfx942": ELSEWHERE}
SLOW = {"sm_80": SHAPES | loaded(*KINDS), "sm_90": SHAPES | OTHERS, "gfx942": SHAPES | loaded(*KINDS)}


def shape_of(variant: Variant) -> Any:
    from fastkd.backends.triton import shapes

    if variant.get("kernel") == "scale":
        return shapes.SCALE
    divergence, index = variant["divergence"], variant.get("shape")
    if variant.get("phase") or variant.get("metrics"):
        return shapes.RECORDING
    if index is None:
        return shapes.usual(divergence, 128_256)
    return shapes.CANDIDATES[shapes.weight(divergence)][index]


def itemsize(variant: Variant) -> int:
    return 4 if "fp32" in (variant["student"], variant.get("teacher")) else 2


def arguments(variant: Variant) -> tuple[Any, dict[str, str], dict[str, Any], dict[tuple[int], Any]]:
    """The kernel of a variant and its ASTSource arguments: signature, constants, attributes."""
    from fastkd.backends.triton import dense, launch, scale

    scaling = variant.get("kernel") == "scale"
    kernel = scale.scale_rows_kernel if scaling else dense.dense_rows_kernel
    student, teacher = variant["student"], variant.get("teacher", variant["student"])
    divergence = variant.get("divergence")
    labels = variant.get("labels", False)
    pointers = {
        "student": student,
        "teacher": teacher if divergence not in (None, "off_support") else None,
        "labels": "i64" if labels else None,
        "loss_scale": "fp32",
        "grad_scale": "fp32",
        "row_loss": "fp32",
        "metrics": "fp32" if variant.get("metrics") else None,
        "record": "fp32" if variant.get("phase") else None,
        "coefficient": "fp32" if divergence == "off_support" else None,
        "grad_student": student if variant.get("grad_student", True) else None,
        "grad_teacher": teacher if variant.get("grad_teacher") else None,
        "grad": student,
        "out": student,
        "factor": "fp32",
    }
    width = 16 // itemsize(variant)
    # As the launcher would find them: 16-byte aligned memory, and contiguous rows or strided columns.
    columns = {16: 128_256, None: 50_257, 1: 1}[variant["vocab"]]
    strides = (0, columns, 1) if variant["strides"] == 1 else (0, 7, 3)
    suffixes = ("", "_OUT") if scaling else ("_S", "_T", "_GS", "_GT")
    constants: dict[str, Any] = {
        "DIVERGENCE": divergence,
        "PHASE": variant.get("phase", "all"),
        "SHARDED": variant.get("sharded", False),
        "METRICS": variant.get("metrics", False),
        "CE": labels,
        "SMOOTHING": variant.get("smoothing", False),
        "Z_LOSS": variant.get("z_loss", False),
        "POWER": variant.get("power"),
        "IN_PLACE": False,
        **launch.alignment(width, columns, dict.fromkeys(suffixes, strides)),
        **shape_of(variant).tile(itemsize(variant)),
    }
    signature: dict[str, str] = {}
    fixed: dict[str, Any] = {}
    attributes: dict[tuple[int], Any] = {}
    for index, name in enumerate(kernel.arg_names):
        value: Any = constants.get(name, ...)
        kind, multiple = "fp32", False
        if name in pointers:
            kind, multiple = f"*{pointers[name]}", name not in dense.UNSPECIALISED and name != "factor"
            value = None if pointers[name] is None else ...
        elif name in ("vocab", "student_columns", "teacher_columns", "columns"):
            kind, multiple = "i32", columns % 16 == 0
            value = 1 if columns == 1 else ...
        elif name == "factor_stride" or name in dense.UNSPECIALISED or name.endswith("_row"):
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


def cuda_usage(cubin: bytes) -> dict[str, Any]:
    """Registers, and bytes of stack and local memory (spills), of a compiled CUDA kernel."""
    found = {k: int(n) for k, n in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", cuobjdump(cubin, "-res-usage"))}
    return {"registers": found["REG"], "spills": found["STACK"] + found["LOCAL"]}


def amd_usage(assembly: str) -> dict[str, Any]:
    """Vector registers and spilled registers of a compiled AMD kernel."""
    found = {
        key: int(n)
        for key, n in re.findall(r"\.(vgpr_count|vgpr_spill_count|sgpr_spill_count):\s+(\d+)", assembly)
    }
    # The 106 scalar registers spill into lanes of a vector register, not into memory.
    assert found["sgpr_spill_count"] <= 64
    return {"registers": found["vgpr_count"], "spills": found["vgpr_spill_count"]}


def compile_variant(target: str, variant: Variant) -> dict[str, Any]:
    """Compile for ``target``; return registers, spills, shared memory, and the loops' instruction counts."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fastkd.backends.triton import divergences, launch

    gpu = GPUTarget("hip", target, 64) if target.startswith("gfx") else GPUTarget("cuda", int(target[3:]), 32)
    shape = shape_of(variant)
    options = launch.options(shape, gpu.backend, gpu.warp_size)
    compiled = triton.compile(ASTSource(*arguments(variant)), target=gpu, options=options)
    shared = compiled.metadata.shared
    if gpu.backend == "hip":
        assembly = compiled.asm["amdgcn"]
        wide = len(re.findall(r"\b(?:global|buffer)_load_dwordx4\b", assembly))
        return amd_usage(assembly) | {"shared": shared, "wide loads": wide, "allowed": MAX_REGISTERS_AMD}
    code = instructions(cuobjdump(compiled.asm["cubin"], "-sass"))
    sides = 2 if divergences.reads_teacher(variant.get("divergence")) and "kernel" not in variant else 1
    found = [summary(loop, sides * itemsize(variant)) for loop in loops(code)]
    tiles = [loop for loop in found if loop["columns"] == shape.elements]
    return cuda_usage(compiled.asm["cubin"]) | {
        "shared": shared,
        "allowed": shape.registers,
        "tiles": tiles,
        "loops": found,
    }


Report = dict[str, dict[str, dict[str, Any]]]


def compile_all(which: str) -> Report:
    """Usage by target and variant, compiled in a child process so that Triton's interpreter is off."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    root = str(pathlib.Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [environment.get("PYTHONPATH")])])
    command = [sys.executable, __file__, which]
    child = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    result: Report = json.loads(child.stdout)
    return result


@pytest.fixture(scope="module")
def compiled() -> Report:
    return compile_all("usual")


@pytest.fixture(scope="module")
def shapes() -> Report:
    return compile_all("shapes")


def fits(usage: dict[str, Any], spills: int = 0) -> None:
    assert usage["spills"] <= spills
    assert usage["registers"] <= usage["allowed"]
    assert usage["shared"] <= 2048  # used only for reductions across threads


@pytest.mark.parametrize(
    ("target", "name"), [(target, name) for target in VARIANTS for name in VARIANTS[target]]
)
def test_fits_registers(compiled: Report, target: str, name: str) -> None:
    if target not in compiled:
        pytest.skip(f"this Triton cannot link for {target}")
    fits(compiled[target][name], SPILLED.get(name, 0) if OLD else 0)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "name"), [(target, name) for target in SLOW for name in SLOW[target]])
def test_every_shape_fits(shapes: Report, target: str, name: str) -> None:
    if target not in shapes:
        pytest.skip(f"this Triton cannot link for {target}")
    fits(shapes[target][name])


def sweeps(usage: dict[str, Any], divergence: str) -> list[dict[str, float]]:
    """The loops over whole tiles, one for each sweep, in order."""
    from fastkd.backends.triton import divergences

    found: list[dict[str, float]] = usage["tiles"]
    assert len(found) == (3 if divergences.has_sums(divergence) else 2), usage["loops"]
    return found


# Upper bounds for the instructions per column in each sweep, a little above the present counts. With its four
# schedulers a multiprocessor issues 128 a clock.
BUDGETS = {
    "forward_kl-bf16": (16.5, 16.5),
    "forward_kl-fp32": (15.5, 15.0),
    "tvd-bf16": (12.5, 16.5, 21.5),
    "tvd-fp32": (11.5, 15.0, 19.5),
    "symmetric_jsd-bf16": (12.5, 34.0, 37.5),
    "symmetric_jsd-fp32": (11.5, 32.0, 34.5),
}


@pytest.mark.parametrize("name", BUDGETS)
def test_instructions_per_column(compiled: Report, name: str) -> None:
    divergence, _, kind = name.partition("-")
    size = 4 if kind == "fp32" else 2
    for index, (sweep, most) in enumerate(
        zip(sweeps(compiled["sm_90"][name], divergence), BUDGETS[name], strict=True)
    ):
        assert sweep["all"] <= most
        # One exponential for each side; JSD's reciprocal is a third special function.
        assert sweep["special"] == (3 if divergence == "symmetric_jsd" and index > 0 else 2)
        assert sweep["loads"] == 2 * sweep["columns"] * size / 16
        assert sweep["narrow loads"] == sweep["narrow stores"] == 0
        last = index == len(BUDGETS[name]) - 1
        assert sweep["stores"] == (sweep["columns"] * size / 16 if last else 0)
        assert sweep["loads before use"] >= 2  # both sides' loads are issued before either is used


def moves_16_bytes(usage: dict[str, Any]) -> None:
    """Assert that the first sweep and the last, which alone stores, access whole tiles 16 bytes at a time."""
    tiles = usage["tiles"]
    assert len(tiles) >= 2 and tiles[-1]["stores"] > 0
    assert all(tile["narrow loads"] == tile["narrow stores"] == 0 for tile in (tiles[0], tiles[-1]))


def test_16_byte_accesses(compiled: Report) -> None:
    for target, name in (
        ("sm_90", "forward_kl-loaded"),
        ("sm_90", "jsd-loaded"),
        ("sm_80", "forward_kl-bf16"),
    ):
        moves_16_bytes(compiled[target][name])
    if "gfx942" in compiled:
        assert compiled["gfx942"]["forward_kl-bf16"]["wide loads"] > 0


def test_16_byte_accesses_in_rows_of_an_odd_vocabulary(compiled: Report) -> None:
    """Rows of an odd vocabulary begin between 16-byte boundaries, but 16 bytes are accessed at a time."""
    moves_16_bytes(compiled["sm_90"]["odd vocabulary"])


@pytest.mark.slow
@pytest.mark.parametrize(("target", "name"), [(t, n) for t in ("sm_80", "sm_90") for n in SHAPES])
def test_16_byte_accesses_of_every_shape(shapes: Report, target: str, name: str) -> None:
    moves_16_bytes(shapes[target][name])


def test_batch_sizes_select_no_variant() -> None:
    """No argument that depends on the batch is a compile-time constant or specialised."""
    from fastkd.backends.triton.dense import UNSPECIALISED, dense_rows_kernel
    from fastkd.backends.triton.launch import alignment

    names = dense_rows_kernel.arg_names
    assert "rows" not in names and set(UNSPECIALISED) <= set(names)
    if hasattr(dense_rows_kernel, "params"):  # an interpreted kernel has none
        assert {p.name for p in dense_rows_kernel.params if p.do_not_specialize} == set(UNSPECIALISED)
    for columns in (50_257, 128_256):
        for width in (4, 8):
            # One row (stride 0), many rows, and the rows of a (batch, length, columns) tensor.
            found = [
                alignment(width, columns, dict.fromkeys(("_S", "_T"), strides))
                for strides in ((0, 0, 1), (0, columns, 1), (7 * columns, columns, 1))
            ]
            assert found == [{"PHASED": columns == 50_257, "WIDE_S": True, "WIDE_T": True}] * 3


def test_a_teacher_that_begins_elsewhere_is_not_wide() -> None:
    """Rows at other distances from a 16-byte boundary than the student's get no wide accesses."""
    from fastkd.backends.triton.launch import alignment

    found = alignment(8, 50_257, {"_S": (0, 50_257, 1), "_T": (0, 50_304, 1), "_GS": (0, 50_257, 2)})
    assert found == {"PHASED": True, "WIDE_S": True, "WIDE_T": False, "WIDE_GS": False}
    found = alignment(8, 151_936, {"_S": (0, 151_936, 1), "_T": (0, 152_064, 1)})
    assert found == {"PHASED": False, "WIDE_S": True, "WIDE_T": True}


def links(target: str) -> bool:
    """Whether Triton can link for the target. Triton 3.4 needs AMD's linker; later versions bundle one."""
    from triton.backends.amd.compiler import HIPBackend

    if not target.startswith("gfx") or not hasattr(HIPBackend, "path_to_rocm_lld"):
        return True
    try:
        HIPBackend.path_to_rocm_lld()
    except Exception:  # Triton raises a plain Exception here
        return False
    return True


if __name__ == "__main__":
    chosen = {"usual": VARIANTS, "shapes": SLOW}[sys.argv[1]]
    chosen = {target: variants for target, variants in chosen.items() if links(target)}
    jobs = [
        (target, name, variant) for target, variants in chosen.items() for name, variant in variants.items()
    ]
    with multiprocessing.Pool() as pool:
        usages = pool.starmap(
            compile_variant, [(target, variant) for target, _, variant in jobs], chunksize=1
        )
    report: Report = {target: {} for target in chosen}
    for (target, name, _), usage in zip(jobs, usages, strict=True):
        report[target][name] = usage
    print(json.dumps(report))
