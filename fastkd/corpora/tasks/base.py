"""The interface of a task, and the parts that all tasks share."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from fastkd.corpora.caching import names_the_cache
from fastkd.corpora.known_columns import columns_of, proposal
from fastkd.corpora.local_files import where
from fastkd.corpora.settings import TaskSettings
from fastkd.corpora.spans import ALIGNED, Aligner
from fastkd.corpora.tasks.encoded import IGNORE_INDEX as IGNORE_INDEX, Row as Row, unpadded
from fastkd.corpora.tasks.forms import TOKENS, WITHOUT_PROMPT, check_values
from fastkd.corpora.teacher_prompts import TEACHER_PROMPT, check_columns, columns_in, prompted

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Batch = dict[str, Any]
# A row's number among several teachers, in encoded rows.
ROUTE = "teacher"
# Columns that are not read and are nothing to mention: what `fastkd generate` keeps of the data and writes
# beside a classifier's labels.
_KNOWN_EXTRAS = ("reference", "teacher_probabilities", "teacher_prediction")


class Task(ABC):
    """Turns rows into tokens, tokens into batches, and batches into a model's inputs.

    Attributes:
        name: as in the setting ``task``.
        auto_class: the class of ``transformers`` that loads its models.
        layouts: the sets of columns that the task can read, the preferred one first. In those of several
            columns, the last one is the answer.
        beside: columns that are read where they exist, by a column of a layout.
        remarks: columns of encoded rows, besides their tokens and labels, that :meth:`remark` reads.
        writes_text: whether its models write text, so that they can answer prompts.
        shifts_labels: whether position i of the logits predicts label i + 1 rather than label i.
    """

    name: str
    auto_class: Any
    layouts: tuple[tuple[str, ...], ...]
    beside: ClassVar[dict[str, tuple[str, ...]]] = {}
    writes_text = True
    remarks: ClassVar[tuple[str, ...]] = ("cut",)
    shifts_labels = False

    @abstractmethod
    def encode(
        self, row: Row, layout: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, args: TaskSettings
    ) -> Row | None:
        """A row's tokens: ``input_ids``, ``labels``, ``cut`` (whether anything was cut). None for a row with
        nothing to learn, such as an empty one.
        """

    def encode_prompt(
        self, row: Row, layout: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, args: TaskSettings
    ) -> Row | None:
        """As :meth:`encode`, for a run in which the student writes every answer: a row without labels, which
        is a prompt. Its layout may lack the answer.
        """
        return self.encode(row, layout, tokenizer, args)

    def encode_all(
        self, row: Row, layout: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, args: TaskSettings
    ) -> list[Row]:
        """All rows that a raw row becomes, each as :meth:`encode` describes it."""
        made = self.encode(row, layout, tokenizer, args)
        return [] if made is None else [made]

    def canonical(
        self, row: Row, layout: tuple[str, ...], tokenizer: PreTrainedTokenizerBase
    ) -> tuple[Row, tuple[str, ...]]:
        """The row and its layout in one of the forms that :meth:`encode` reads.

        Raises:
            ValueError: a value that is not text.
        """
        check_values(row, layout)
        return row, layout

    def read(
        self,
        row: Row,
        layout: tuple[str, ...],
        tokenizer: PreTrainedTokenizerBase,
        args: TaskSettings,
        needs_answer: bool = True,
    ) -> list[Row]:
        """The encoded rows that a raw row becomes, as :meth:`encode_all` or, unless it needs an answer,
        :meth:`encode_prompt` makes them; none for a row with nothing to learn.

        Raises:
            ValueError: a value that is not text, or that the task refuses.
        """
        if needs_answer or not self.writes_text:
            return self.encode_all(*self.canonical(row, layout, tokenizer), tokenizer, args)
        prompt = layout[:-1] if len(layout) > 1 and layout in self.layouts else layout
        made = self.encode_prompt(*self.canonical(row, prompt, tokenizer), tokenizer, args)
        return [] if made is None else [made]

    def prompt_of_teacher(
        self, row: Row, layout: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, args: TaskSettings
    ) -> list[int]:
        """The tokens of the prompt that the teacher reads in place of the row's own (``teacher_prompt``).

        Raises:
            ValueError: a row without a prompt, or a conversation with several answers.
        """
        if layout in WITHOUT_PROMPT:
            raise ValueError("teacher_prompt takes the place of a prompt, and this text has none")
        column = layout[0]
        other = prompted(row, str(args.teacher_prompt), column)
        made = self.encode_prompt(*self.canonical(other, (column,), tokenizer), tokenizer, args)
        if made is None:
            raise ValueError("teacher_prompt makes an empty prompt")
        return list(made["input_ids"])

    @abstractmethod
    def collate(self, rows: Sequence[Row], pad_token_id: int) -> Batch:
        """Encoded rows as int64 tensors, padded on the right; ``labels`` is -100 where there is no label."""

    @abstractmethod
    def model_inputs(self, model: Any, batch: Batch) -> dict[str, Any]:
        """The keywords of the model's forward."""

    def targets(self, labels: Tensor) -> Tensor:
        """The labels, moved to the positions that predict them."""
        return labels

    def prepared(self, rows: Dataset) -> Dataset:
        """The raw rows, or a stream of them, in the form that :meth:`read` reads."""
        return rows

    def further_fields(self, layout: tuple[str, ...]) -> tuple[str, ...]:
        """The fields of encoded rows, besides their tokens and labels, that a model reads."""
        return ()

    def check_encoded(  # noqa: B027  most tasks have nothing to check
        self, rows: Dataset, args: TaskSettings, field: str, columns: Sequence[str]
    ) -> None:
        """Look over all encoded rows, and raise a ``ValueError`` if nothing can be learned from them.

        Args:
            columns: those of the rows before they were encoded.
        """

    def layout_of(self, columns: Sequence[str], field: str, needs_answer: bool = True) -> tuple[str, ...]:
        """The first layout whose columns all exist; unless answers are needed, also one without its answer.

        Raises:
            ValueError: no layout has all its columns.
        """
        prompts = [layout[:-1] for layout in self.layouts if len(layout) > 1 and self.writes_text]
        alone = next((layout for layout in prompts if set(layout) <= set(columns)), None)
        for layout in self.layouts:
            if set(layout) <= set(columns) and (needs_answer or alone is None or layout != ("text",)):
                return layout
        if alone is not None and not needs_answer:
            return alone
        if alone is not None:
            answer = next(layout[-1] for layout in self.layouts if layout[:-1] == alone)
            raise ValueError(
                f"{field} has the columns {', '.join(columns)} and no answers: add a column {answer}, or "
                "name it with column_mapping (training on prompts alone is on-policy: lmbda: 1)"
            )
        wanted = " or ".join("+".join(layout) for layout in self.layouts)
        named = [layout for layout in self.layouts if layout != TOKENS]  # no column of text holds tokens
        raise ValueError(
            f"{field} has the columns {', '.join(columns)}, but {self.name} reads {wanted}: "
            f"name them with column_mapping, for example {proposal(columns, named)}"
        )

    def columns_read(self, layout: tuple[str, ...], columns: Sequence[str]) -> list[str]:
        """The columns of a layout, and those beside it that are read where they exist."""
        more = [name for last in layout for name in self.beside.get(last, ()) if name in columns]
        return list(dict.fromkeys([*layout, *more]))

    def unread(self, layout: tuple[str, ...], columns: Sequence[str]) -> list[str]:
        """The columns that nobody reads, in their order."""
        known = {*self.columns_read(layout, columns), *_KNOWN_EXTRAS}
        return [name for name in columns if name not in known]

    @names_the_cache
    def tokenize(
        self,
        rows: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        args: TaskSettings,
        field: str,
        needs_answer: bool = True,
        teacher_tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> Dataset:
        """The text rows in encoded form; logs how many texts were cut and how many rows were left out, and
        which columns were not read.

        Args:
            rows: a data set, or a stream of `datasets`, whose rows are encoded as they are read.
            field: name of the setting or argument, for messages.
            needs_answer: False for a run in which the student writes every answer.
            teacher_tokenizer: the teacher's, if it is another one; rows then have the columns
                :data:`fastkd.corpora.spans.ALIGNED`, too.

        Raises:
            ValueError: columns that the task does not read, values that are not text, or no text at all.
        """
        columns = columns_of(rows)
        layout = self.layout_of(columns, field, needs_answer)
        read = self.columns_read(layout, columns)
        fields: tuple[str, ...] = ("input_ids", "labels", *self.further_fields(layout))
        numbered, template = {name: i for i, name in enumerate(args.routes)}, args.teacher_prompt
        read = [*dict.fromkeys([*read, *teachers_columns(args, field, columns)])]
        fields += (ROUTE,) if numbered else ()
        fields += () if template is None else (TEACHER_PROMPT,)
        aligner = None
        if teacher_tokenizer is not None:
            fields += ALIGNED
            aligner = Aligner(tokenizer, teacher_tokenizer, self.shifts_labels)
        remarks = [*self.remarks, "row"]
        rows = self.prepared(rows)

        def encode(batch: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
            kept = []
            for i, number in enumerate(numbers):
                row = {name: batch[name][i] for name in read}
                try:
                    made = self.read(row, layout, tokenizer, args, needs_answer)
                    if aligner is not None and teacher_tokenizer is not None:
                        other = self.read(row, layout, teacher_tokenizer, args, needs_answer)
                        made = aligner.beside(made, other)
                except (ValueError, TypeError, KeyError, AttributeError) as error:
                    raise ValueError(f"{where(field, number, args)}: {error}") from error
                further: Row = {"row": number}
                if numbered:
                    further[ROUTE] = route(row[args.teacher_column], numbered, where(field, number, args))
                if template is not None and made:
                    try:
                        further[TEACHER_PROMPT] = self.prompt_of_teacher(row, layout, tokenizer, args)
                    except ValueError as error:
                        raise ValueError(f"{where(field, number, args)}: {error}") from error
                kept += [{**encoded, **further} for encoded in made]
            columns = {name: [row[name] for row in kept] for name in fields}
            return columns | {name: [int(row.get(name, 0)) for row in kept] for name in remarks}

        if args.process_index == 0 and (
            unread := [name for name in self.unread(layout, columns) if name not in read]
        ):
            logger.warning("%s is read as %s; %s", field, "+".join(read), unread_phrase(unread))
        options: dict[str, Any] = {"batched": True, "with_indices": True, "remove_columns": columns}
        if not hasattr(rows, "__len__"):
            return rows.map(encode, **options).remove_columns(remarks)
        with args.main_process_first(desc=f"tokenizing {field}"):
            found = rows.map(encode, **options, desc=f"tokenizing {field}")
        if len(found) == 0:
            raise ValueError(f"{field} holds no text" if len(rows) else f"{field} has no rows")
        lost = len(rows) - len(set(found["row"]))
        if args.process_index == 0:
            if lost:
                logger.warning("%s: %d of %d rows %s", field, lost, len(rows), self.why_left_out(layout))
            self.remark(found, args, field)
        found = found.remove_columns(remarks)
        self.check_encoded(found, args, field, columns)
        return found

    def remark(self, found: Dataset, args: TaskSettings, field: str) -> None:
        """Log what the columns ``remarks`` of encoded rows say."""
        if cut := sum(found["cut"]):
            logger.warning("%s: %d of %d %s", field, cut, len(found), self.what_was_cut(args))

    def why_left_out(self, layout: tuple[str, ...]) -> str:
        """The end of the sentence that says how many rows are left out."""
        why = (
            "have no answer of an assistant"
            if layout == ("messages",)
            else f"have no {' or no '.join(layout)}"
        )
        return f"{why}, and are left out"

    @abstractmethod
    def what_was_cut(self, args: TaskSettings) -> str: ...


def teachers_columns(args: TaskSettings, field: str, columns: Sequence[str]) -> list[str]:
    """The columns that name a row's teacher or make its prompt; empty for one teacher with the same prompt.

    Raises:
        ValueError: data without one of them.
    """
    if args.routes and args.teacher_column not in columns:
        raise ValueError(
            f"{field} has no column {args.teacher_column}, which names the teacher of each row "
            f"({', '.join(args.routes)}): add it, or name it with teacher_column; with teacher_weights all "
            "teachers are mixed"
        )
    found = [args.teacher_column] if args.routes else []
    if args.teacher_prompt is not None:
        check_columns(args.teacher_prompt, columns, field)
        found += columns_in(args.teacher_prompt)
    return found


def route(name: Any, numbers: dict[str, int], place: str) -> int:
    """The number of the teacher that a row names.

    Raises:
        ValueError: a name that is none of theirs.
    """
    if name not in numbers:
        raise ValueError(f"{place} names the teacher {name!r}, and there are {', '.join(numbers)}")
    return numbers[name]


class Collator:
    """A task's ``collate`` as the data collator of a data loader, which can add further columns.

    Args:
        task, pad_token_id: as for :meth:`Task.collate`.
        more: functions that receive the rows and the batch, and return the columns to add to the batch.
    """

    def __init__(
        self,
        task: Task,
        pad_token_id: int,
        more: Sequence[Callable[[Sequence[Row], Batch], Batch]] = (),
    ) -> None:
        self.task, self.pad_token_id, self.more = task, pad_token_id, tuple(more)

    def __call__(self, rows: Sequence[Row]) -> Batch:
        rows = [unpadded(row, self.task.shifts_labels) for row in rows]
        batch = self.task.collate(rows, self.pad_token_id)
        if any("attention_mask" in row for row in rows):  # tokens that are masked between others
            masks = [row.get("attention_mask", [1] * len(row["input_ids"])) for row in rows]
            batch["attention_mask"] = pad(masks, 0)
        for add in self.more:
            batch.update(add(rows, batch))
        return batch


def unread_phrase(unread: Sequence[str]) -> str:
    """The end of the sentence that names the columns that nobody reads."""
    return f"nobody reads the column{'s' if len(unread) > 1 else ''} {', '.join(unread)}"


def pad(sequences: Sequence[Any], value: int) -> Tensor:
    """The sequences as one int64 tensor ``(batch, longest)``, padded on the right."""
    made = torch.full((len(sequences), max(map(len, sequences))), value)
    for i, sequence in enumerate(sequences):
        made[i, : len(sequence)] = torch.as_tensor(sequence)
    return made


def closed(ids: list[int], eos: int | None) -> list[int]:
    """The ids with an end-of-sequence token, which is appended unless they end in one."""
    return ids if eos is None or (ids and ids[-1] == eos) else [*ids, eos]
