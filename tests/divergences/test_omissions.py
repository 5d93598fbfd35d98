"""Leave out each place that a new divergence needs (CONTRIBUTING.md) and show that this is an error.

``triangular`` plays the new divergence. A Triton backend without its formulas is tested in
``tests/backends/test_triton_divergences.py``.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

import fastkd
from fastkd.backends import extension, native
from fastkd.divergences import DIVERGENCES

ROOT = Path(__file__).resolve().parents[2]
NAME = "triangular"
COMPILER = shutil.which("g++") or shutil.which("c++")


def load(source: Path, text: str | None = None) -> ModuleType:
    """A module made of a file of this repository, or of ``text`` in its place."""
    spec = importlib.util.spec_from_loader(f"copy_of_{source.stem}", loader=None, origin=str(source))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(source)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    exec(compile(source.read_text() if text is None else text, str(source), "exec"), module.__dict__)
    return module


def without(text: str, pattern: str) -> str:
    found, count = re.subn(pattern, "", text, flags=re.MULTILINE)
    assert count == 1, f"{count} matches of {pattern}"
    return found


def test_the_object(tmp_path: Path) -> None:
    """1. The line in ``DIVERGENCES``: fastkd cannot be imported."""
    package = Path(fastkd.__file__).parent
    shutil.copytree(package, tmp_path / "fastkd", ignore=shutil.ignore_patterns("__pycache__", "_C*"))
    shutil.copy(native._C.__file__, tmp_path / "fastkd")
    table = tmp_path / "fastkd/divergences/__init__.py"
    table.write_text(without(table.read_text(), r", TRIANGULAR(?=\))"))
    # An editable installation has a finder of its own, which would find the repository's package first.
    code = "import sys; sys.meta_path = [f for f in sys.meta_path if 'scikit' not in repr(f).lower()]\n"
    code += "import fastkd"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert f"csrc/divergences/list.h has '{NAME}', but fastkd.divergences.DIVERGENCES has not" in done.stderr


@pytest.mark.parametrize(
    ("trait", "value"), [("sums", False), ("cross", True), ("streams", lambda a, b: ((1.0, 0.0),))]
)
def test_a_property_of_the_object(monkeypatch: pytest.MonkeyPatch, trait: str, value: object) -> None:
    """1. A property that differs from the functor's: fastkd cannot be imported."""
    assert extension.differences() == []
    monkeypatch.setitem(DIVERGENCES, NAME, replace(DIVERGENCES[NAME], **{trait: value}))  # type: ignore[arg-type]
    (fault,) = extension.differences()
    assert fault.startswith(f"{NAME} has {trait}=")


def test_the_oracle() -> None:
    """2. The formula in the oracle: it refuses the name."""
    source = ROOT / "fastkd/conformance/oracle.py"
    p = torch.full((1, 4), 0.25).log()
    assert load(source).divergence(NAME, p, p) == 0
    module = load(source, without(source.read_text(), rf'^    if name == "{NAME}":\n(?:        .*\n)+'))
    with pytest.raises(ValueError, match=NAME):
        module.divergence(NAME, p, p)


def test_the_line_in_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """3. The line in ``list.h``: fastkd cannot be imported."""
    members = {name: value for name, value in native._C.Divergence.__members__.items() if name != NAME}
    there = {name: getattr(native._C, name) for name in dir(native._C) if not name.startswith("__")}
    compiled = SimpleNamespace(**there | {"Divergence": SimpleNamespace(__members__=members, **members)})
    monkeypatch.setattr(extension, "_C", compiled)
    (fault,) = extension.differences()
    assert fault == f"fastkd.divergences.DIVERGENCES has '{NAME}', but csrc/divergences/list.h has not"


def test_a_module_built_before_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources that were updated without a new build say so, before a name that is missing raises."""
    there = {name: getattr(native._C, name) for name in dir(native._C) if not name.startswith("__")}
    del there["WeightParams"]
    monkeypatch.setattr(extension, "_C", SimpleNamespace(**there))
    assert extension.differences() == ["it lacks WeightParams"]


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
@pytest.mark.parametrize(
    ("file", "pattern", "message"),
    [
        ("visit.h", rf'^#include "{NAME}.h"\n', "Triangular"),
        (f"{NAME}.h", r"^  template <class F>\n  .* void sums\((?:.*\n)+?  }\n", "kSums needs sums"),
        (f"{NAME}.h", r"^  template <class R>\n  .* R value\((?:.*\n)+?  }\n", "a functor needs value"),
        (f"{NAME}.h", r"^  template <class F>\n  .* F teacher\((?:.*\n)+?  }\n", "a functor needs teacher"),
    ],
    ids=["include", "sums", "value", "teacher"],
)
def test_the_functor(tmp_path: Path, file: str, pattern: str, message: str) -> None:
    """3. The include, or a member of the functor: the compiler names what is missing."""
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    changed = tmp_path / "csrc/divergences" / file
    changed.write_text(without(changed.read_text(), pattern))
    program = tmp_path / "csrc/all.cpp"
    program.write_text(
        '#include "divergences/visit.h"\n'
        "int main() { fastkd::visit_divergence({}, .5, .5, [](auto&&) {}); }\n"
    )
    command = [str(COMPILER), "-std=c++17", "-fsyntax-only", str(program)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0 and message in done.stderr


@pytest.mark.parametrize(
    ("test", "pattern"),
    [
        ("test_every_divergence_has_its_section", rf"^### {NAME}\n"),
        ("test_the_table_of_choices_names_every_divergence", rf"^\| .* \| `{NAME}` \| .*\n"),
        ("test_the_table_of_infinities_is_true", rf" `{NAME}`,(?= .* finite \| finite)"),
        ("test_the_contents_name_every_divergence", rf" \[{NAME}\]\(#{NAME}\),"),
        ("test_bytes_over_the_network", rf" `{NAME}`,(?= .* \| \d+ \|)"),
    ],
)
def test_the_documentation(monkeypatch: pytest.MonkeyPatch, test: str, pattern: str) -> None:
    """5. The section in ``docs/losses.md``, or a row of its tables: the tests of the documentation fail."""
    module = load(ROOT / "tests/docs/test_docs.py")
    one = test in ("test_every_divergence_has_its_section", "test_the_table_of_infinities_is_true")
    arguments = (NAME,) if one else ()
    getattr(module, test)(*arguments)
    monkeypatch.setattr(module, "LOSSES", without(module.LOSSES, pattern))
    with pytest.raises(AssertionError):
        getattr(module, test)(*arguments)


def test_the_docstring(monkeypatch: pytest.MonkeyPatch) -> None:
    """6. The line in the docstring of ``kd_loss``: a test of the documentation fails."""
    module = load(ROOT / "tests/docs/test_docs.py")
    module.test_the_docstring_names_every_divergence()
    assert fastkd.kd_loss.__doc__
    shorter = without(fastkd.kd_loss.__doc__, rf'^ *- ``"{NAME}"``.*\n')
    monkeypatch.setattr(fastkd.kd_loss, "__doc__", shorter)
    with pytest.raises(AssertionError):
        module.test_the_docstring_names_every_divergence()


def test_the_bounds_of_random_calls() -> None:
    """7. The sizes of its terms, for the bounds of the test of random calls: it refuses the name."""
    pytest.importorskip("hypothesis")
    source = ROOT / "tests/support/bounds.py"
    module = load(source, without(source.read_text(), rf'^    if name == "{NAME}":\n(?:        .*\n)+'))
    p = torch.full((1, 4), 0.25).log()
    example = SimpleNamespace(divergence=NAME, parameters={})
    with pytest.raises(NotImplementedError, match=NAME):
        module.magnitudes(example, p, p, torch.zeros(1), 1e-7)
