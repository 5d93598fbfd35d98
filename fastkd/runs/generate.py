"""Sequence-level distillation: the teacher writes the training data (Kim & Rush 2016).

``beam`` takes the teacher's best beam, which stands for the mode of its distribution over whole sequences;
``sample`` draws from that distribution; ``interpolate`` takes the beam that is nearest to the data's own
answer, so that the student learns something that is both likely and right.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Value
from transformers import PreTrainedModel

from fastkd.corpora.conversations import conversation, listed_messages
from fastkd.corpora.decode import Answer, Question, questions
from fastkd.corpora.languages import languages_of, prepare_model
from fastkd.corpora.rows import load_rows
from fastkd.corpora.store import Manifest
from fastkd.corpora.store.fingerprints import tokenizer_fingerprint
from fastkd.corpora.tasks import TASKS, Task
from fastkd.corpora.turns import as_content
from fastkd.directories import claimed
from fastkd.runs import pseudo_labels
from fastkd.runs.output_directory import refuse_inputs
from fastkd.runs.scores import sentence_scorer
from fastkd.runs.shards import (
    REFERENCE,
    SHARD_ROWS,
    counted,
    refuse_columns,
    row_hash,
    write_set,
)
from fastkd.runs.written import ModelWriter, ServedWriter, Writer, longest
from fastkd.trainer import zero
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.loading import load_teacher_model, load_tokenizer, teacher_tokenizer, with_languages
from fastkd.trainer.teachers import ServedTeacher, TeacherSource, require_model

logger = logging.getLogger(__name__)


def generate(args: DistillationConfig) -> Manifest:
    """Write the answers of ``teacher`` to the prompts of ``train_file`` into ``output_dir``; of a classifier,
    its labels of the texts (:func:`fastkd.runs.pseudo_labels.label_rows`).

    The teacher uses its own tokenizer, which need not be the student's.

    Returns:
        The manifest; its ``notes`` count the answers that are empty or were cut at the length limit.

    Raises:
        ValueError: settings that name no teacher or no data, data without prompts, a directory that was
            begun with other settings, or that another run writes into.
        OSError: the directory cannot be written.
    """
    labels = args.task == "classification"
    served = TeacherSource.parse(args.teacher).is_served
    if not served:
        require_model(args.teacher, f"only a model can {'label texts' if labels else 'generate text'}")
    elif args.model is None:
        raise ValueError("model is not set: the answers of a served teacher need the student's tokenizer")
    if labels:
        pseudo_labels.check_mode(args)
    if args.world_size > 1:
        raise ValueError(f"one process generates, not {args.world_size}: start it without torchrun")
    refuse_inputs(args, checkpoints_too=False)
    zero.leave(args)
    folder = Path(str(args.output_dir))
    with claimed(folder):
        rows = load_rows("train_file", args)
        if rows is None:
            raise ValueError("train_file is not set: give a json, jsonl, csv or parquet file with prompts")
        if labels:
            args = pseudo_labels.settled(args, rows)
        teacher = ServedTeacher(args) if served else None
        own = teacher_tokenizer(args)
        tokenizer = load_tokenizer(args) if own is None else with_languages(own, args)
        write: Callable[..., Manifest] = pseudo_labels.label_rows if labels else generate_rows
        made = write(teacher or load_teacher_model(args), tokenizer, rows, folder, args)
    if labels:
        return made
    cut, empty = made.notes["cut"], made.notes["empty"]
    if cut:
        logger.warning(
            "%d of %d answers were cut at %d tokens: raise max_completion_length (and max_target_length)",
            *(cut, made.rows, longest(args)),
        )
    if empty:
        logger.warning("%d of %d answers are empty and will not be trained on", empty, made.rows)
    return made


def generate_rows(
    teacher: PreTrainedModel | ServedTeacher,
    tokenizer: Any,
    rows: Dataset,
    folder: Path,
    args: DistillationConfig,
    shard_rows: int = SHARD_ROWS,
) -> Manifest:
    """As :func:`generate`, with a teacher, its tokenizer and raw rows.

    An existing directory is resumed; at most its unfinished shard is lost. Rows that training would leave out
    are left out here too. The answer's column receives the teacher's answer, a new column ``reference`` holds
    the data's own (if the data has answers), and all other columns are kept.

    Args:
        teacher: a model, frozen in place and put into eval mode, or one behind a URL.
        shard_rows: number of rows in a shard.

    Raises:
        ValueError: data without prompts or with a column ``reference``, a directory that was begun with
            other settings.
    """
    task = TASKS[args.task]
    if isinstance(teacher, PreTrainedModel) and task.name == "seq2seq":
        prepare_model(teacher, tokenizer, args)
    refuse_columns(rows, REFERENCE)
    rows, labelled = _with_answers(rows, task, args)
    layout = task.layout_of(rows.column_names, "train_file")
    asked = questions(rows, task, tokenizer, args, "train_file")
    hashes = [row_hash(rows[question.row]) for question in asked]
    writer: Writer
    if isinstance(teacher, ServedTeacher):
        writer = ServedWriter(teacher, tokenizer, args)
    else:
        writer = ModelWriter(teacher, tokenizer, args)
    made_from = {
        "task": task.name,
        "generation_mode": args.generation_mode,
        **_decoding(args),
        "max_length": args.max_length,
        "max_completion_length": longest(args),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "chat_template_kwargs": args.chat_template_kwargs,
        **languages_of(tokenizer),
        **writer.settings,
    }

    def shard(first: int, last: int, bar: Any) -> tuple[Dataset, int, dict[str, Any]]:
        answers = _answers(writer, asked[first:last], first, args, bar)
        made = _answered(rows, asked[first:last], answers, layout, labelled, tokenizer, args)
        counts = {
            "cut": sum(not answer.complete for answer in answers),
            "empty": sum(not answer.text.strip() for answer in answers),
        }
        return made, sum(len(answer.tokens) for answer in answers), counts

    written = write_set(folder, made_from, hashes, shard, args, writer.made_by, "generating", shard_rows)
    return counted(written, ("cut", "empty"))


def _with_answers(rows: Dataset, task: Task, args: DistillationConfig) -> tuple[Dataset, bool]:
    """The rows, and whether the data has answers. All modes but ``interpolate`` need only prompts."""
    columns = set(rows.column_names)
    if args.generation_mode == "interpolate" or any(set(layout) <= columns for layout in task.layouts):
        return rows, True
    for layout in task.layouts:
        if len(layout) > 1 and set(layout[:-1]) <= columns:
            # A placeholder, since a row without an answer would be left out.
            return rows.add_column(layout[-1], ["?"] * len(rows)), False
    return rows, True


def _decoding(args: DistillationConfig) -> dict[str, Any]:
    """The settings that ``generation_mode`` uses."""
    options = {"generation_kwargs": args.generation_kwargs} if args.generation_kwargs else {}
    if args.generation_mode == "sample":
        return {"sampling_temperature": args.sampling_temperature, "seed": args.seed, **options}
    if args.generation_mode == "interpolate":
        return {"num_beams": args.num_beams, "interpolate_metric": args.interpolate_metric, **options}
    return {"num_beams": args.num_beams, **options}


def _answers(
    writer: Writer, asked: Sequence[Question], first: int, args: DistillationConfig, bar: Any
) -> list[Answer]:
    """One answer to each question of a shard; ``first`` is the number of its first question among all."""
    score = None
    if args.generation_mode == "interpolate":
        score = sentence_scorer(args.interpolate_metric, [question.reference for question in asked])
    found: dict[int, Answer] = {}
    for number, answers in writer.answers(asked, first, several=score is not None):
        best = 0 if score is None else nearest(answers, asked[number].reference, score)
        found[number] = answers[best]
        bar.update()
    return [found[number] for number in range(len(asked))]


def nearest(answers: Sequence[Answer], reference: str, score: Callable[[str, str], float]) -> int:
    """The number of the answer that is most like the reference; among equals, the likeliest."""
    scores = [score(answer.text, reference) for answer in answers]
    return scores.index(max(scores))


def _answered(
    rows: Dataset,
    asked: Sequence[Question],
    answers: Sequence[Answer],
    layout: tuple[str, ...],
    labelled: bool,
    tokenizer: Any,
    args: DistillationConfig,
) -> Dataset:
    part = rows.select([question.row for question in asked])
    columns: dict[str, list[Any]] = {name: part[name][:] for name in part.column_names}
    features = part.features.copy()
    if layout == ("messages",):
        columns["messages"] = [
            _replaced(row, answer.text, tokenizer, args) for row, answer in zip(part, answers, strict=True)
        ]
    else:
        columns[layout[-1]] = [answer.text for answer in answers]
        features[layout[-1]] = Value("string")
    if labelled:
        columns[REFERENCE] = [question.reference for question in asked]
        features[REFERENCE] = Value("string")
    return Dataset.from_dict(columns, features=features)


def _replaced(
    row: dict[str, Any], text: str, tokenizer: Any, args: DistillationConfig
) -> list[dict[str, Any]]:
    """A conversation up to its last answer, which is replaced by the teacher's. Thoughts and tool calls are
    part of the teacher's text.
    """
    chat = conversation(row, tokenizer, args)
    last = chat.answers()[-1]
    content: Any = as_content(chat.until(last), text)
    messages = listed_messages(row["messages"])
    before = messages[last]
    if isinstance(before.get("content"), list):
        content = [{**dict.fromkeys(before["content"][0]), "type": "text", "text": content}]
    return [*messages[:last], {**dict.fromkeys(before), "role": "assistant", "content": content}]
