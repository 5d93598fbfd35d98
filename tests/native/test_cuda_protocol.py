"""Run the cluster kernel under random schedules on the emulated GPU, as it is and with planted faults.

A schedule decides which thread runs next, and when copies and remote stores take effect. The emulation keeps
track of which accesses are ordered, so that it also reports races that did no harm under the schedule.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from support.cuda_counts import DECLARED, VOCABULARIES, shape_for
from support.cuda_emulation import (
    COMPILER,
    EMULATION,
    LIMIT_S,
    compile_all,
    link,
    machine,
    sources,
)
from support.cuda_faults import FAULTS, PlantedFault
from support.cuda_sources import CSRC, Unit

PROTOCOL = EMULATION / "protocol"
# A planted fault can be in this file only, which the others do not depend on.
KERNELS = {"kernels": Unit(PROTOCOL / "kernels.cu", ())}
REST = {
    path.stem: Unit(path, ())
    for path in (
        *(PROTOCOL / "case.cpp", PROTOCOL / "driver.cpp", PROTOCOL / "other_divergences.cu"),
        *(CSRC / "cuda/loss/call.cu", CSRC / "cuda/loss/cluster_shape.cu"),
    )
}
SCHEDULES = 2000  # of the kernel as it is
TRIED = 300  # schedules that a planted fault has to show in
# The mistakes that protocol/pipeline.cu can make, in the order of its enumeration, and their reports.
MISTAKES = {
    "none": "",
    "copies into a stage in use": r"more arrivals at an mbarrier|races with a read of the value before it",
    "sends into sums in use": r"the shared variable sum, (which races|into which a copy)|more arrivals",
    "waits for one parity": r"without a wait for the copy|into which a copy is in flight|deadlock",
    "expects fewer arrivals": r"more arrivals at an mbarrier|into which a copy is in flight|races with a",
    "exits early": r"a block that has exited|a block can exit before",
    "publishes no mbarriers": r"not ordered after its initialisation|nobody has initialised",
    "leaves a copy": r"a block exits while a copy into it|a block can exit before a copy into it lands",
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler on PATH"),
]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources as they are, translated."""
    return sources(tmp_path_factory.mktemp("protocol"))


@pytest.fixture(scope="module")
def emulated_gpu(tree: Path) -> list[Path]:
    return compile_all(machine(), tree, tree / "objects")


@pytest.fixture(scope="module")
def rest(tree: Path, emulated_gpu: list[Path]) -> list[Path]:
    """The objects of the driver without the kernels."""
    return emulated_gpu + compile_all(REST, tree, tree / "objects")


@pytest.fixture(scope="module")
def pipeline(tree: Path, emulated_gpu: list[Path]) -> Path:
    return program("pipeline", tree, emulated_gpu)


def program(name: str, tree: Path, emulated_gpu: list[Path]) -> Path:
    """Build a program with kernels of its own, which are not those of fastkd."""
    kernel = compile_all({name: Unit(PROTOCOL / f"{name}.cu", ())}, tree, tree / "objects")
    return link(emulated_gpu + kernel, tree / name)


def run(program: Path, *arguments: object) -> tuple[int, str]:
    command = [str(program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    print(done.stdout, done.stderr)
    return done.returncode, done.stdout


def test_nothing_to_report(tree: Path, rest: list[Path]) -> None:
    kernels = compile_all(KERNELS, tree, tree / "objects")
    code, report = run(link(rest + kernels, tree / "driver"), 1, 1 + SCHEDULES)
    assert (code, report) == (0, f"{SCHEDULES} schedules, nothing found\n")


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_planted_faults_are_found(fault: PlantedFault, rest: list[Path], tmp_path: Path) -> None:
    kernels = compile_all(KERNELS, sources(tmp_path, fault.changes), tmp_path)
    code, report = run(link(rest + kernels, tmp_path / "driver"), 1, 1 + TRIED)
    assert code == 3, report
    assert re.search(fault.report, report), report


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mbarriers_of_a_persistent_cluster(mistake: str, pipeline: Path) -> None:
    """Phases that are used again, several arrivals, arrivals and stores from another block."""
    code, report = run(pipeline, list(MISTAKES).index(mistake), 1, 1 + TRIED)
    if mistake == "none":
        assert (code, report) == (0, f"{TRIED} schedules, nothing found\n")
    else:
        assert code == 3, report
        assert re.search(MISTAKES[mistake], report), report


def test_shapes_of_the_counts(tree: Path, emulated_gpu: list[Path]) -> None:
    """The model of the kernel's speed assumes the clusters that the kernel is launched with."""
    units = {"shapes": Unit(PROTOCOL / "shapes.cu", ()), "cluster_shape": REST["cluster_shape"]}
    program = link(emulated_gpu + compile_all(units, tree, tree / "objects"), tree / "shapes")
    vocabularies = [*VOCABULARIES, 1_000, 50_257, 100_000, 220_000, 230_000, 400_000]
    # The bytes of an element, and the sides in shared memory: with logarithms there are three narrow ones.
    cases = [(vocab, *sides) for vocab in vocabularies for sides in ((2, 2), (2, 3), (4, 2))]
    lines = "".join(f"{vocab} {size * sides}\n" for vocab, size, sides in cases)
    command = [str(program), str(DECLARED)]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=True, timeout=LIMIT_S)
    found = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert found == [shape_for(*case) for case in cases]


def test_limits_of_the_emulated_gpu(tree: Path, emulated_gpu: list[Path]) -> None:
    """Limits of launches, bounds and alignment of memory, and the errors of approximate functions."""
    assert run(program("limits", tree, emulated_gpu)) == (0, "")
