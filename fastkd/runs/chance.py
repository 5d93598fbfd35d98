"""Says when a model has learned nothing: it is no better than a guess, or its loss did not fall."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from statistics import mean, median
from typing import Any

import numpy as np
from transformers import TrainerCallback

from fastkd.corpora.labels import IGNORE_INDEX, MULTI_LABEL, REGRESSION, UNLABELLED
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.matches import parse_matches
from fastkd.trainer.matching.balance import drowning

logger = logging.getLogger(__name__)

# Rows of each data set whose tokens or labels are counted.
_COUNTED = 2000
# Standard errors by which a figure must be better than a guess: a guess is as good in 5 % of all cases.
_ERRORS = 1.645
# Logged losses from which on a fall of the loss can be told from noise.
_FEWEST_LOGS = 8
# Share of the steps after which a run that is still going may be said to learn nothing.
EARLY = 1 / 3


@dataclass(frozen=True)
class Guess:
    """The score of a guess that does not read the input, on the held-out rows.

    Attributes:
        metric: the score's name in a report.
        value: the guess's score.
        what: the guess, in words.
        rows: number of held-out rows.
    """

    metric: str
    value: float
    what: str
    rows: int

    def beaten_by(self, score: float) -> bool:
        """Whether a score is better than this one, and not by chance."""
        if self.metric == "accuracy":
            return score > self.value + _ERRORS * math.sqrt(self.value * (1 - self.value) / self.rows)
        return score < self.value


def guess(train: Any, held_out: Any, args: DistillationConfig) -> Guess | None:
    """The best guess on the encoded held-out rows, or None if there is none to compare with: no held-out
    rows, rows that can only be read in order, or rows without labels.

    It is the most frequent class for a classifier, each label's own frequency for several labels, the mean
    for numbers, and for a language model each token's frequency in the training rows.
    """
    if held_out is None or not hasattr(held_out, "__len__"):
        return None
    if args.task == "classification":
        return _class_guess(list(held_out["labels"]), args.problem_type)
    said, tokens = (list(_tokens(rows)) for rows in (train, held_out))
    if not tokens or not said:
        return None
    counts = Counter(said)
    # Tokens that the training rows lack share the probability of one token.
    total = len(said) + 1
    cross_entropy = mean(math.log(total / counts.get(token, 1)) for token in tokens)
    return Guess("ce", cross_entropy, "a guess by the frequency of each token", len(held_out))


def _class_guess(labels: Sequence[Any], problem: str | None) -> Guess | None:
    if problem in (MULTI_LABEL, REGRESSION):
        table = np.asarray(labels, dtype=np.float64).reshape(len(labels), -1)
        table = np.where((table == IGNORE_INDEX) | (table < 0) & (problem == MULTI_LABEL), np.nan, table)
        known = np.isfinite(table)
        if not known.any():
            return None
        means = np.where(known, table, 0.0).sum(0) / np.maximum(known.sum(0), 1)
        if problem == REGRESSION:
            spread = float(np.square(table - means)[known].mean())
            return Guess("mse", spread, "the labels' mean", len(labels))
        shares = np.clip(means, 1e-12, 1 - 1e-12)
        entropies = -(shares * np.log(shares) + (1 - shares) * np.log(1 - shares))
        entropy = float((entropies * known.sum(0)).sum() / known.sum())
        return Guess("ce", entropy, "a guess by the frequency of each label", len(labels))
    counts = Counter(label for label in labels if label not in (IGNORE_INDEX, UNLABELLED))
    if len(counts) < 2:
        return None
    rows = counts.total()
    return Guess("accuracy", max(counts.values()) / rows, "the most frequent class", rows)


def _tokens(rows: Any) -> Iterable[int]:
    """The target tokens of some rows."""
    if not hasattr(rows, "__len__"):
        return ()
    chosen = rows[:: max(1, len(rows) // _COUNTED)]
    column = chosen["labels"] if "labels" in chosen else chosen["input_ids"]
    return (token for token in chain.from_iterable(column) if token != IGNORE_INDEX)


def reasons(
    title: str,
    scores: Mapping[str, float],
    history: Sequence[Mapping[str, float]],
    best_guess: Guess | None,
    args: DistillationConfig,
) -> list[str]:
    """Sentences that say in which way a model has learned nothing; none if it has learned something.

    Args:
        title: the model's name in the report.
        scores: its scores on the held-out rows, by the names of a report.
        history: the log of its training.
        best_guess: made by :func:`guess`.
        args: the settings of its training.
    """
    found = []
    score = math.nan if best_guess is None else scores.get(best_guess.metric, math.nan)
    if best_guess is not None and math.isfinite(score) and not best_guess.beaten_by(score):
        shown = "{:.1%}" if best_guess.metric == "accuracy" else "{:.4g}"
        name = {"ce": "cross-entropy", "mse": "mean squared error"}.get(best_guess.metric, "accuracy")
        found.append(
            f"the {title} is no better than {best_guess.what}: its {name} on {best_guess.rows:,} held-out "
            f"rows is {shown.format(score)}, that of the guess {shown.format(best_guess.value)}"
        )
    losses = [entry["loss"] for entry in history if "loss" in entry]
    if args.lmbda == 0 and (ends := _did_not_fall(losses)) is not None:
        found.append(
            f"the {title}'s training loss did not fall: {ends[0]:.4g} at first, {ends[1]:.4g} at last"
        )
    return [f"{sentence} ({_causes(history, args)})" for sentence in found]


def _did_not_fall(losses: Sequence[float]) -> tuple[float, float] | None:
    """The mean losses of the first and the last quarter, unless they fell by more than their noise.

    The noise is the median difference of neighbours, to which a trend or a few jumps add little.
    """
    if len(losses) < _FEWEST_LOGS or not all(map(math.isfinite, losses)):
        return None
    quarter = len(losses) // 4
    first, last = mean(losses[:quarter]), mean(losses[-quarter:])
    step = median(abs(a - b) for a, b in pairwise(losses))
    # In normal noise of size 1 this median is 0.954; a difference of two means of k values has sqrt(2 / k).
    error = step / 0.954 * math.sqrt(2 / quarter)
    return None if first - last > _ERRORS * error else (first, last)


def _causes(history: Sequence[Mapping[str, float]], args: DistillationConfig) -> str:
    """The likely causes, in words that follow a sentence."""
    if args.learning_rate == 0:
        return "learning_rate is 0"
    matches = parse_matches(args.feature_matches or [])
    for entry in history:
        logged = {name: value for name, value in entry.items() if name.startswith(("feature_", "saliency"))}
        if logged and "loss" in entry:
            means = {**logged, "loss": entry["loss"] - sum(logged.values())}
            if drowned := drowning(means, matches, args.gradient_match_weight):
                return "; ".join(one.found for one in drowned)
    return (
        f"likely causes: too few steps, a learning rate that does not fit ({args.learning_rate:g}), labels "
        "that do not belong to their texts, or weights that are frozen"
    )


class Watch(TrainerCallback):
    """Warns once, after a third of the steps, if a model has learned nothing so far.

    Args:
        title: the model's name in the report.
        best_guess: made by :func:`guess`.
        args: the settings of the run.
    """

    def __init__(self, title: str, best_guess: Guess | None, args: DistillationConfig) -> None:
        self.title, self.best_guess, self.args = title, best_guess, args
        self.done = False

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        self._look(state, {k.removeprefix("eval_"): v for k, v in (metrics or {}).items()})

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._look(state, {})

    def _look(self, state: Any, scores: Mapping[str, float]) -> None:
        going = EARLY * state.max_steps <= state.global_step < state.max_steps
        if self.done or not going or not state.is_world_process_zero:
            return
        found = reasons(self.title, scores, state.log_history, self.best_guess, self.args)
        for sentence in found:
            logger.warning("at step %d of %d, %s", state.global_step, state.max_steps, sentence)
        self.done = bool(found)


class Chance:
    """Compares the models of one run with the best guess, while they train and at the end.

    Args:
        train, held_out: the encoded rows.
        args: the settings of the run.
    """

    def __init__(self, train: Any, held_out: Any, args: DistillationConfig) -> None:
        self.best_guess = guess(train, held_out, args)
        self.settings: dict[str, DistillationConfig] = {}

    def watch(self, title: str, args: DistillationConfig) -> Watch:
        """A callback for the training of one model, which the report calls ``title``."""
        self.settings[title.strip()] = args
        return Watch(title.strip(), self.best_guess, args)

    def warnings(self, report: Mapping[str, Any]) -> list[str]:
        """The sentences of :func:`reasons` on each trained model of the report."""
        return [
            sentence
            for name, args in self.settings.items()
            for sentence in reasons(
                name, report[name]["eval"], report[name]["history"], self.best_guess, args
            )
        ]
