"""Run the losses' quick tests with several versions of torch, each in an environment of its own.

    python tests/project/matrix.py python3.10:torch==2.6.0 torch

An entry is a pip requirement, optionally after an interpreter and a colon. The default interpreter is the one
that runs this script, and without a version pip installs the newest torch. Environments are created in
``--folder``: a complete one is used again, and one whose creation was interrupted is created anew.
``make test-matrix`` calls this script.
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

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("numpy", "pytest>=8.2", "hypothesis", "scikit-build-core", "pybind11", "cmake", "ninja")
# Tests that do not depend on the version of torch, or that need more than torch.
APART = (
    "bench",
    "native",
    "trainer",
    "corpora",
    "runs",
    "docs/test_readme.py",
    "project/test_layers.py",
    "project/test_matrix.py",
    "project/test_release.py",
    "project/test_wheel.py",
)
ROOM = 8 * 2**30  # bytes of disk for torch with CUDA and its dependencies, unpacked and as downloaded
FOUND = """
import importlib.metadata, json, platform, torch, fastkd
try:
    triton = importlib.metadata.version("triton")
except importlib.metadata.PackageNotFoundError:
    triton = "none"
versions = f"Python {platform.python_version()}, torch {torch.__version__}, Triton {triton}"
print(json.dumps([versions, fastkd.available_backends()["triton:cpu"]]))
"""


class Failure(Exception):
    """An entry failed; the message states why, and what to do about it."""


def execute(*command: str) -> int:
    return subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL).returncode


@dataclass
class Entry:
    """A version of torch to test, with the Python to test it on and the folder of its environment."""

    requirement: str
    python: Path
    folder: Path

    def run(self, *arguments: str) -> int:
        """Run the environment's own Python and return its exit status."""
        return execute(str(self.folder / "bin" / "python"), *arguments)

    def install(self, *arguments: str) -> int:
        return self.run(
            *("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", *arguments)
        )


def find_python(name: str) -> Path:
    """The interpreter of that name, on PATH or among pyenv's installed versions, active or not."""
    kept = sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(f"versions/*/bin/{name}"))
    on_path = shutil.which(name)
    for candidate in [*([on_path] if on_path else []), *map(str, kept)]:
        if subprocess.run([candidate, "-c", "import venv"], capture_output=True).returncode == 0:
            return Path(candidate)
    raise Failure(
        f"there is no {name} with the module venv: install it, or name another one as in "
        "MATRIX='python3.11:torch==2.6.0'"
    )


def parse(text: str, folder: Path) -> Entry:
    name, colon, requirement = text.rpartition(":")
    python = find_python(name) if colon else Path(sys.executable)
    label = re.sub(r"[^\w.]+", "-", f"{Path(name).name} {requirement}").strip("-")
    return Entry(requirement, python, folder / label)


def make(entry: Entry) -> None:
    """Create the environment with torch and the tools, unless it exists already."""
    ready = entry.folder / "ready.json"
    if ready.exists():
        print("      it is there already", flush=True)
        return
    entry.folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(entry.folder).free
    if free < ROOM:
        raise Failure(f"only {free / 2**30:.1f} of {ROOM / 2**30:.0f} GB of disk are free in {entry.folder}")
    if execute(str(entry.python), "-m", "venv", "--clear", str(entry.folder)) != 0:
        raise Failure(
            f"{entry.python} cannot make an environment. On Debian or Ubuntu: apt install python3-venv"
        )
    if entry.install(entry.requirement, *TOOLS) != 0:
        raise Failure(
            f"could not install {entry.requirement}; pip says why above. Is the package index reachable, and "
            "does it have a build for this Python?"
        )
    ready.write_text(json.dumps(entry.requirement))


def build(entry: Entry) -> None:
    """Compile changed files, install fastkd in place, and check its requirements."""
    settings = {"cmake.define.FASTKD_CUDA": "OFF", "build-dir": str(entry.folder / "cmake")}
    chosen = [f"--config-settings={name}={value}" for name, value in settings.items()]
    if entry.install("--no-build-isolation", "--no-deps", *chosen, "--editable", ".") != 0:
        raise Failure(
            "could not build fastkd; the messages above say why. It takes a C++17 compiler (apt install g++)"
        )
    if entry.run("-m", "pip", "--disable-pip-version-check", "check") != 0:
        raise Failure("the environment is not what the packages in it require")


def quick_tests() -> list[str]:
    """The files of the quick suite that run with each torch: all but those in ``APART``."""
    apart = {ROOT / "tests" / path for path in APART}
    files = sorted((ROOT / "tests").glob("*/test_*.py"))
    return [str(path.relative_to(ROOT)) for path in files if not apart & {path, path.parent}]


def test(entry: Entry, arguments: list[str]) -> str:
    """Run the tests, with those of the interpreted Triton kernels in parallel; return the versions."""
    python = str(entry.folder / "bin" / "python")
    interpreting = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    found = subprocess.run([python, "-c", FOUND], cwd=ROOT, capture_output=True, text=True, env=interpreting)
    if found.returncode != 0:
        raise Failure(f"fastkd cannot be imported:\n{found.stderr}")
    versions, reason = json.loads(found.stdout)
    print(f"      {versions}", flush=True)
    pytest = ["-m", "pytest", "-p", "no:cacheprovider", *quick_tests(), *arguments]
    log, interpreted = entry.folder / "triton.log", None
    if reason == "available":
        print(
            "      The Triton kernels are interpreted beside all else; what that says comes last.", flush=True
        )
        with log.open("w") as file:
            command = [python, *pytest, "-m", "not slow and triton_interpret"]
            interpreted = subprocess.Popen(command, cwd=ROOT, env=interpreting, stdout=file, stderr=file)
    else:
        print(f"      The Triton kernels are left out: {reason}", flush=True)
    try:
        statuses = {entry.run(*pytest, "-m", "not slow and not long and not gpu and not triton_interpret")}
        if interpreted is not None:
            statuses.add(interpreted.wait())
            print(log.read_text(), flush=True)
    finally:
        if interpreted is not None and interpreted.poll() is None:
            interpreted.kill()
    # If the arguments select tests, one of the two runs may have none; pytest then exits with 5.
    if statuses - {0, 5} or 0 not in statuses:
        raise Failure(f"tests failed with {versions}")
    return versions


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("entries", nargs="+", metavar="ENTRY", help="torch==2.6.0 or python3.10:torch==2.6.0")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "matrix", help="of the environments")
    parser.add_argument("--remove", action="store_true", help="each environment when its tests have passed")
    parser.add_argument("--pytest", nargs=argparse.REMAINDER, default=[], help="more arguments for pytest")
    options = parser.parse_args(arguments)
    results, status = [], 0
    for number, text in enumerate(options.entries, 1):
        start, step = time.monotonic(), f"[{number}/{len(options.entries)}] {text}:"
        try:
            entry = parse(text, options.folder.resolve())
            print(f"{step} the environment, {entry.folder} (several GB where torch has CUDA)", flush=True)
            make(entry)
            print(f"{step} compiling fastkd (one to two minutes the first time)", flush=True)
            build(entry)
            print(f"{step} testing", flush=True)
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
