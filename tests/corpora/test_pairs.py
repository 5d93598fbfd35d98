"""Test pairs of texts, and single ones, as they come from files and streams."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from support.doctor import tokenizer

from fastkd.corpora.rows import load_rows
from fastkd.corpora.tasks import TASKS
from fastkd.trainer import DistillationConfig

Configuration = Callable[..., DistillationConfig]
TASK = TASKS["classification"]


def test_columns_of_a_table_are_text(
    configuration: Configuration, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A premise that is a number and a class named None stay as they stand, and no column is unread."""
    path = tmp_path / "pairs.csv"
    path.write_text("premise,hypothesis,label\n007,NA,None\n008,null,entailment\n")
    args = configuration(task="classification", train_file=str(path), class_names=["entailment", "None"])
    rows = load_rows("train_file", args)
    assert rows is not None and rows[0] == {"premise": "007", "hypothesis": "NA", "label": "None"}
    made = TASK.tokenize(rows, tokenizer(), args, "train_file")
    assert made["labels"] == [1, 0] and set(made[0]) == {"input_ids", "labels", "token_type_ids"}
    assert "nobody reads" not in caplog.text


def test_a_stream_of_numbered_classes(configuration: Configuration) -> None:
    """Numbers that the features of a data set name are read by name, in a stream too."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    rows: Any = Dataset.from_dict({"text": ["w1", "w2"], "label": [0, 1]}, features).to_iterable_dataset()
    args = configuration(task="classification", class_names=["pos", "neg"])
    assert [row["labels"] for row in TASK.tokenize(rows, tokenizer(), args, "train_dataset")] == [1, 0]


def test_rows_without_a_text_are_left_out(
    configuration: Configuration, caplog: pytest.LogCaptureFixture
) -> None:
    rows = Dataset.from_dict({"text": ["w1", ""], "text_pair": ["w2", "w3"], "label": [0, 1]})
    args = configuration(task="classification", class_names=["neg", "pos"])
    assert len(TASK.tokenize(rows, tokenizer(), args, "train_file")) == 1
    assert "1 of 2 rows have no text or no text_pair, and are left out" in caplog.text


@pytest.mark.parametrize("longest", [8, 3])
def test_no_special_token_twice(configuration: Configuration, longest: int) -> None:
    """A text that opens with its first token gets no second one, whether it is cut or not."""
    from tokenizers.processors import TemplateProcessing

    words = tokenizer()
    words.add_special_tokens({"bos_token": "<s>"})
    words.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", words.bos_token_id)]
    )
    args = configuration(task="classification", max_length=longest, class_names=["neg", "pos"])
    rows = Dataset.from_dict({"text": ["w1 w2 w3", "<s>w1 w2 w3"], "label": [0, 1]})
    made = TASK.tokenize(rows, words, args, "train_file")["input_ids"]
    assert all(ids.count(words.bos_token_id) == 1 and ids[0] == words.bos_token_id for ids in made)
