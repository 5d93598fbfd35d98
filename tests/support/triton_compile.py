"""Compile the Triton kernels' variants ahead of time, without a GPU, and inspect the machine code.

Registers, spills and access widths determine the speed of these kernels, and all three are fixed at compile
time.
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

from support.sass import cuobjdump, instructions, loops, summary
from support.triton_variants import SLOW, VARIANTS, Variant, arguments, formulas_named, itemsize, shape_of

# An MI300 has 512 vector registers per lane, so 168 leave room for three waves per SIMD.
MAX_REGISTERS_AMD = 168


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

    from fastkd.backends.triton import host

    gpu = GPUTarget("hip", target, 64) if target.startswith("gfx") else GPUTarget("cuda", int(target[3:]), 32)
    shape = shape_of(variant)
    options = host.options(shape, gpu.backend, gpu.warp_size)
    compiled = triton.compile(ASTSource(*arguments(variant)), target=gpu, options=options)
    shared = compiled.metadata.shared
    if gpu.backend == "hip":
        assembly = compiled.asm["amdgcn"]
        wide = len(re.findall(r"\b(?:global|buffer)_load_dwordx4\b", assembly))
        return amd_usage(assembly) | {"shared": shared, "wide loads": wide, "allowed": MAX_REGISTERS_AMD}
    code = instructions(cuobjdump(compiled.asm["cubin"], "-sass"))
    both = "kernel" not in variant and formulas_named(variant.get("divergence")).reads_teacher
    sides = 2 if both else 1
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
    tests = pathlib.Path(__file__).resolve().parents[1]
    paths = [str(tests), str(tests.parent), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    command = [sys.executable, "-m", "support.triton_compile", which]
    child = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    result: Report = json.loads(child.stdout)
    return result


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
