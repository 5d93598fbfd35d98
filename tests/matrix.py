"""The losses' quick tests against several versions of torch, each in an environment of its own.

    python tests/matrix.py python3.10:torch==2.6.0 torch

An entry is a requirement of pip, before it perhaps the interpreter and a colon. Without an interpreter it is
the one that runs this script, and without a version pip takes the newest torch. An environment lies in ``--folder``; one that is
complete is used again, one whose making was interrupted is made anew. ``make test-matrix`` calls this.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("numpy", "pytest>=8", "hypothesis", "scikit-build-core", "pybind11", "cmake", "ninja")
# Tests that no version of torch makes a difference to, or that need more than torch.
APART = ("bench", "bench_report", "cuda_build", "cuda_emulation", "layers", "matrix", "readme", "sanitizers")
ROOM = 8 * 2**30  # bytes of disk: a build of torch with CUDA and what it brings, unpacked and as downloaded
FOUND = """
import importlib.metadata, json, platform, torch, fastkd
try:
    triton = importlib.metadata.version("triton")
except importlib.metadata.PackageNotFoundError:
    triton = "none"
print(json.dumps({"python": platform.python_version(), "torch": torch.__version__, "triton": triton,
                  "interpreted": fastkd.available_backends()["triton:cpu"]}))
"""


class Failure(Exception):
    """What went wrong with an entry, and what to do about it."""


@dataclass
class Entry:
    requirement: str
    python: Path
    folder: Path

    @property
    def interpreter(self) -> str:
        return str(self.folder / "bin" / "python")


def find_python(name: str) -> Path:
    """The interpreter of that name, on PATH or among those of pyenv that are not switched on."""
    kept = sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(f"versions/*/bin/{name}"))
    for candidate in (shutil.which(name), *kept):
        if (
            candidate
            and subprocess.run([candidate, "-c", "import venv"], capture_output=True).returncode == 0
        ):
            return Path(candidate)
    raise Failure(
        f"there is no {name}: install it (with its venv module), or name another one, "
        "as in MATRIX='python3.11:torch==2.6.0'"
    )


def parse(text: str, folder: Path) -> Entry:
    name, colon, requirement = text.rpartition(":")
    python = find_python(name) if colon else Path(sys.executable)
    label = re.sub(r"[^\w.]+", "-", f"{Path(name).name} {requirement}").strip("-")
    return Entry(requirement, python, folder / label)


def run(entry: Entry, what: str, advice: str, command: list[str]) -> None:
    if subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL).returncode != 0:
        raise Failure(f"{what} failed; the messages above say why. {advice}")


def make(entry: Entry) -> None:
    """The environment with torch and the tools; nothing where it is complete."""
    ready = entry.folder / "ready.json"
    if ready.exists() and json.loads(ready.read_text()) == entry.requirement:
        print("      the environment is there already", flush=True)
        return
    entry.folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(entry.folder).free
    if free < ROOM:
        raise Failure(
            f"{free / 2**30:.1f} GB of disk are free in {entry.folder}, and {ROOM / 2**30:.0f} are needed"
        )
    run(
        entry,
        f"making an environment of {entry.python}",
        "On Debian or Ubuntu: apt install python3-venv.",
        [str(entry.python), "-m", "venv", "--clear", str(entry.folder)],
    )
    pip = [entry.interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    run(
        entry,
        f"installing {entry.requirement}",
        "Is the package index reachable, and has it a build for this Python?",
        [*pip, entry.requirement, *TOOLS],
    )
    ready.write_text(json.dumps(entry.requirement))


def build(entry: Entry) -> None:
    """Compile what has changed and install fastkd in place."""
    run(
        entry,
        "building fastkd",
        "A C++17 compiler is needed (apt install g++).",
        [
            *(
                entry.interpreter,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--no-input",
            ),
            *("--no-build-isolation", "--no-deps", "--editable", "."),
            "--config-settings=cmake.define.FASTKD_CUDA=OFF",
            f"--config-settings=build-dir={entry.folder / 'cmake'}",
        ],
    )
    run(
        entry,
        "pip check",
        "The environment does not keep what pyproject.toml promises.",
        [entry.interpreter, "-m", "pip", "--disable-pip-version-check", "check"],
    )


def quick_tests() -> list[str]:
    files = sorted((ROOT / "tests").glob("test_*.py"))
    return [str(path.relative_to(ROOT)) for path in files if path.stem.removeprefix("test_") not in APART]


def test(entry: Entry, arguments: list[str]) -> str:
    """Run the tests, the interpreted ones beside the others; return what was found."""
    child = subprocess.run([entry.interpreter, "-c", FOUND], cwd=ROOT, capture_output=True, text=True)
    interpret = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    beside = subprocess.run(
        [entry.interpreter, "-c", FOUND], cwd=ROOT, capture_output=True, text=True, env=interpret
    )
    if child.returncode or beside.returncode:
        raise Failure(f"fastkd cannot be imported:\n{child.stderr or beside.stderr}")
    found = json.loads(beside.stdout)
    versions = f"Python {found['python']}, torch {found['torch']}, Triton {found['triton']}"
    print(f"      {versions}", flush=True)
    pytest = [entry.interpreter, "-m", "pytest", "-p", "no:cacheprovider", *quick_tests(), *arguments]
    log, interpreted = entry.folder / "triton.log", None
    if found["interpreted"] == "available":
        print(
            "      The Triton kernels are interpreted beside all else; what that says comes last.", flush=True
        )
        with log.open("w") as file:
            interpreted = subprocess.Popen(
                [*pytest, "-m", "triton_interpret"], cwd=ROOT, env=interpret, stdout=file, stderr=file
            )
    else:
        print(f"      Without the Triton kernels: {found['interpreted']}", flush=True)
    try:
        failed = subprocess.run(
            [*pytest, "-m", "not slow and not long and not triton_interpret"], cwd=ROOT
        ).returncode
        beside_failed = 0 if interpreted is None else interpreted.wait()
    finally:
        if interpreted is not None and interpreted.poll() is None:
            interpreted.kill()
    if interpreted is not None:
        print(log.read_text(), flush=True)
    none_chosen = 5  # of pytest, where the arguments leave no test in one half
    if failed or beside_failed not in (0, none_chosen):
        raise Failure(f"tests failed with {versions}")
    return versions


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "entries", nargs="+", metavar="ENTRY", help="such as torch==2.6.0 or python3.10:torch==2.6.0"
    )
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "build" / "matrix", help="where environments lie"
    )
    parser.add_argument("--remove", action="store_true", help="each environment when its tests have passed")
    parser.add_argument("--pytest", nargs=argparse.REMAINDER, default=[], help="more arguments for pytest")
    options = parser.parse_args()
    results, status = [], 0
    for number, text in enumerate(options.entries, 1):
        start = time.monotonic()

        def say(what: str, number: int = number, text: str = text) -> None:
            print(f"[{number}/{len(options.entries)}] {text}: {what}", flush=True)

        try:
            entry = parse(text, options.folder.resolve())
            say(f"the environment, in {entry.folder} (a build of torch with CUDA is several GB)")
            make(entry)
            say("compiling fastkd (one to two minutes the first time)")
            build(entry)
            say("testing")
            result = f"passed with {test(entry, options.pytest)}"
            if options.remove:
                shutil.rmtree(entry.folder)
        except Failure as failure:
            result, status = f"FAILED: {failure}", 1
        results.append(f"{text}: {result} ({(time.monotonic() - start) / 60:.1f} minutes)")
        print(results[-1], flush=True)
    print("\n".join(["", "The matrix:", *results]), flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
