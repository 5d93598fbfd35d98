"""The mark ``repeats`` of ``repeats.py``, which decides which cases are quick."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.repeats import mark_repetitions


class Case:
    """A collected test, as far as ``mark_repetitions`` looks at it."""

    path = Path("test_x.py")
    originalname = "test_a"  # of six cases, this name begins with the first

    def __init__(self, *marks: Any) -> None:
        self.marks = list(marks)

    def get_closest_marker(self, name: str) -> Any:
        return next((mark.mark for mark in self.marks if mark.name == name), None)

    def add_marker(self, mark: Any) -> None:
        self.marks.append(mark)


def slow(*marks: Any, cases: int = 6) -> list[bool]:
    items = [Case(*marks) for _ in range(cases)]
    mark_repetitions(items)  # type: ignore[arg-type]
    return [item.get_closest_marker("slow") is not None for item in items]


def test_some_cases_stay_quick_evenly_spread() -> None:
    assert slow(pytest.mark.repeats(2)) == [False, True, True, False, True, True]
    assert not any(slow(pytest.mark.repeats(9)))
    assert not any(slow(pytest.mark.parametrize("x", [1])))


def test_another_test_begins_with_another_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Case, "originalname", "test_c")
    assert slow(pytest.mark.repeats(2)) == [True, True, False, True, True, False]


def test_repeats_for_interpreted_cases_only() -> None:
    marks = pytest.mark.repeats(interpreted=1), pytest.mark.triton_interpret
    assert slow(*marks) == [False, True, True, True, True, True]
    assert not any(slow(marks[0]))


def test_on_a_gpu_no_case_is_slow() -> None:
    assert not any(slow(pytest.mark.repeats(2), pytest.mark.gpu))


def test_repeats_with_a_number_for_each_kind() -> None:
    marks = pytest.mark.repeats(3, interpreted=1), pytest.mark.triton_interpret
    assert slow(*marks) == [False, True, True, True, True, True]
    assert slow(marks[0]) == [False, True, False, True, False, True]
