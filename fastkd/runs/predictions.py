"""A classifier's predictions on held-out rows, with its teacher's from the same pass, and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import EvalPrediction

from fastkd.corpora.labels import COLUMNS, MULTI_LABEL, REGRESSION
from fastkd.corpora.tasks import TASKS
from fastkd.runs import scores
from fastkd.trainer.trainer import DistillationTrainer

# The figures by which a classifier is judged, in addition to those that the trainer measures.
QUALITY = (
    *("accuracy", "macro_f1", "micro_f1", "exact_match"),
    *("mse", "mae", "pearson", "spearman"),
)
# Number of misclassified texts that the report shows.
MISTAKES = 10


@dataclass(frozen=True)
class Predictions:
    """The logits (or numbers) for all held-out rows, in the order of the rows, and their labels.

    Attributes:
        labels: as the collator makes them; negative or NaN where there is none.
        logits: the model's.
        teacher: its teacher's; None without a teacher, or if it does not know the likeliest class.
        names: the classes.
        problem: the problem that both solve.
    """

    labels: np.ndarray
    logits: np.ndarray
    teacher: np.ndarray | None
    names: Sequence[str]
    problem: str

    def scored(self, logits: np.ndarray) -> dict[str, Any]:
        """A model's scores, and for classes its ``f1`` by name and its ``confusion``."""
        if self.problem == REGRESSION:
            return scores.regression(self.labels, logits)
        if self.problem == MULTI_LABEL:
            return scores.multi_label(self.labels, logits > 0, self.names)
        matrix = scores.confusion(self.labels.tolist(), logits.argmax(-1).tolist(), len(self.names))
        return scores.classification(matrix, self.names)

    def quality(self, logits: np.ndarray) -> dict[str, float]:
        found = self.scored(logits)
        return {key: found[key] for key in QUALITY if found.get(key) is not None}

    def classes(self, logits: np.ndarray) -> dict[str, Any]:
        """``classes`` as in a model's part of the report; empty if it predicts numbers."""
        found = self.scored(logits)
        classes = {key: found[key] for key in ("f1", "classes", "confusion") if key in found}
        return {"classes": classes} if classes else {}

    def metrics(self) -> dict[str, float]:
        """The scores of both sides, the teacher's under names that begin with ``teacher_``."""
        found = self.quality(self.logits)
        if self.teacher is not None:
            found |= {f"teacher_{key}": value for key, value in self.quality(self.teacher).items()}
            if (ce := self._teacher_cross_entropy()) is not None:
                found["teacher_ce"] = ce
        return found

    def _teacher_cross_entropy(self) -> float | None:
        """None for other problems than one class per text, and for a cache that does not list every class."""
        known = self.labels >= 0
        if self.problem in (REGRESSION, MULTI_LABEL) or not known.any():
            return None
        assert self.teacher is not None
        logits = self.teacher[known].astype(float)
        if not np.isfinite(logits).all():
            return None
        return float(-_log_softmax(logits)[np.arange(len(logits)), self.labels[known]].mean())

    def mistakes(self, texts: Sequence[tuple[int, str]], labels: Sequence[Any]) -> list[dict[str, Any]]:
        """Rows whose class the model gets wrong, those of which it is most certain first.

        Args:
            texts: as :func:`held_out_texts` returns them.
            labels: their encoded labels. If these are in another order than the predictions, nothing is
                returned.
        """
        if self.problem in (REGRESSION, MULTI_LABEL) or self.labels.tolist() != list(labels):
            return []
        chosen = self.logits.argmax(-1)
        certain = np.exp(_log_softmax(self.logits.astype(float))).max(-1)
        wrong = np.flatnonzero((self.labels >= 0) & (chosen != self.labels))
        found = []
        for row in wrong[np.argsort(-certain[wrong], kind="stable")][:MISTAKES].tolist():
            entry = {
                "row": texts[row][0],
                "text": texts[row][1],
                "label": self.names[int(self.labels[row])],
                "prediction": self.names[int(chosen[row])],
                "probability": float(certain[row]),
            }
            if self.teacher is not None:
                entry["teacher"] = self.names[int(self.teacher[row].argmax())]
            found.append(entry)
        return found


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    found: np.ndarray = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return found


class Keeper:
    """Keeps the predictions of a classifier's last evaluation, and adds their scores to its metrics.

    Args:
        trainer: a classifier's; from now on its evaluations call this object.

    Attributes:
        last: the predictions, and the number of the optimizer step after which they were made.
    """

    def __init__(self, trainer: DistillationTrainer) -> None:
        self.trainer = trainer
        self.last: tuple[int, Predictions] | None = None
        trainer.compute_metrics = self
        trainer.predicts_teacher = True

    def __call__(self, output: EvalPrediction) -> dict[str, float]:
        given: Any = output.predictions
        logits, teacher = given if isinstance(given, tuple) else (given, None)
        args: Any = self.trainer.args
        config: Any = self.trainer.student.config
        names = args.class_names or [config.id2label[i] for i in range(config.num_labels)]
        labels = np.asarray(output.label_ids)
        made = Predictions(labels, logits, teacher, names, config.problem_type)
        self.last = self.trainer.state.global_step, made
        return made.metrics()

    def is_of(self, step: int) -> bool:
        """Whether predictions are kept that were made after this optimizer step."""
        return self.last is not None and self.last[0] == step


def held_out_texts(rows: Any) -> list[tuple[int, str]]:
    """The number and the text of each raw row, in the order of the encoded rows; a pair's texts in two lines.

    Rows without a text are left out, as they are when rows are encoded.
    """
    layout = TASKS["classification"].layout_of(rows.column_names, "eval_file")
    columns = [rows[name] for name in layout if name not in COLUMNS]
    return [
        (number, "\n".join(map(str, texts)))
        for number, texts in enumerate(zip(*columns, strict=True))
        if all(texts)
    ]
