"""Test the wheel for CPUs, and the scripts of ``make wheel`` and ``make test-wheel``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from fastkd import _C

ROOT = Path(__file__).resolve().parents[2]
WHEELS = ROOT / "wheels"
NEEDED = ("g++", "strip")


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script ``wheels/build.py`` as a module."""
    monkeypatch.syspath_prepend(str(WHEELS))
    monkeypatch.delitem(sys.modules, "build", raising=False)
    import build

    return build


def test_the_label_of_the_cuda_kernels(builder: ModuleType) -> None:
    text = '[project]\nname = "fastkd"\nversion = "0.1.0"\nminimum-version = "1.0"\n'
    assert builder.with_label(text, "cu13") == text.replace('"0.1.0"', '"0.1.0+cu13"')
    for wrong in ("", text + 'version = "1.0"\n'):
        with pytest.raises(Exception, match=r"times, not once"):
            builder.with_label(wrong, "cu13")
    builder.with_label((ROOT / "pyproject.toml").read_text(), "cu13")


def test_unpacking_touches_changed_files_only(builder: ModuleType, tmp_path: Path) -> None:
    """All files of a source distribution have one time stamp; by it ninja could not tell what has changed."""

    def sdist(**files: str) -> Path:
        with tarfile.open(tmp_path / "one.tar.gz", "w:gz") as archive:
            for name, text in files.items():
                (tmp_path / name).write_text(text)
                os.utime(tmp_path / name, (1, 1))
                archive.add(tmp_path / name, f"fastkd-1/src/{name}")
        return tmp_path / "one.tar.gz"

    source = tmp_path / "source"
    builder.unpack(sdist(same="a", changed="b", gone="c"), source)
    for path in source.rglob("*"):
        os.utime(path, (1000, 1000))
    builder.unpack(sdist(same="a", changed="d", new="e"), source)
    found = {path.name: path.read_text() for path in source.rglob("*") if path.is_file()}
    assert found == {"same": "a", "changed": "d", "new": "e"}
    assert (source / "src" / "same").stat().st_mtime == 1000 < (source / "src" / "changed").stat().st_mtime


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="make wheel is for Linux")
@pytest.mark.skipif(not all(map(shutil.which, NEEDED)), reason=f"needs {', '.join(NEEDED)}")
def test_wheel_for_cpus(builder: ModuleType, tmp_path: Path) -> None:
    """The wheel is built from the source distribution and works in an environment without a compiler.

    A module that was built for this machine alone is refused in a wheel.
    """

    def call(python: Path | str, script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [str(python), str(WHEELS / script), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=3000)

    built = call(sys.executable, "build.py", "--cuda", "OFF", "--out", tmp_path / "dist")
    assert built.returncode == 0, built.stdout + built.stderr
    assert "manylinux_2_17" in built.stdout and "libtorch" not in built.stdout
    (wheel,) = (tmp_path / "dist").glob("*.whl")

    tests = ("--pytest", "-q", "-k", "test_parity and forward_kl")
    beside = ("--beside", sysconfig.get_path("purelib"), "--folder", tmp_path / "installed")
    tried = call(sys.executable, "try_installed.py", wheel, *beside, *tests)
    assert tried.returncode == 0, tried.stdout + tried.stderr
    assert "baseline" in tried.stdout and " passed" in tried.stdout

    local = tmp_path / wheel.name
    with zipfile.ZipFile(wheel) as archive, zipfile.ZipFile(local, "w") as changed:
        for name in archive.namelist():
            module = name.startswith("fastkd/_C.") and name.endswith(".so")
            changed.writestr(name, Path(_C.__file__).read_bytes() if module else archive.read(name))
    checked = call(builder.tools() / "bin" / "python", "check.py", local)
    assert checked.returncode == 1
    assert "libstdc++.so.6" in checked.stdout or "at most 10 are allowed" in checked.stdout
