"""Install a wheel into an environment of its own, without a compiler, and use and test it there.

    python wheels/try_installed.py dist/fastkd-0.1.0-cp311-cp311-*.whl --torch torch==2.13.0

The environment is new each time, and its programs are all that the PATH has. Nothing is imported from the
sources: commands run in an empty folder, and the tests are copied out of the checkout. ``make test-wheel``
builds the wheel for CPUs and calls this script.
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

from common import Failure

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("losses", "ops", "backends")
MARKS = "not slow and not long and not gpu and not triton_interpret"
COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "clang++", "nvcc", "zig", "cmake", "ninja")


@dataclass
class Environment:
    """A virtual environment, and the folder in which its commands run."""

    folder: Path
    work: Path

    @property
    def programs(self) -> Path:
        return self.folder / "bin"

    def run(self, program: str, *arguments: str, quiet: bool = True) -> str:
        """The output of a program of the environment; without ``quiet`` it goes to the screen instead.

        Raises:
            Failure: the program failed.
        """
        kept = {name: value for name, value in os.environ.items() if not re.match("PYTHON|CC$|CXX$", name)}
        done = subprocess.run(
            [str(self.programs / program), *arguments],
            cwd=self.work,
            env={**kept, "PATH": str(self.programs), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if quiet else None,
            stderr=subprocess.STDOUT if quiet else None,
            text=True,
        )
        if done.returncode != 0:
            raise Failure(f"{program} {' '.join(arguments)} failed:\n{(done.stdout or '')[-6000:]}")
        return done.stdout or ""

    def install(self, *requirements: str) -> float:
        """The seconds that it takes to install them."""
        began = time.monotonic()
        self.run("python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements)
        return time.monotonic() - began


def make_environment(folder: Path, beside: Path | None) -> Environment:
    """A new environment; with ``beside`` it also imports the packages that are in that folder."""
    shutil.rmtree(folder, ignore_errors=True)
    environment = Environment(folder / "environment", folder / "work")
    environment.work.mkdir(parents=True)
    subprocess.run([sys.executable, "-m", "venv", str(environment.folder)], check=True)
    found = [name for name in COMPILERS if shutil.which(name, path=str(environment.programs))]
    if found:
        raise Failure(f"{environment.programs} has {', '.join(found)}")
    if beside is not None:
        # Python does not follow the .pth files of that folder, such as that of an editable install.
        (site,) = environment.folder.glob("lib/python*/site-packages")
        (site / "beside.pth").write_text(f"{beside}\n")
    return environment


def one_line() -> str:
    """The first example of the README, which compares ``kd_loss`` with ``F.kl_div``."""
    readme = (ROOT / "README.md").read_text()
    section = readme.partition("## The one line")[2]
    return re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)[0]


def instruction_sets() -> set[str]:
    """The instruction sets among AVX2 and AVX-512 that Linux finds in this CPU."""
    information = Path("/proc/cpuinfo")
    words = set(information.read_text().split()) if information.exists() else set()
    return {name for name, flag in (("avx2", "avx2"), ("avx512", "avx512vl")) if flag in words}


def use(environment: Environment) -> str:
    """Run ``fastkd env`` and the README's first example; return the instruction sets found."""
    place = environment.run("python", "-c", "import fastkd; print(fastkd.__file__)").strip()
    if not Path(place).is_relative_to(environment.folder):
        raise Failure(f"fastkd was imported from {place}")
    report = json.loads(environment.run("fastkd", "env", "--json"))
    if report["backends"]["native:cpu"] != "available":
        raise Failure(f"the CPU kernels are not available: {report['backends']['native:cpu']}")
    if missing := instruction_sets() - set(report["cpu"]["available"]):
        raise Failure(f"the kernels for {', '.join(missing)}, which this CPU has, are not available")
    environment.run("python", "-c", one_line())
    return f"{', '.join(report['cpu']['available'])}; CUDA kernels: {report['built with CUDA'] or 'none'}"


def run_tests(environment: Environment, arguments: list[str]) -> None:
    """The quick tests of the losses, copied into the folder in which commands run."""
    shutil.copytree(ROOT / "tests", environment.work / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", environment.work)
    chosen = [f"tests/{folder}" for folder in FOLDERS]
    options = ["-m", MARKS, "-p", "no:cacheprovider", *arguments]
    environment.run("python", "-m", "pytest", *chosen, *options, quiet=False)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--torch", default="torch", help="the requirement to install first")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "wheels" / "installed")
    parser.add_argument(
        "--beside",
        type=Path,
        help="a site-packages folder to import everything else from, instead of installing it",
    )
    parser.add_argument("--pytest", nargs=argparse.REMAINDER, default=[], help="more arguments for pytest")
    options = parser.parse_args(arguments)
    wheel = str(options.wheel.resolve())
    try:
        print(f"[1/4] a new environment in {options.folder}", flush=True)
        environment = make_environment(options.folder.resolve(), options.beside)
        if options.beside is None:
            environment.install(options.torch, "numpy")
        seconds = environment.install(wheel, *(["--no-deps"] if options.beside else []))
        print(f"[2/4] {options.wheel.name} was installed in {seconds:.1f} seconds", flush=True)
        print(f"      instruction sets: {use(environment)}", flush=True)
        if options.beside is None:
            environment.install(f"{wheel}[train,test]")
        print("[3/4] fastkd demo --quick", flush=True)
        environment.run("fastkd", "demo", "--quick")
        print("[4/4] the quick tests of the losses", flush=True)
        run_tests(environment, options.pytest)
    except Failure as failure:
        print(f"FAILED: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
