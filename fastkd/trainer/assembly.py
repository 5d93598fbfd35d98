"""Puts a student, its teacher and the losses between them into one module, and checks that they fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from fastkd.corpora.tasks import TASKS, Task
from fastkd.trainer.classes import fit_classes
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.crossing import Crossing
from fastkd.trainer.loading import check_tokens_of
from fastkd.trainer.matching import Matching
from fastkd.trainer.sampled import SampledObjective
from fastkd.trainer.sides import (
    check_documents_are_apart,
    common_columns,
    padding_token,
    student_head,
    teacher_side,
)
from fastkd.trainer.student import DistilledStudent
from fastkd.trainer.teachers import (
    BaseTeacher,
    CrossedTeacher,
    LiveTeacher,
    PromptedTeacher,
    RoutedTeachers,
    SelfTeacher,
    ServedTeacher,
    Teacher,
)
from fastkd.trainer.teachers.several import each_of


def distilled(
    model: Any,
    teacher: PreTrainedModel | Teacher | None,
    args: DistillationConfig,
    tokenizer: Any,
    datasets: Sequence[Any] = (),
    crossing: Crossing | None = None,
) -> DistilledStudent:
    """The student in the module that computes its loss.

    Args:
        model: the student.
        teacher: as for :class:`DistillationTrainer`. A :class:`BaseTeacher` of another student becomes one of
            this student.
        args: the configuration.
        tokenizer: the tokenizer; None if there is none.
        datasets: the rows of the run, encoded or not, or None, in which a classifier's problem and classes
            are looked up.
        crossing: the tokenizers of both sides, if the teacher has one of its own.

    Raises:
        ValueError: student, teacher and configuration do not fit.
    """
    if teacher is None and args.kd_ratio > 0:
        raise ValueError(f"kd_ratio={args.kd_ratio} needs a teacher; kd_ratio=0 trains on the labels alone")
    task = TASKS[args.task]
    head = student_head(model, args)
    if isinstance(teacher, BaseTeacher) and teacher.model is not model:
        teacher = BaseTeacher(model, task, fused=head is not None)
    if isinstance(teacher, SelfTeacher) and teacher.student is not model:
        teacher = SelfTeacher(model, task, head is not None, teacher.weights, teacher.decay)
    side = teacher_side(model, teacher, task, fused=head is not None)
    if crossing is not None:
        return _crossed(model, side, head, args, crossing, tokenizer)
    for one in each_of(side).values():
        if isinstance(one, LiveTeacher):
            check_tokens_of(one.model, tokenizer, args)
        if isinstance(one, ServedTeacher):
            one.check(args, tokenizer)
    vocab_size = common_columns(model, side, tokenizer, task)
    beside = side
    if args.task == "classification":
        beside = fit_classes(model, side, args, datasets)
    matching = None
    if args.feature_matches or args.gradient_match_weight:
        if not isinstance(side, (LiveTeacher, BaseTeacher)):
            raise ValueError(
                "feature_matches and gradient_match_weight compare layers of the teacher: "
                "give one model, not a cache or a server"
            )
        matching = Matching(
            model, side.model, args.feature_matches or [], args.gradient_match_weight, vocab_size
        )
    if args.packing:
        check_documents_are_apart(model, task)
    options = {**args.loss_options(), "vocab_size": vocab_size, "problem_type": args.problem_type}
    if args.teacher_prompt is not None and beside is not None:
        beside = _prompted(beside, task, padding_token(model, tokenizer))
    sampled = None
    if args.objective == "sampled":
        sampled = SampledObjective(args.sampled_estimator, args.sampled_advantage_clip, vocab_size)
    return DistilledStudent(model, task, head, beside, options, matching, sampled)


def _crossed(
    model: Any, side: Any, head: Any, args: DistillationConfig, crossing: Crossing, tokenizer: Any
) -> DistilledStudent:
    """The student of a teacher with another tokenizer."""
    if not isinstance(side, LiveTeacher):
        raise ValueError("cross_tokenizer needs one teacher that is a model and reads its own tokens")
    common_columns(model, None, tokenizer, crossing.task)
    common_columns(side.model, None, crossing.tokenizer, crossing.task)
    return DistilledStudent(
        model,
        crossing.task,
        head,
        CrossedTeacher(side),
        {**args.loss_options(), "vocab_size": None, "problem_type": None},
        crossed=crossing.objective,
    )


def _prompted(teacher: Teacher, task: Task, pad_token_id: int) -> Teacher:
    """The teacher with prompts of its own; of several, each."""
    if not teacher.live:
        raise ValueError("teacher_prompt needs a teacher that reads: a cache has read the student's prompts")
    if isinstance(teacher, RoutedTeachers):
        return RoutedTeachers(
            {name: _prompted(one, task, pad_token_id) for name, one in teacher.teachers.items()}
        )
    return PromptedTeacher(teacher, task, pad_token_id)
