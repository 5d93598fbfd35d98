"""Test what the field ``teacher`` means."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastkd.trainer.teachers import TeacherSource, require_model


@pytest.mark.parametrize(
    ("given", "kind", "name"),
    [
        (None, "none", ""),
        ("base", "base", ""),
        ("cache:teacher/cache", "cache", "teacher/cache"),
        ("basement", "model", "basement"),
        ("./base", "model", "./base"),
        ("org/name", "model", "org/name"),
    ],
)
def test_the_teacher_is_parsed(given: str | None, kind: str, name: str) -> None:
    source = TeacherSource.parse(given)
    assert (source.kind, source.name) == (kind, name)
    assert source.is_model == (kind == "model") and source.is_base == (kind == "base")
    assert source.cache == (Path(name) if kind == "cache" else None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "teacher is not set"),
        ("base", "teacher is 'base', but only a model will do: give its directory or id"),
        ("cache:x", "teacher is 'cache:x', but only a model will do"),
    ],
)
def test_commands_that_need_a_model_refuse_other_teachers(given: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        require_model(given, "only a model will do")
    require_model("org/name", "only a model will do")
