"""Build programs from the CUDA sources for the emulation in ``tests/native/cuda_emulation``."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support.cuda_sources import CSRC, Unit
from support.cuda_translation import translate

EMULATION = Path(__file__).parents[1] / "native" / "cuda_emulation"
COMPILER = shutil.which("g++") or shutil.which("c++")
# No contraction, since the kernels rely on rounded products. No strict aliasing, since the kernels access
# vectors through pointers of another type, which CUDA allows. _FORTIFY_SOURCE would take the jumps between
# the stacks of fibers for errors.
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-strict-aliasing"]
FLAGS += ["-U_FORTIFY_SOURCE", "-Wall", "-Wno-unknown-pragmas", "-Werror"]
# All files see the kernels' functions as compiled for Hopper: a linker keeps one version of each.
FLAGS += ["-D__CUDA_ARCH__=900", "-include", "cuda_runtime.h"]
LIMIT_S = 600
# A planted fault: the file in csrc, the text that is replaced, and its replacement.
Change = tuple[str, str, str]


def changed_texts(changes: Iterable[Change]) -> dict[str, str]:
    """The files of ``csrc`` by their names, with some changes.

    Raises:
        ValueError: a text to be replaced does not occur exactly once.
    """
    texts = {p.relative_to(CSRC).as_posix(): p.read_text() for p in sorted(CSRC.rglob("*")) if p.is_file()}
    for name, old, new in changes:
        count = texts.get(name, "").count(old)
        if count != 1:
            raise ValueError(f"{name} has {count} places with {old!r}")
        texts[name] = texts[name].replace(old, new)
    return texts


def sources(folder: Path, changes: Iterable[Change] = ()) -> Path:
    """Write the translated ``csrc`` with some changes into ``folder``. Returns ``folder``."""
    for name, text in changed_texts(changes).items():
        target = folder / "csrc" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(translate(text))
    return folder


def compile_all(units: dict[str, Unit], tree: Path, out: Path, *flags: str) -> list[Path]:
    """Compile files against the sources in ``tree``, with a process for each core that this process may use.

    Returns the object files.
    """
    out.mkdir(parents=True, exist_ok=True)

    def compile_one(item: tuple[str, Unit]) -> Path:
        name, unit = item
        source = unit.source
        if CSRC in source.parents:
            source = tree / "csrc" / source.relative_to(CSRC)
        elif source.suffix == ".cu":
            source = out / source.name
            source.write_text(translate(unit.source.read_text()))
        target = out / f"{name}.o"
        command = [str(COMPILER), *FLAGS, f"-I{EMULATION}", f"-I{tree}", *flags, *unit.flags]
        command += ["-x", "c++", "-c", str(source), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
        assert done.returncode == 0, done.stderr
        return target

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ThreadPoolExecutor(cores) as pool:
        return list(pool.map(compile_one, units.items()))


def machine() -> dict[str, Unit]:
    """The files of the emulation itself."""
    return {f"machine-{path.name}": Unit(path, ()) for path in sorted(EMULATION.glob("machine/*.cpp"))}


def link(objects: Iterable[Path], target: Path, *flags: str) -> Path:
    command = [str(COMPILER), *flags, "-o", str(target), *map(str, objects)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    return target
