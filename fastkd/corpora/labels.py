"""The labels of classifiers: what a file holds, as class numbers, vectors of labels, or numbers to predict.

A classifier solves one of three problems, under the names that `transformers` gives them in a model's
``problem_type``:

- ``single_label_classification``: one class per text. A label is the class's number.
- ``multi_label_classification``: any number of labels per text. A label is a vector of 0 and 1.
- ``regression``: a label is a number, or a list of numbers.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from fastkd.corpora.listing import short

SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
REGRESSION = "regression"

COLUMNS = ("label", "labels")
IGNORE_INDEX = -100
# The label of a row that has none, which only a teacher says something about. For regression it is NaN.
UNLABELLED = -1
# Divergences that read the label of each target.
LABEL_DIVERGENCES = ("decoupled",)
# With more numbers between 0 and the largest label than this for each label that occurs, the labels are taken
# for something else, such as identifiers.
SPARSEST = 50
_WHOLE = re.compile(r"[+-]?\d+")
_LISTS = {"[": "]", "(": ")"}


class LabelSettings(Protocol):
    """The settings that turn a label into what the loss reads.

    Attributes:
        class_names: the classes in the order of their numbers; None where only numbers are known.
        problem_type: one of the three problems; None means ``single_label_classification``.
    """

    class_names: list[str] | None
    problem_type: str | None


def reads_no_labels(kd_ratio: float, divergence: str) -> bool:
    """Whether the loss is the teacher's part alone, and that part compares no label."""
    return kd_ratio == 1 and divergence not in LABEL_DIVERGENCES


def plain(label: Any) -> Any:
    """A label without the traces of its file's format: None where it is missing (an empty cell, NaN), text
    without spaces around it, and whole numbers as ``int`` (a table with an empty cell holds 1.0 for 1).
    """
    if isinstance(label, str):
        return label.strip() or None
    if isinstance(label, float) and not isinstance(label, bool):
        if math.isnan(label):
            return None
        return int(label) if label.is_integer() else label
    return label


def encode_label(given: Any, settings: LabelSettings) -> int | float | list[int] | list[float]:
    """A row's label as the loss reads it; see the top of this file. Where there is none, it is
    ``UNLABELLED``, or NaN for a regression.

    Raises:
        ValueError: a label that does not fit the problem, or a class that is not one of ``class_names``.
    """
    problem = settings.problem_type or SINGLE_LABEL
    if problem == MULTI_LABEL:
        return _vector(given, settings)
    label = plain(given)
    if problem == REGRESSION:
        return _value(label, settings)
    return UNLABELLED if label is None else class_number(label, settings.class_names)


def class_number(label: Any, names: Sequence[str] | None) -> int:
    """The number of a class, given by its name or its number.

    A name is found whatever its case. A number is the class of that name where the names are numbers
    themselves (1 to 5 stars), and the class's place in the list everywhere else.

    Raises:
        ValueError: a class that is not one of the names, or a label that is no class.
    """
    label = plain(label)
    if isinstance(label, (list, tuple, dict)):
        raise ValueError(
            f"the label {short(label)} is a list: set problem_type: {MULTI_LABEL} for several labels per text"
        )
    if isinstance(label, float):
        raise ValueError(
            f"the label {label} is a decimal number: set problem_type: {REGRESSION} to predict numbers, "
            "or give the classes names or whole numbers"
        )
    if names is None:
        if isinstance(label, int) and label >= 0:
            return int(label)
        raise ValueError(f"the label {label!r} is not one of the classes (none known)")
    places, numbered = _places(tuple(names))
    key = _key(str(label))
    if key in places:
        return places[key]
    number = _whole(label)
    if number is not None and not numbered and 0 <= number < len(names):
        return number
    if isinstance(label, bool) and len(names) == 2:
        return int(label)
    known = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    remedy = ": leave the label empty where the class is unknown" if number == -1 else ""
    raise ValueError(f"the label {label!r} is not one of the classes ({known}){remedy}")


@functools.lru_cache(maxsize=8)
def _places(names: tuple[str, ...]) -> tuple[dict[str, int], bool]:
    """The place of each name (by :func:`_key`), and whether all names are whole numbers."""
    return {_key(name): i for i, name in reversed(list(enumerate(names)))}, all(
        _WHOLE.fullmatch(name.strip()) for name in names
    )


def _key(name: str) -> str:
    return name.strip().casefold()


def column_order(ours: Sequence[str], theirs: Sequence[str]) -> list[int] | None:
    """For each of our classes its place among theirs; None if the two lists do not hold the same classes."""
    keys, other = [_key(name) for name in ours], [_key(name) for name in theirs]
    if len(set(keys)) < len(keys) or sorted(keys) != sorted(other):
        return None
    return [other.index(key) for key in keys]


def has_names(names: Sequence[str]) -> bool:
    """Whether the names say more than the numbers that `transformers` gives to classes without names."""
    return bool(names) and not all(name in (f"LABEL_{i}", str(i)) for i, name in enumerate(names))


def _value(label: Any, settings: LabelSettings) -> float | list[float]:
    outputs = len(settings.class_names or ())
    if label is None and outputs > 1:
        return [math.nan] * outputs
    if isinstance(label, str) and label[0] in _LISTS:
        label = _listed(label)
    if isinstance(label, (list, tuple)):
        return [_one_value(plain(part), label) for part in label]
    return _one_value(label, label)


def _one_value(part: Any, label: Any) -> float:
    if part is None:
        return math.nan
    try:
        found = math.nan if isinstance(part, bool) else float(part)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"the label {short(label)} is not a number, which regression predicts")
    if found == IGNORE_INDEX:
        raise ValueError("the label -100 means that a row has no label: shift or scale the labels")
    return found


def _vector(given: Any, settings: LabelSettings) -> list[int]:
    """The label of a multi-label text: 0 or 1 for each class."""
    names = settings.class_names
    if names is None:
        raise ValueError("multi-label rows need class_names: list the labels in the order of their numbers")
    width = len(names)
    if width == 1 and not isinstance(given, str) and given in (0, 1):  # yes or no needs no list
        return [int(given)]
    label = parts_of(given, names)
    if label is None:
        return [UNLABELLED] * width
    if _is_vector(label, width):
        return [int(part) for part in label]
    numbers = [part for part in label if not isinstance(part, str)]
    if any(isinstance(part, float) for part in numbers) or len(set(numbers)) < len(numbers):
        raise ValueError(
            f"the label {short(given)} is neither a list of labels nor {width} numbers that are 0 or 1"
        )
    made = [0] * width
    for part in label:
        made[class_number(part, names)] = 1
    return made


def _is_vector(label: Sequence[Any], width: int) -> bool:
    """Whether a list is a vector of 0 and 1, rather than a list of class numbers.

    Raises:
        ValueError: it may be either.
    """
    if len(label) != width or not all(not isinstance(part, str) and part in (0, 1) for part in label):
        return False
    if any(isinstance(part, (float, bool)) for part in label) or width != 2 or label[0] == label[1]:
        return True
    raise ValueError(
        f"the label {label} may be two labels or one of two: write 0.0 and 1.0 for a vector, or the names"
    )


def parts_of(given: Any, names: Sequence[str] | None = None) -> list[Any] | None:
    """The parts of a multi-label label; None where it is missing.

    Text, as a table holds it, is a list as JSON or Python writes it, or names with ``;``, ``|`` or ``,``
    between them (unless it is one of the names itself). In a list, a float stays one: [1.0, 0.0] is a
    vector, [1, 0] may be one.

    Raises:
        ValueError: a single number, which is no list.
    """
    if given is None or plain(given) is None:
        return None
    if isinstance(given, str):
        text = given.strip()
        if text[0] in _LISTS:
            return list(_listed(text))
        if names is not None and _key(text) in _places(tuple(names))[0]:
            return [text]
        for mark in ";|,":
            if mark in text:
                return [part.strip() for part in text.split(mark) if part.strip()]
        return [text]
    if not isinstance(given, (list, tuple)):
        raise ValueError(
            f"the label {given!r} is a single class, and a multi-label model reads a list of them, such as "
            f"[{given!r}]: set problem_type: {SINGLE_LABEL} if each text has one class"
        )
    return [part.strip() if isinstance(part, str) else part for part in given]


def _listed(text: str) -> list[Any]:
    """A list that is written as text: JSON, or Python's quotes and parentheses."""
    inner = "[" + text[1:-1] + "]" if text.endswith(_LISTS[text[0]]) else text
    for attempt in (inner, inner.replace("'", '"'), inner.replace("True", "true").replace("False", "false")):
        try:
            found = json.loads(attempt)
        except ValueError:
            continue
        if isinstance(found, list):
            return found
    raise ValueError(f"the label {short(text)} begins like a list and is none")


def class_names(labels: Iterable[Any], problem: str = SINGLE_LABEL) -> list[str] | None:
    """The classes of a column of labels, in the order of their numbers; None where no row has a label.

    Whole numbers are class numbers from 0. Text is sorted, numbers in text by their size.

    Raises:
        ValueError: labels that are no classes, or of which it is not clear whether they are.
    """
    if problem == REGRESSION:
        return None
    if problem == MULTI_LABEL:
        return _labels_of_vectors(labels)
    found = {plain(label) if not isinstance(label, (list, dict)) else short(label) for label in labels}
    found.discard(None)
    return _names(found) if found else None


def label_column(columns: Iterable[str]) -> str | None:
    """The column that holds the labels of raw rows: ``label``, or else ``labels``."""
    return next((name for name in COLUMNS if name in columns), None)


def is_masked(label: Any) -> bool:
    """Whether an encoded label tells the loss to skip the row."""
    return all(part == IGNORE_INDEX for part in label) if isinstance(label, list) else label == IGNORE_INDEX


def is_unlabelled(label: Any) -> bool:
    """Whether an encoded label says that the row has none, so that only a teacher says something about it."""
    parts = label if isinstance(label, list) else [label]
    return not is_masked(label) and all(
        math.isnan(part) if isinstance(part, float) else part in (UNLABELLED, IGNORE_INDEX) for part in parts
    )


def rows_with_labels(rows: Any) -> int:
    """The number of raw rows that have a label."""
    column = label_column(rows.column_names or ())
    if column is None:
        return 0
    if feature_names((rows.features or {}).get(column)) is not None:  # a number below 0 is none
        return sum(label is not None and (isinstance(label, list) or label >= 0) for label in rows[column])
    return sum(plain(label) is not None for label in rows[column])


def classes_in(rows: Any, problem: str = SINGLE_LABEL) -> list[str] | None:
    """The classes of a data set, in the order of their numbers: those that its own features name, or as
    :func:`class_names`; None without labels.
    """
    column = label_column(rows.column_names or ())
    if column is None or problem == REGRESSION:
        return None
    named = feature_names((rows.features or {}).get(column))
    return named if named is not None else class_names(rows[column], problem)


def feature_names(feature: Any) -> list[str] | None:
    """The names that a data set's own feature gives to its class numbers; None without such names."""
    inner = getattr(feature, "feature", feature)
    names = getattr(inner, "names", None)
    return None if names is None else list(names)


def by_name(label: Any, names: Sequence[str]) -> Any:
    """A label of a feature with names, by name: a number below 0 is none, as hub data sets use it."""
    if isinstance(label, (list, tuple)):
        return [by_name(part, names) for part in label]
    return None if label is None or label < 0 else names[label]


def _names(found: set[Any]) -> list[str]:
    numbers = [label for label in found if isinstance(label, (int, float)) and not isinstance(label, bool)]
    if not numbers:
        if all(isinstance(label, bool) for label in found):
            return ["False", "True"]
        return _sorted(str(label) for label in found)
    words = [label for label in found if isinstance(label, str)]
    if words:
        raise ValueError(
            f"the labels mix text ({sorted(words)[0]!r}) and numbers ({numbers[0]}): write all of them as "
            "text, or all as numbers"
        )
    for label in numbers:
        if isinstance(label, float):
            class_number(label, None)  # raises the error about decimal numbers
    smallest, largest = min(numbers), max(numbers)
    if smallest < 0:
        some = ", ".join(f"'{number}'" for number in sorted(numbers)[:3])
        raise ValueError(
            f"there is a label {smallest}, and classes are numbered from 0: leave the label empty where it "
            f"means that the class is unknown, or name the classes, with class_names: [{some}, ...]"
        )
    if largest + 1 > max(1000, SPARSEST * len(numbers)):
        raise ValueError(
            f"the labels go up to {largest:,} and only {len(numbers):,} of these numbers occur: number the "
            "classes from 0, or write the labels as text"
        )
    return [str(i) for i in range(int(largest) + 1)]


def _labels_of_vectors(labels: Iterable[Any]) -> list[str] | None:
    words: set[str] = set()
    numbers: set[int] = set()
    lengths: set[int] = set()
    vectors, decided = True, False
    for given in labels:
        label = parts_of(given)
        if label is None:
            continue
        lengths.add(len(label))
        for part in label:
            if isinstance(part, str) and _whole(part) is None:
                words.add(part)
            else:
                numbers.add(int(part))
        vectors = vectors and all(not isinstance(part, str) and part in (0, 1) for part in label)
        decided = decided or any(isinstance(part, (float, bool)) for part in label)
        decided = decided or len(label) != len({str(part) for part in label})
    if words:
        return _sorted({*words, *map(str, numbers)})
    if vectors and decided and len(lengths) == 1:
        return [str(i) for i in range(lengths.pop())]
    return _names(set(numbers)) if numbers else None


def _sorted(names: Iterable[str]) -> list[str]:
    """Names in order, with those that are numbers first and by their size. Of names that differ in case
    alone, one is kept.
    """
    distinct = {_key(name): name for name in sorted(names, reverse=True)}

    def rank(name: str) -> tuple[int, int, str]:
        number = _whole(name)
        return (1, 0, name) if number is None else (0, number, name)

    return sorted(distinct.values(), key=rank)


def _whole(label: Any) -> int | None:
    if isinstance(label, bool):
        return None
    if isinstance(label, int):
        return label
    return int(label) if isinstance(label, str) and _WHOLE.fullmatch(label) else None
