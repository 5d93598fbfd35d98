"""Compile the Triton kernels' variants ahead of time, without a GPU, and read the machine code.

Registers, spills and access widths decide the speed of these kernels, and all three are settled at
compile time. The targets are an A100 (sm_80), a Hopper (sm_90) and an AMD MI300 (gfx942).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any

import pytest

pytest.importorskip("triton")

from fastkd.spec import DIVERGENCES

# 128 threads of 128 registers: four programs, half of the threads an NVIDIA multiprocessor holds.
# An MI300 has 512 vector registers per lane, so 168 leave room for three waves per SIMD.
MAX_REGISTERS = {"sm_80": 128, "sm_90": 128, "gfx942": 168}

Variant = dict[str, Any]
PLAIN: Variant = {"student": "bf16", "teacher": "bf16", "power": 1, "vocab": 16, "strides": 1}
# With the fewest and the most optional terms.
FEW: Variant = PLAIN | {"power": 2}
LOADED: Variant = PLAIN | {
    "labels": True,
    "smoothing": True,
    "z_loss": True,
    "grad_teacher": True,
    "power": 0,
}
FLOAT: Variant = {"student": "fp32", "teacher": "fp32"}
# One of each kind, for the targets and options that not every divergence is compiled for.
KINDS = ("forward_kl", "jeffreys", "jsd", "skew_reverse_kl", "tvd", "alpha_beta")


def loaded(*divergences: str) -> dict[str, Variant]:
    return {f"{divergence}-loaded": LOADED | {"divergence": divergence} for divergence in divergences}


def phase(name: str, divergence: str, **extra: Any) -> Variant:
    """A variant of one phase, which takes and gives records."""
    return LOADED | {"divergence": divergence, "phase": name, "sharded": True} | extra


SOME = loaded(*KINDS)
EVERY = (
    loaded(*DIVERGENCES)
    | {
        f"{divergence}-plain": FEW | {"divergence": divergence}
        for divergence in ("forward_kl", "jsd", "renyi")
    }
    | {
        f"{divergence}-fp32": LOADED | FLOAT | {"divergence": divergence}
        for divergence in ("forward_kl", "jsd")
    }
    | {
        "alpha_beta-fp32": LOADED | FLOAT | {"divergence": "alpha_beta"},
        "mixed dtypes": LOADED | {"divergence": "jsd", "teacher": "fp32"},
        "float16": PLAIN | {"divergence": "forward_kl", "student": "fp16", "teacher": "fp16", "labels": True},
        "labels only": PLAIN | {"divergence": None, "labels": True, "z_loss": True},
        "value only": PLAIN | {"divergence": "jsd", "grad_student": False, "labels": True},
        "odd vocabulary": PLAIN | {"divergence": "forward_kl", "vocab": None, "labels": True},
        "one column": PLAIN | {"divergence": "forward_kl", "vocab": 1, "labels": True},
        "any strides": LOADED | {"divergence": "jsd", "strides": None, "vocab": None},
        "metrics": LOADED | {"divergence": "decoupled", "metrics": True},
        "statistics": phase("statistics", "jeffreys", metrics=True),
        "statistics of powers": phase("statistics", "alpha_beta"),
        "sums": phase("sums", "jsd"),
        "finish": phase("finish", "alpha_beta", metrics=True),
        "off support": phase("finish", "off_support", grad_teacher=False, sharded=False),
        "scale": {"kernel": "scale", "student": "bf16", "strides": 1, "vocab": 16},
        "scale odd": {"kernel": "scale", "student": "fp32", "strides": None, "vocab": None},
    }
)
VARIANTS = {"sm_80": SOME, "sm_90": EVERY, "gfx942": SOME}


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
        "record": "fp64" if variant.get("phase") else None,
        "coefficient": "fp32" if divergence == "off_support" else None,
        "grad_student": student if variant.get("grad_student", True) else None,
        "grad_teacher": teacher if variant.get("grad_teacher") else None,
        "grad": student,
        "out": student,
        "factor": "fp32",
    }
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
        **launch.tile_shape(4 if student == teacher == "fp32" else 2, divergence),
    }
    # What the launcher would find: 16-byte aligned memory and rows, unit column strides, an even vocabulary.
    signature: dict[str, str] = {}
    fixed: dict[str, Any] = {}
    attributes: dict[tuple[int], Any] = {}
    for index, name in enumerate(kernel.arg_names):
        value: Any = constants.get(name, ...)
        multiple = False
        kind = "fp32"
        if name in pointers:
            kind, multiple = f"*{pointers[name]}", True
            value = None if pointers[name] is None else ...
        elif name in ("vocab", "student_columns", "teacher_columns", "columns"):
            kind, multiple = "i32", variant["vocab"] == 16
            value = 1 if variant["vocab"] == 1 else ...
        elif name.endswith("stride"):
            kind, value = "i32", variant["strides"] or ...
        elif name.endswith(("_outer", "_inner", "_row")):
            kind, multiple = "i32", variant["strides"] is not None
        elif name in ("inner", "ignore_index"):
            kind = "i32"
        if value is not ...:
            signature[name], fixed[name] = "constexpr", value
            continue
        signature[name] = kind
        if multiple:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return kernel, signature, fixed, attributes


def cuda_usage(cubin: bytes) -> dict[str, int]:
    """Registers, and bytes of stack and local memory (spills), of a compiled CUDA kernel."""
    import triton

    tool = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "-res-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    found = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    return {"registers": found["REG"], "spills": found["STACK"] + found["LOCAL"]}


def amd_usage(assembly: str) -> dict[str, int]:
    """Vector registers and spilled registers of a compiled AMD kernel."""
    found = {
        key: int(n)
        for key, n in re.findall(r"\.(vgpr_count|vgpr_spill_count|sgpr_spill_count):\s+(\d+)", assembly)
    }
    return {
        "registers": found["vgpr_count"],
        "spills": found["vgpr_spill_count"] + found["sgpr_spill_count"],
    }


def compile_variant(target: str, variant: Variant) -> dict[str, int]:
    """Compile for ``target``; registers, spills, and how many global accesses are wide and how many not."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fastkd.backends.triton import launch

    gpu = GPUTarget("hip", target, 64) if target.startswith("gfx") else GPUTarget("cuda", int(target[3:]), 32)
    options = {"num_warps": launch.LANES // gpu.warp_size, "enable_fp_fusion": False}
    code = triton.compile(ASTSource(*arguments(variant)), target=gpu, options=options).asm
    if gpu.backend == "hip":
        assembly = code["amdgcn"]
        usage = amd_usage(assembly)
        usage["wide loads"] = len(re.findall(r"\b(?:global|buffer)_load_dwordx4\b", assembly))
        usage["16-bit"] = len(re.findall(r"\b(?:global|buffer)_(?:load_ushort|store_short)\b", assembly))
        return usage
    usage = cuda_usage(code["cubin"])
    usage["wide loads"] = len(re.findall(r"\bld\.global(?:\.\w+)*\.v4\.b32\b", code["ptx"]))
    usage["wide stores"] = len(re.findall(r"\bst\.global(?:\.\w+)*\.v4\.b32\b", code["ptx"]))
    usage["all loads"] = len(re.findall(r"\bld\.global\b", code["ptx"]))
    usage["all stores"] = len(re.findall(r"\bst\.global\b", code["ptx"]))
    return usage


@pytest.fixture(scope="module")
def compiled() -> dict[str, dict[str, dict[str, int]]]:
    """Usage by target and variant, from one child process in which the interpreter is certainly off."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    root = str(pathlib.Path(__file__).resolve().parents[1])
    environment["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [environment.get("PYTHONPATH")])])
    child = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    result: dict[str, dict[str, dict[str, int]]] = json.loads(child.stdout)
    return result


@pytest.mark.parametrize(
    ("target", "name"), [(target, name) for target in VARIANTS for name in VARIANTS[target]]
)
def test_fits_registers(compiled: dict[str, dict[str, dict[str, int]]], target: str, name: str) -> None:
    usage = compiled[target][name]
    assert usage["spills"] == 0
    assert usage["registers"] <= MAX_REGISTERS[target]


def accesses(divergence: str, itemsize: int) -> tuple[int, int]:
    """16-byte loads and stores of a thread, written out: two sides, each with a full and a partial tile."""
    from fastkd.backends.triton import divergences, launch

    shape = launch.tile_shape(itemsize, divergence)
    per_side = 2 * shape["REPEAT"] * shape["WIDTH"] * itemsize // 16
    sweeps = 3 if divergences.has_sums(divergence) else 2
    # The sweeps between distant rows, two, have no full tiles.
    loads = 2 * sweeps * per_side + (2 * per_side if divergences.has_cross(divergence) else 0)
    # The gradients, and their clearing behind the vocabulary and in ignored rows.
    return loads, 2 * 3 * per_side


@pytest.mark.parametrize(
    ("target", "name"),
    [
        *((target, f"{divergence}-loaded") for target in ("sm_80", "sm_90") for divergence in KINDS),
        *(("sm_90", f"{divergence}-loaded") for divergence in DIVERGENCES if divergence not in KINDS),
        *(("sm_90", f"{divergence}-fp32") for divergence in ("forward_kl", "jsd", "alpha_beta")),
    ],
)
def test_16_byte_accesses(compiled: dict[str, dict[str, dict[str, int]]], target: str, name: str) -> None:
    usage = compiled[target][name]
    divergence, _, kind = name.partition("-")
    loads, stores = accesses(divergence, 4 if kind == "fp32" else 2)
    assert usage["wide loads"] == loads
    assert usage["all loads"] - usage["wide loads"] <= 5  # scalars
    assert usage["wide stores"] == stores
    assert usage["all stores"] - usage["wide stores"] <= 2


@pytest.mark.parametrize("divergence", KINDS)
def test_16_byte_accesses_amd(compiled: dict[str, dict[str, dict[str, int]]], divergence: str) -> None:
    usage = compiled["gfx942"][f"{divergence}-loaded"]
    assert usage["wide loads"] == accesses(divergence, 2)[0]
    assert usage["16-bit"] <= 1  # the label's logit


def test_batch_sizes_select_no_variant() -> None:
    """No argument that follows the batch is a constant of the compiled kernel or specialised."""
    from fastkd.backends.triton.dense import dense_rows_kernel

    names = dense_rows_kernel.arg_names
    assert "rows" not in names
    if hasattr(dense_rows_kernel, "params"):  # the interpreter keeps none
        assert {p.name for p in dense_rows_kernel.params if p.do_not_specialize} == {"inner", "ignore_index"}


if __name__ == "__main__":
    jobs = [
        (target, name, variant) for target, variants in VARIANTS.items() for name, variant in variants.items()
    ]
    with multiprocessing.Pool() as pool:
        usages = pool.starmap(
            compile_variant, [(target, variant) for target, _, variant in jobs], chunksize=1
        )
    report: dict[str, dict[str, dict[str, int]]] = {target: {} for target in VARIANTS}
    for (target, name, _), usage in zip(jobs, usages, strict=True):
        report[target][name] = usage
    print(json.dumps(report))
