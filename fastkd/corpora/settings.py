"""The settings that this package reads, as protocols. ``DistillationConfig`` of the trainer has them all."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol


class TaskSettings(Protocol):
    """The settings that a task reads to turn rows into tokens.

    Attributes:
        max_length: longest sequence in tokens; for seq2seq, the longest source.
        max_target_length: longest target of seq2seq.
        packing: whether texts are joined and cut into pieces of ``max_length``.
        class_names: the classes in the order of their numbers.
        process_index: number of this process; only the first one logs.
        chat_template_kwargs: keywords for the chat template of every conversation.
        rewritten_turns: ``split`` makes rows of the answers that the chat template rewrites when a
            conversation goes on; ``last`` leaves them out.
        problem_type: the problem that a classifier solves, as in :mod:`fastkd.corpora.labels`.
        routes: names of the teachers of which each row has one; empty with one teacher, or with a mixture.
        teacher_column: the column that names a row's teacher.
        teacher_prompt: a template of the prompt that the teacher reads in place of the row's own; None for
            the same prompt.
        kd_ratio, divergence, feature_matches: those of the loss, which say whether it needs labels.
    """

    max_length: int
    max_target_length: int
    packing: bool
    class_names: list[str] | None
    chat_template_kwargs: dict[str, Any] | str | None
    rewritten_turns: str
    problem_type: str | None
    routes: list[str]
    teacher_column: str
    teacher_prompt: str | None
    kd_ratio: float
    divergence: str
    feature_matches: Any

    @property
    def process_index(self) -> int: ...

    def main_process_first(self, local: bool = True, desc: str = "work") -> AbstractContextManager[Any]:
        """Runs the block on the main process first, so that the others read what it has cached."""


class RowSettings(Protocol):
    """The settings that name rows: files or a data set of the hub, and the names of its columns."""

    train_file: list[str] | str | None
    eval_file: list[str] | str | None
    dataset: str | None
    train_split: str
    eval_split: str | None
    column_mapping: dict[str, str] | str | None
    packing: bool
