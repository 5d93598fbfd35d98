"""The field ``teacher``: nothing, a model, a cache, a server, several of these, or the student's own base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastkd.trainer.teacher_names import SEVERAL


@dataclass(frozen=True)
class TeacherSource:
    """The teacher that a configuration's field ``teacher`` names. No other code reads the field's text.

    Attributes:
        kind: ``none`` (the field is unset), ``base`` (the student without its adapter), ``self`` (the student
            with its weights of now or of before), ``cache`` (what
            ``fastkd cache`` wrote), ``served`` (a URL), ``several`` (those of the field ``teachers``) or
            ``model`` (a directory or a hub id).
        name: the directory of a cache, the URL of a server, the name of a model, or those of several
            teachers; empty for the other kinds.
    """

    kind: Literal["none", "base", "self", "cache", "served", "several", "model"]
    name: str = ""

    @classmethod
    def parse(cls, given: str | None) -> TeacherSource:
        """The source that ``base``, ``cache:DIR``, a URL, a model's name, or None means."""
        if given is None:
            return cls("none")
        if given == "base":
            return cls("base")
        if given == "self":
            return cls("self")
        if given.startswith("cache:"):
            return cls("cache", given.removeprefix("cache:"))
        if given.startswith(SEVERAL):
            return cls("several", given.removeprefix(SEVERAL))
        if given.startswith(("http://", "https://")):
            return cls("served", given)
        return cls("model", given)

    @property
    def is_several(self) -> bool:
        """Whether there are several teachers."""
        return self.kind == "several"

    @property
    def is_model(self) -> bool:
        """Whether it is a model of its own, which can be loaded."""
        return self.kind == "model"

    @property
    def is_self(self) -> bool:
        """Whether it is the student itself."""
        return self.kind == "self"

    @property
    def is_own(self) -> bool:
        """Whether it is made of the run's own student."""
        return self.is_base or self.is_self

    @property
    def is_served(self) -> bool:
        """Whether it is a model behind a URL."""
        return self.kind == "served"

    @property
    def is_base(self) -> bool:
        """Whether it is the student without its adapter."""
        return self.kind == "base"

    @property
    def cache(self) -> Path | None:
        """The directory of the cache; None if it is no cache."""
        return Path(self.name).expanduser() if self.kind == "cache" else None


def require_model(given: str | None, why: str) -> None:
    """Raise a ``ValueError`` unless the value of ``teacher`` names a model.

    Args:
        given: the value of the field.
        why: states in the error why only a model will do.
    """
    source = TeacherSource.parse(given)
    if source.kind == "none":
        raise ValueError("teacher is not set: give a directory or a hub id")
    if not source.is_model:
        raise ValueError(f"teacher is {given!r}, but {why}: give its directory or id")
