"""Compare the names in the compiled module with those in the Python sources."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

import fastkd
from fastkd import _C
from fastkd.backends import extension, record
from fastkd.divergences import DIVERGENCES


def import_again() -> None:
    """Execute ``fastkd/backends/extension.py`` as a module of its own, beside the one that is imported."""
    spec = importlib.util.find_spec("fastkd.backends.extension")
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_both_lists_of_divergences_are_one() -> None:
    """``csrc/divergences/list.h`` has all of ``DIVERGENCES``, and two functors for calls without one."""
    assert set(_C.Divergence.__members__) == {*DIVERGENCES, "none", "off_support"}
    import_again()


def test_a_divergence_that_the_module_lacks_is_an_import_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DIVERGENCES, "cosine", DIVERGENCES["tvd"])
    with pytest.raises(ImportError, match=r"DIVERGENCES has 'cosine', but csrc/divergences/list.h has not"):
        import_again()


def test_a_divergence_that_python_lacks_is_an_import_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(DIVERGENCES, "tvd")
    with pytest.raises(ImportError, match=r"list.h has 'tvd', but fastkd.divergences.DIVERGENCES has not"):
        import_again()


def test_columns_in_another_order_are_an_import_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "COLUMNS", record.COLUMNS[::-1])
    with pytest.raises(ImportError, match=r"csrc/params.h has other RECORD_COLUMNS"):
        import_again()


def test_the_needed_names_are_those_of_the_stub() -> None:
    stub = (Path(fastkd.__file__).parent / "_C.pyi").read_text()
    always, marker, _ = stub.partition("# The names below exist only where built_with_cuda is true.")
    assert marker
    found = re.findall(r"^(?:class |def )(\w+)|^(\w+):", always, re.MULTILINE)
    assert sorted(extension.NEEDED) == sorted(first or second for first, second in found)
    assert len(found) > 20
