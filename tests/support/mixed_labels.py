"""Tiny classifiers, and encoded texts some of which have no label, or one that is masked."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from support.families import bert
from support.tiny import rows

from fastkd.corpora.labels import MULTI_LABEL, REGRESSION, SINGLE_LABEL

PROBLEMS = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)
NONE = float("nan")
# The second three have no label at all.
LABELS: dict[str, list[Any]] = {
    SINGLE_LABEL: [2, 0, -100, -1, -1, -1, 1, 1, -1, 0, 2, 2],
    MULTI_LABEL: [
        *([1, 0, 1], [0, 0, 0], [-100, -100, -100], *[[-1, -1, -1]] * 3),
        *([0, 1, -100], [1, -1, 1], [-1, -1, -1], [0, 0, 1], [1, 1, 1], [0, 1, 0]),
    ],
    REGRESSION: [0.5, -2.0, -100.0, NONE, NONE, NONE, 3.25, 0.0, NONE, 1.0, -1.0, 2.0],
}


def labels_of(problem: str) -> list[Any]:
    return LABELS[problem]


def mixed(problem: str, labels: list[Any] | None = None) -> Dataset:
    """Encoded texts with these labels, else with those of the problem."""
    labels = labels_of(problem) if labels is None else labels
    encoded = rows(len(labels), seed=2, longest=7)
    return Dataset.from_list([{**row, "labels": label} for row, label in zip(encoded, labels, strict=True)])


def model(seed: int, problem: str) -> Any:
    """A classifier of three columns, or with one output for a regression."""
    made = bert(seed, layers=1)
    if problem == REGRESSION:
        made.config.id2label = {0: "LABEL_0"}
        made.classifier = torch.nn.Linear(16, 1)
        generator = torch.Generator().manual_seed(seed)
        for parameter in made.classifier.parameters():
            torch.nn.init.normal_(parameter, generator=generator)
    made.config.problem_type = problem
    return made
