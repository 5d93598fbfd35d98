"""The loss of a batch from both models' distributions, and the sums that are reported with it.

Some texts of a classifier may have no label (``UNLABELLED``). With r = ``kd_ratio``, the N targets of the
whole batch that are not masked, and cross-entropy only at those that have a label,

    L = 1 / N * sum over the targets of (r * D(p, q) + (1 - r) * CE, where there is a label)

so that all texts have the same weight. With r = 0 only targets with a label count. ``decoupled`` compares
labels inside its divergence, so it takes no text without one.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastkd import SparseTeacher, kd_loss, linear_kd_loss
from fastkd.corpora.labels import LABEL_DIVERGENCES, REGRESSION, UNLABELLED
from fastkd.corpora.tasks import IGNORE_INDEX
from fastkd.trainer.models import Distribution, HiddenLogits, detach
from fastkd.trainer.regression import measure_squares, squared_loss

# Sums over tokens by name, so that batches and processes can be added. "tokens" is the number of tokens. A
# classifier also has "labelled", the number of those that have a label, and "counted", the number of those
# over which the loss is averaged. With a teacher of another tokenizer there is "aligned", the number of those
# that are aligned with the teacher's.
Sums = dict[str, Tensor]
# The metrics of a classifier that compare with the labels.
_WITH_LABELS = ("ce", "teacher_ce", "accuracy", "teacher_accuracy", "mse", "teacher_mse")


def loss(
    student: Tensor | HiddenLogits,
    teacher: Distribution | None,
    targets: Tensor,
    options: dict[str, Any],
    **more: Any,
) -> Any:
    """:func:`fastkd.kd_loss` for a student's logits, :func:`fastkd.linear_kd_loss` for its hidden states; for
    a regression, :func:`fastkd.trainer.regression.squared_loss`.

    The teacher may be None if ``kd_ratio`` is 0. A classifier's options also have its ``problem_type``.
    """
    options = {**options, **more}
    problem = options.pop("problem_type", None)
    if problem == REGRESSION:
        assert isinstance(student, Tensor) and (teacher is None or isinstance(teacher, Tensor))
        return squared_loss(student, teacher, targets, options["kd_ratio"], options.get("num_items"))
    if problem is not None:
        return _classifier_loss(student, teacher, targets, options)
    if isinstance(student, Tensor):
        return kd_loss(student, teacher, targets, **options)
    return linear_kd_loss(
        student.hidden,
        student.weight,
        teacher,
        targets,
        student_bias=student.bias,
        logit_scale=student.logit_scale,
        logit_softcap=student.logit_softcap,
        **options,
    )


def _classifier_loss(student: Any, teacher: Any, targets: Tensor, options: dict[str, Any]) -> Any:
    """:func:`fastkd.kd_loss` of a classifier, some of whose targets may have no label; see the top of this
    file.
    """
    ratio = options["kd_ratio"]
    if _needs_labels(teacher, options):
        return kd_loss(student, teacher, _labelled(targets), **options)
    if ratio == 1:
        return kd_loss(student, teacher, _any_class(targets), **options)
    if options.get("num_items") is None:
        options["num_items"] = (targets != IGNORE_INDEX).sum()
    # The targets without a label have a call of their own, which gives exactly 0 where there is none. The
    # loss never has to ask whether there is one, for which a GPU would have to be waited for.
    rest = torch.where(targets == UNLABELLED, 0, IGNORE_INDEX)
    both = kd_loss(student, teacher, _labelled(targets), **options)
    return both + ratio * kd_loss(student, teacher, rest, **{**options, "kd_ratio": 1.0})


def _needs_labels(teacher: Any, options: dict[str, Any]) -> bool:
    """Whether a target without a label has no loss at all."""
    return teacher is None or options["kd_ratio"] == 0 or options["divergence"] in LABEL_DIVERGENCES


def _labelled(targets: Tensor) -> Tensor:
    """The targets with those masked that have no label."""
    return targets.where(targets != UNLABELLED, IGNORE_INDEX)


def _any_class(targets: Tensor) -> Tensor:
    """The targets with some class where there is no label, for a loss that counts all of them and reads none
    of their labels.
    """
    return targets.where(targets != UNLABELLED, 0)


@torch.no_grad()
def measure(
    student: Tensor | HiddenLogits,
    teacher: Distribution | None,
    targets: Tensor,
    options: dict[str, Any],
) -> Sums:
    """The metrics of a batch, as sums over its valid targets, and the number of those, ``tokens``.
    Metrics that compare with labels are summed over the targets that have one.

    These are ``loss``, ``ce`` (never smoothed) and ``student_entropy``; with a teacher also ``kd``,
    ``teacher_entropy``, ``agreement`` (top-1) and, if the teacher gives every token a probability,
    ``teacher_ce``, or from a cache's likeliest tokens ``teacher_ce_bound``, the least that it can be; for a
    classifier also ``accuracy`` and, if the teacher gives logits, ``teacher_accuracy``.
    A multi-label classifier has a target per label. For a regression see
    :func:`fastkd.trainer.regression.measure_squares`.
    """
    problem = options.get("problem_type")
    if problem == REGRESSION:
        return measure_squares(student, teacher, targets, options["kd_ratio"])  # type: ignore[arg-type]
    student = detach(student)
    teacher = None if teacher is None else detach(teacher)
    ratio, smoothing = 0.0 if teacher is None else options["kd_ratio"], options["label_smoothing"]
    classifies = isinstance(student, Tensor) and (problem is not None or student.dim() == 2)
    # The divergence is measured even if it is not part of the loss.
    both = {**options, "label_smoothing": 0.0, "kd_ratio": ratio}
    if classifies and teacher is not None and options["divergence"] not in LABEL_DIVERGENCES:
        both["kd_ratio"] = 1.0  # over all targets, with a label or without
        targets = targets if problem else _any_class(targets)
    elif classifies:
        targets = _labelled(targets)
    _, metrics = loss(student, teacher, targets, both, return_metrics=True)
    found = {"kd": metrics.kd, "ce": metrics.ce, "student_entropy": metrics.student_entropy}
    found |= {"teacher_entropy": metrics.teacher_entropy, "agreement": metrics.agreement}
    ce_only = {"kd_ratio": 0.0, "vocab_size": options["vocab_size"]}
    if classifies:  # some texts may have no label
        targets = _labelled(targets)
        found["ce"] = loss(student, None, targets, ce_only)
    smooth = found["ce"]
    if smoothing:
        smooth = loss(student, None, targets, {**ce_only, "label_smoothing": smoothing})
    found["loss"] = smooth if ratio == 0 else ratio * metrics.kd + (1 - ratio) * smooth
    if teacher is None:
        for name in ("kd", "teacher_entropy", "agreement"):
            del found[name]
    elif not isinstance(teacher, SparseTeacher):
        found["teacher_ce"] = loss(teacher, None, targets, ce_only)
    elif teacher.tail != "drop" and not classifies:
        found["teacher_ce_bound"] = _least_cross_entropy(teacher, targets)
    count = metrics.num_valid.float()
    sums = {"tokens": count}
    if classifies:
        labelled = sums["labelled"] = (targets != IGNORE_INDEX).sum().float()
        for name, side in (("accuracy", student), ("teacher_accuracy", teacher)):
            if isinstance(side, Tensor):
                found[name] = (side.argmax(-1) == targets).sum() / labelled.clamp(min=1)
    else:
        labelled = count
    for name, value in found.items():
        sums[name] = value.float() * (labelled if name in _WITH_LABELS else count)
    if classifies:  # its two parts are means over different numbers of targets
        sums["counted"] = labelled if ratio == 0 else count
        sums["loss"] = (1 - ratio) * smooth.float() * labelled + (ratio * sums["kd"] if ratio else 0.0)
    return sums


def _least_cross_entropy(teacher: SparseTeacher, targets: Tensor) -> Tensor:
    """The least cross-entropy that a teacher can have of whose distributions the likeliest tokens are known:
    any other token is no likelier than the last of them, and than all the others together.
    """
    valid = targets != IGNORE_INDEX
    logprobs = teacher.logprobs.float()
    listed = logprobs.masked_fill(teacher.indices != targets.unsqueeze(-1), -math.inf).amax(-1)
    known = logprobs.exp()
    # The entries were rounded to float16, by at most 2**-11 of each logarithm.
    rounding = (known * logprobs.masked_fill(known == 0, 0.0).abs()).sum(-1) * 2**-11
    rest = (1 - known.sum(-1) + rounding).clamp(min=2**-24).log()
    last = logprobs.masked_fill(known == 0, math.inf).amin(-1)
    most = torch.where(listed > -math.inf, listed, torch.minimum(last, rest))
    # The masked positions are left out of the sum alone: selecting the others would have a GPU waited for.
    return -torch.where(valid, most, 0.0).sum() / valid.sum().clamp(min=1)


def means(sums: dict[str, float], prefix: str = "") -> dict[str, float]:
    """The means to report, from the sums; language models also get perplexities. Without any label there is
    no mean of what compares with labels.
    """
    tokens = sums["tokens"]
    found = {name: value / tokens if tokens else math.nan for name, value in sums.items() if name != "tokens"}
    if (labelled := sums.get("labelled")) is not None:  # of a classifier
        del found["labelled"], found["counted"]
        found["loss"] = sums["loss"] / sums["counted"] if sums["counted"] else math.nan
        for name in found.keys() & set(_WITH_LABELS):
            if labelled:
                found[name] = sums[name] / labelled
            else:
                del found[name]
    else:
        if (aligned := sums.get("aligned")) is not None and "teacher_ce" in sums:
            # A teacher with another tokenizer: its cross-entropy too is per token of the student's.
            found["teacher_ce"] = sums["teacher_ce"] / aligned if aligned else math.nan
        found["perplexity"] = _perplexity(found["ce"])
        for ending in ("", "_bound"):
            if f"teacher_ce{ending}" in found:
                found[f"teacher_perplexity{ending}"] = _perplexity(found[f"teacher_ce{ending}"])
    return {f"{prefix}{name}": value for name, value in found.items()}


def _perplexity(cross_entropy: float) -> float:
    return math.inf if cross_entropy >= 700 else math.exp(cross_entropy)  # NaN stays NaN
