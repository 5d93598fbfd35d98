"""Test how the labels of a file become what the loss reads."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from support.doctor import tokenizer

from fastkd.corpora.labels import (
    MULTI_LABEL,
    REGRESSION,
    SINGLE_LABEL,
    class_names,
    classes_in,
    column_order,
    encode_label,
    rows_with_labels,
)
from fastkd.corpora.rows import load_rows
from fastkd.corpora.tasks import TASKS
from fastkd.trainer import DistillationConfig

Configuration = Callable[..., DistillationConfig]


def settings(names: list[str] | None, problem: str = SINGLE_LABEL) -> Any:
    return SimpleNamespace(class_names=names, problem_type=problem)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["10", "9", "2"], ["2", "9", "10"]),
        (["good", " good", "bad "], ["bad", "good"]),
        (["Good", "good", "BAD"], ["BAD", "Good"]),
        ([2, 0], ["0", "1", "2"]),
        ([2.0, 0.0, math.nan, None], ["0", "1", "2"]),
        ([True, False], ["False", "True"]),
        (["None", "NA", ""], ["NA", "None"]),
        ([None, ""], None),
    ],
)
def test_classes_of_labels(labels: list[Any], names: list[str] | None) -> None:
    assert class_names(labels) == names


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.5, 1.0], "set problem_type: regression"),
        ([-1, 0, 1], r"there is a label -1.*class_names: \['-1', '0', '1'"),
        ([0, 100_000], "go up to 100,000 and only 2"),
        (["pos", 1], r"mix text \('pos'\) and numbers \(1\)"),
    ],
)
def test_labels_that_are_no_classes(labels: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_names(labels)


@pytest.mark.parametrize(
    ("label", "names", "number"),
    [
        ("POS ", ["neg", "pos"], 1),
        (1, ["neg", "pos"], 1),
        ("1", ["neg", "pos"], 1),
        (1.0, ["neg", "pos"], 1),
        (3, ["1", "2", "3"], 2),  # stars: the name, not the place
        (-1, ["-1", "0", "1"], 0),
        (True, ["False", "True"], 1),
        (False, ["0", "1"], 0),
        (None, ["neg", "pos"], -1),
        ("", ["neg", "pos"], -1),
    ],
)
def test_a_class_by_name_or_number(label: Any, names: list[str], number: int) -> None:
    assert encode_label(label, settings(names)) == number


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (2, r"the label 2 is not one of the classes \(neg, pos\)"),
        (-1, "leave the label empty where the class is unknown"),
        ([0, 1], "set problem_type: multi_label_classification"),
        (0.5, "set problem_type: regression"),
        ("neutral", "the label 'neutral' is not one of the classes"),
    ],
)
def test_a_label_that_is_no_class(label: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_label(label, settings(["neg", "pos"]))
    with pytest.raises(ValueError, match="the label 0 is not one of the classes"):  # stars again
        encode_label(0, settings(["1", "2", "3"]))


@pytest.mark.parametrize(
    ("label", "vector"),
    [
        ([0, 2], [1, 0, 1]),
        (["c", "A"], [1, 0, 1]),
        ([], [0, 0, 0]),
        ([1.0, 0.0, 1.0], [1, 0, 1]),
        ([1, 0, 0], [1, 0, 0]),
        ([True, False, True], [1, 0, 1]),
        ("a; c", [1, 0, 1]),
        ("['a', 'c']", [1, 0, 1]),
        ("b", [0, 1, 0]),
        (None, [-1, -1, -1]),
    ],
)
def test_several_labels(label: Any, vector: list[int]) -> None:
    assert encode_label(label, settings(["a", "b", "c"], MULTI_LABEL)) == vector


@pytest.mark.parametrize(
    ("label", "names", "message"),
    [
        (1, ["a", "b", "c"], r"multi-label model reads a list of them, such as \[1\]"),
        ([0.7, 0.0, 1.0], ["a", "b", "c"], "3 numbers that are 0 or 1"),
        ([1, 0, 1, 0], ["a", "b", "c"], "neither a list of labels"),
        ([0, 1], ["a", "b"], "may be two labels or one of two"),
        (["d"], ["a", "b", "c"], "'d' is not one of the classes"),
        ([3], ["a", "b", "c"], "the label 3 is not one of the classes"),
    ],
)
def test_several_labels_that_are_wrong(label: Any, names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_label(label, settings(names, MULTI_LABEL))


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([["b"], ["a", "c"], None], ["a", "b", "c"]),
        ([[0, 2], [1]], ["0", "1", "2"]),
        ([[1, 0, 0, 0], [0, 1, 1, 0]], ["0", "1", "2", "3"]),
        ([[1.0, 0.0], [0.0, 1.0]], ["0", "1"]),
        (["b;a", "c"], ["a", "b", "c"]),
    ],
)
def test_the_classes_of_several_labels(labels: list[Any], names: list[str]) -> None:
    assert class_names(labels, MULTI_LABEL) == names


@pytest.mark.parametrize(("label", "vector"), [(1, [1]), (0.0, [0]), ([1], [1]), (True, [1]), (None, [-1])])
def test_yes_or_no(label: Any, vector: list[int]) -> None:
    """A head with one sigmoid."""
    assert encode_label(label, settings(["0"], MULTI_LABEL)) == vector


def test_numbers_to_predict() -> None:
    args = settings(None, REGRESSION)
    assert encode_label("2.5", args) == 2.5 and encode_label(3, args) == 3.0
    assert encode_label([1, 2.5], args) == [1.0, 2.5]
    assert math.isnan(encode_label(None, args))  # type: ignore[arg-type]
    several = encode_label(None, settings(["x", "y"], REGRESSION))
    assert isinstance(several, list) and [math.isnan(part) for part in several] == [True, True]
    for label in ("much", True, math.inf):
        with pytest.raises(ValueError, match="is not a number"):
            encode_label(label, args)
    with pytest.raises(ValueError, match="-100 means that a row has no label"):
        encode_label(-100, args)


def test_the_order_of_classes() -> None:
    assert column_order(["neg", "pos"], ["POS", "NEG"]) == [1, 0]
    assert column_order(["neg", "pos"], ["neg", "pos", "mid"]) is None
    assert column_order(["neg", "pos"], ["neg", "good"]) is None


def test_a_table_with_a_class_called_none(configuration: Configuration, tmp_path: Path) -> None:
    """Neither a label nor a text is missing because it reads like pandas' words for that; an empty one is."""
    path = tmp_path / "data.csv"
    path.write_text("text,label\nw1,None\nnull,good\nNA,NA\nw2,\n")
    args = configuration(task="classification", train_file=str(path))
    rows = load_rows("train_file", args)
    assert rows is not None and list(rows["text"]) == ["w1", "null", "NA", "w2"]
    args.class_names = classes_in(rows)
    assert args.class_names == ["NA", "None", "good"]
    words = tokenizer()
    assert list(TASKS["classification"].tokenize(rows, words, args, "train_file")["labels"]) == [
        1,
        2,
        0,
        -1,
    ]


def test_class_numbers_of_a_data_set_that_names_them(configuration: Configuration) -> None:
    """The models number the same classes in another order, and -1 means unknown, as on the hub."""
    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["entailment", "contradiction"])
    )
    rows = datasets.Dataset.from_dict({"text": ["w1", "w2", "w3"], "label": [0, 1, -1]}, features=features)
    assert classes_in(rows) == ["entailment", "contradiction"]
    args = configuration(task="classification", class_names=["CONTRADICTION", "ENTAILMENT"])
    found = TASKS["classification"].tokenize(rows, tokenizer(), args, "train_file")
    assert list(found["labels"]) == [1, 0, -1]


def test_rows_without_labels(configuration: Configuration) -> None:
    """A teacher can be learned from there; without one, nothing can be if no row has a label."""
    task, words = TASKS["classification"], tokenizer()
    args = configuration(task="classification", class_names=["a", "b"])
    rows = datasets.Dataset.from_dict({"text": ["w1", "w2", "w3"], "label": ["a", None, "b"]})
    assert list(task.tokenize(rows, words, args, "train_file")["labels"]) == [0, -1, 1]
    assert rows_with_labels(rows) == 2
    texts = rows.remove_columns("label")
    assert list(task.tokenize(texts, words, args, "train_file")["labels"]) == [-1] * 3
    alone = configuration(task="classification", class_names=["a", "b"], kd_ratio=0.0)
    with pytest.raises(ValueError, match="train_file has no labels.*: fill in the column label, or distil"):
        task.tokenize(rows.select([1]), words, alone, "train_file")
    with pytest.raises(ValueError, match="train_file has no labels.*: add a column label"):
        task.tokenize(texts, words, alone, "train_file")
    with pytest.raises(ValueError, match=r"column_mapping: \{label: sentiment\}"):
        task.tokenize(texts.add_column("sentiment", ["a"] * 3), words, alone, "train_file")


@pytest.mark.parametrize(
    "names",
    [("text", "text_pair"), ("premise", "hypothesis"), ("question1", "question2"), ("text", "hypothesis")],
)
def test_pairs_of_texts(configuration: Configuration, names: tuple[str, str]) -> None:
    """Both texts are read, and the batch says which token belongs to which of the two."""
    task = TASKS["classification"]
    rows = datasets.Dataset.from_dict({names[0]: ["w1 w2", "w5"], names[1]: ["w3", "w4 w6"], "label": [0, 1]})
    args = configuration(task="classification", class_names=["a", "b"], max_length=3)
    found = task.tokenize(rows, tokenizer(), args, "train_file")
    batch = task.collate(list(found), 2)
    assert batch["input_ids"].tolist() == [[4, 5, 6], [8, 7, 9]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 1], [0, 1, 1]]


def test_token_types_go_to_models_that_tell_them_apart() -> None:
    from support.families import bert, gpt2

    task = TASKS["classification"]
    rows = [{"input_ids": [1, 2], "token_type_ids": [0, 1], "labels": 0}]
    batch = task.collate(rows, 0)
    model = bert(0)
    assert "token_type_ids" in task.model_inputs(model, batch)
    model.config.type_vocab_size = 1  # as RoBERTa has
    assert "token_type_ids" not in task.model_inputs(model, batch)
    assert "token_type_ids" not in task.model_inputs(gpt2(0), batch)  # it would read them as words
