"""``hub/build.py``: the same bytes from the same sources, and nothing in them that the hub forbids."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from support import hub
from support.hub import ROOT, build

import fastkd

CALL = """
import importlib.util, json, sys
from pathlib import Path

sys.modules["fastkd"] = None  # importing it is an error
{before}
variant = Path({variant!r})
name = json.loads((variant / "metadata.json").read_text())["id"]
spec = importlib.util.spec_from_file_location(name, variant / "__init__.py")
kernel = sys.modules[name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernel)

import torch
student = torch.randn(3, 11, requires_grad=True)
loss = kernel.kd_loss(student, torch.randn(3, 11), torch.tensor([1, 2, -100]), kd_ratio=0.5)
loss.backward()
assert student.grad.any() and not student.grad[2].any()
print(json.dumps(kernel.available_backends()))
"""


def test_two_builds_are_equal(built: Path, tmp_path: Path) -> None:
    """Another process, with other hashes of strings, writes the same files with the same bytes."""
    command = [sys.executable, "hub/build.py", "--out", str(tmp_path / "again")]
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"PYTHONHASHSEED": "7"})
    first, second = (
        {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        for folder in (built, tmp_path / "again")
    )
    assert {path for path in first if "__pycache__" not in path} == set(second)
    assert all(first[path] == data for path, data in second.items())


@pytest.mark.parametrize("before", ["", "sys.modules['triton'] = None"], ids=["alone", "without-triton"])
def test_a_fresh_interpreter_without_fastkd(built: Path, before: str) -> None:
    code = CALL.format(variant=str(built / "build/torch-cuda"), before=before)
    child = subprocess.run(
        [sys.executable, "-c", code],
        cwd=built,
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    reported = json.loads(child.stdout)
    assert reported["reference:cpu"] == "available"
    assert ("cannot be imported" in reported["triton:cpu"]) or not before


def test_files_import_only_what_the_hub_allows(built: Path) -> None:
    """Every import is relative, or of the standard library, torch and Triton."""
    found = set()
    paths = [path for path in (built / "build").rglob("*.py")]
    assert len(paths) > 200
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add((node.module or "").split(".")[0])
    # NumPy is imported inside a function, for Triton's interpreter, which imports it itself.
    assert found - set(sys.stdlib_module_names) == {"torch", "triton", "numpy"}


def test_the_smallest_set_of_modules(built: Path) -> None:
    """The losses are there, but neither the trainer nor the commands."""
    variant = built / "build/torch-cpu"
    names = {path.relative_to(variant).parts[0] for path in variant.rglob("*.py")}
    assert names == {
        *("__init__.py", "_settings.py", "errors.py", "layers.py", "modules.py", "spec.py", "teachers.py"),
        *("backends", "divergences", "losses", "ops"),
    }


def test_every_module_of_the_hub_is_used(built: Path) -> None:
    """Each file in hub/kernel is part of the build, and all but two take the place of a module of fastkd."""
    names = {p.relative_to(ROOT / "hub/kernel").as_posix() for p in (ROOT / "hub/kernel").rglob("*.py")}
    assert all((built / "build/torch-cpu" / name).is_file() for name in names)
    assert {name for name in names if not (ROOT / "fastkd" / name).exists()} == {"layers.py"}


def test_the_interface(kernel: ModuleType) -> None:
    """The kernel exports what fastkd does, except for the memory and the folder of the compiled kernels."""
    apart = {"backends", "keep_memory", "release_memory"}
    assert set(kernel.__all__) - {"layers"} == set(fastkd.__all__) - apart
    assert all(hasattr(kernel, name) for name in kernel.__all__)


def test_ops_have_a_namespace_of_their_own(built: Path, kernel: ModuleType) -> None:
    """Two variants and fastkd are in this process, and each has its three ops under its own name."""
    other = hub.load(built / "build/torch-rocm")
    registered = torch._C._dispatch_get_all_op_names()
    for namespace in (kernel.__name__, other.__name__, "fastkd"):
        ops = {name.split("::")[1] for name in registered if name.startswith(f"{namespace}::")}
        assert ops == {"dense_kd", "linear_kd", "scale_rows"}
    assert re.fullmatch(r"_fastkd_cpu_[0-9a-f]{7}", kernel.__name__)


def test_other_sources_have_another_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    def name() -> str:
        return str(json.loads(build.kernel()["build/torch-cpu/metadata.json"])["id"])

    before, sources = name(), build.sources()
    sources["spec.py"] += "\n"
    monkeypatch.setattr(build, "sources", lambda: sources)
    assert name() != before


def test_versions_and_license(built: Path) -> None:
    assert build.description()["version"] == int(fastkd.__version__.split(".")[0])
    assert f"(version\n{fastkd.__version__})" in (built / "README.md").read_text()
    for place in ("LICENSE", "build/torch-cuda/LICENSE"):
        assert (built / place).read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_the_name_on_the_hub() -> None:
    files = build.kernel("someone/distillation")
    for path in ("README.md", "build.toml"):
        assert b"someone/distillation" in files[path] and b"fastkd/fastkd" not in files[path]


def module(text: str, path: str = "fastkd/ops/x.py") -> Any:
    return build.Module(ROOT / path, Path(path).parts[1:-1], text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import transformers", "imports transformers"),
        ("def f():\n    from safetensors.torch import load", "imports safetensors"),
        ("import numpy as np", "imports numpy"),
        ("import fastkd.ops.dense", "cannot be relative"),
    ],
)
def test_the_builder_refuses_an_import(text: str, message: str) -> None:
    with pytest.raises(build.BuildError, match=rf"^fastkd/ops/x.py:\d+: .*{message}"):
        _ = module(text).imports


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("from fastkd import _C", "compiled module"),
        ("try:\n    from . import _C\nexcept ImportError:\n    _C = None", "compiled module"),
        ("from fastkd.nowhere import x", r"no fastkd\.nowhere"),
        ("from fastkd import a\n", None),
    ],
)
def test_the_closure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str | None) -> None:
    """The builder follows imports, those inside functions too, and refuses the compiled module."""
    (tmp_path / "b").mkdir()
    texts = {"__init__.py": text, "a.py": "def f():\n    from fastkd.b.c import g", "b/__init__.py": ""}
    for name, content in {**texts, "b/c.py": "import math", "unused.py": "import numpy"}.items():
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(build, "FOLDERS", (tmp_path,))
    monkeypatch.setattr(build, "ROOT", tmp_path)
    if message is None:
        assert [each.target for each in build.closure()] == ["__init__.py", "a.py", "b/__init__.py", "b/c.py"]
    else:
        with pytest.raises(build.BuildError, match=message):
            build.closure()


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("fastkd/x.py", "from fastkd.spec import A", "from .spec import A"),
        ("fastkd/x.py", "from fastkd import _settings", "from . import _settings"),
        (
            "fastkd/ops/x.py",
            "from fastkd.ops.rows import (\n    a,\n)",
            "from ..ops.rows import (\n    a,\n)",
        ),
        ("fastkd/a/b/x.py", "def f():\n    from fastkd.a import y", "def f():\n    from ...a import y"),
        ("fastkd/a/__init__.py", "from fastkd.a.x import y", "from ..a.x import y"),
        ("fastkd/x.py", '"""See fastkd.spec."""\nfrom . import y', '"""See fastkd.spec."""\nfrom . import y'),
    ],
)
def test_relative_imports(path: str, text: str, expected: str) -> None:
    assert module(text, path).relative() == expected


def test_a_namespace_that_cannot_be_replaced() -> None:
    with pytest.raises(build.BuildError, match="exactly one line"):
        build.with_namespace({"ops/namespace.py": "NAMESPACE = 'fastkd'\n"}, "_fastkd_cpu_0")


def test_only_an_earlier_build_is_replaced(tmp_path: Path) -> None:
    files = {"build.toml": b"a", "build/torch-cpu/__init__.py": b"b"}
    for _ in range(2):
        build.write(files, tmp_path / "kernel")
        assert not (tmp_path / "kernel/build/stale.py").exists()
        (tmp_path / "kernel/build/stale.py").touch()
    for name, add in (("other", "thesis.tex"), ("kernel", "kernel.cu")):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / add).touch()
        for out in (tmp_path / name, tmp_path / name / add):
            with pytest.raises(build.BuildError, match="not an earlier build"):
                build.write(files, out)
        assert (tmp_path / name / add).exists()
