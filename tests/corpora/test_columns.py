"""Test the columns that data sets come with: which are read, how, and what is said of the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from datasets import Dataset
from support.stored import tokenizer

from fastkd.corpora.known_columns import converted
from fastkd.corpora.tasks import TASKS
from fastkd.trainer import DistillationConfig

Configuration = Callable[..., DistillationConfig]
SHARED = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}


@pytest.fixture
def read(configuration: Configuration) -> Callable[..., list[tuple[str, str]]]:
    """The text of each encoded row, and the part of it that is trained on."""

    def texts(rows: list[dict[str, Any]], chat: bool = True, **options: Any) -> list[tuple[str, str]]:
        tokens = tokenizer()
        if not chat:
            tokens.chat_template = None
        data = converted("train_file", Dataset.from_list(rows))
        found = TASKS[options.pop("task", "causal_lm")].tokenize(
            data, tokens, configuration(), "train_file", **options
        )
        said = [[token for token in row["labels"] if token != -100] for row in found]
        return [
            (tokens.decode(row["input_ids"]), tokens.decode(ids))
            for row, ids in zip(found, said, strict=True)
        ]

    return texts


Read = Callable[..., list[tuple[str, str]]]


@pytest.mark.parametrize(
    ("row", "whole", "trained"),
    [
        ({"prompt": [USER], "completion": [ANSWER]}, "hi ho ", "ho "),
        ({"prompt": [USER], "completion": "ho"}, "hi ho ", "ho "),
        ({"prompt": "hi", "completion": [ANSWER]}, "hi ho ", "ho "),
        ({"prompt": [USER, ANSWER, USER], "completion": [ANSWER]}, "hi ho hi ho ", "ho "),
        ({"messages": [USER, {**ANSWER, "weight": 0}, USER, {**ANSWER, "weight": 1}]}, "hi ho hi ho ", "ho "),
        (
            {"conversations": SHARED},
            "hi ho ",
            "ho ",
        ),
        (
            {
                "system": "s",
                "conversations": SHARED,
            },
            "s hi ho ",
            "ho ",
        ),
        ({"messages": SHARED}, "hi ho ", "ho "),
        ({"text": "hi ho", "prompt": "hi", "completion": "ho"}, "hiho<end>", "ho<end>"),
        ({"text": "hi ho", "messages": [USER, ANSWER]}, "hi ho ", "ho "),
    ],
)
def test_forms_of_prompts_and_answers(read: Read, row: dict[str, Any], whole: str, trained: str) -> None:
    assert read([row]) == [(whole, trained)]


def test_alpaca(read: Read) -> None:
    """Alpaca's columns are a conversation for a chat template, or else a text in its authors' wording."""
    rows = [{"instruction": "add", "input": "one two", "output": "three"}]
    assert read(rows) == [("addone two three ", "three ")]  # the tokenizer has no line breaks
    ((whole, trained),) = read(rows, chat=False)
    assert trained == "three<end>" and "Instructionadd" in whole and "Inputone two" in whole
    ((whole, _),) = read([{"instruction": "add", "output": "three", "text": "rendered"}], chat=False)
    assert "Input" not in whole and "rendered" not in whole


def test_prompts_alone(read: Read) -> None:
    """Without answers, a row is a prompt, and the opening of an answer where there is a chat template."""
    for row in ({"prompt": "hi"}, {"prompt": "hi", "completion": ""}, {"prompt": "hi", "completion": "ho"}):
        assert read([row], needs_answer=False) == [("hi", "")]
    for row in ({"prompt": [USER]}, {"messages": [USER]}, {"instruction": "hi"}):
        assert read([row], needs_answer=False) == [("hi ", "")]
    assert read([{"prompt": "hi", "text": "rendered"}], needs_answer=False) == [("hi", "")]
    assert read([{"source": "hi"}], task="seq2seq", needs_answer=False) == [("hi", "")]
    with pytest.raises(ValueError, match="has the columns prompt and no answers: add a column completion"):
        read([{"prompt": "hi"}])


def test_what_is_said_of_columns_and_rows(read: Read, caplog: pytest.LogCaptureFixture) -> None:
    row = {"id": 1, "text": "x", "prompt": "hi", "completion": "ho"}
    read([row, row, {**row, "completion": ""}])
    assert "train_file is read as prompt+completion; nobody reads the columns id, text" in caplog.text
    assert "train_file: 1 of 3 rows have no prompt or no completion, and are left out" in caplog.text
    caplog.clear()
    read([{"messages": [USER]}, {"messages": [USER, ANSWER]}, {"messages": None}])
    assert "2 of 3 rows have no answer of an assistant, and are left out" in caplog.text
    caplog.clear()
    read([{"prompt": "hi", "completion": "ho", "reference": "what generate keeps"}])
    assert not caplog.text


@pytest.mark.parametrize(
    ("columns", "proposed"),
    [
        (["Text"], "{text: Text}"),
        (["question", "answer"], "{prompt: question, completion: answer}"),
        (["text "], "{text: 'text '}"),
        (["blob"], "{text: blob}"),
    ],
)
def test_a_mapping_is_proposed(columns: list[str], proposed: str) -> None:
    with pytest.raises(ValueError, match="name them with column_mapping, for example ") as caught:
        TASKS["causal_lm"].layout_of(columns, "train_file")
    assert str(caught.value).endswith(proposed)


def test_no_column_is_mapped_to_itself() -> None:
    with pytest.raises(ValueError, match="for example {text: sentence}$"):
        TASKS["classification"].layout_of(["sentence", "label"], "train_file")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": 5}, "row 1: text is 5, a number and not text"),
        ({"text": True}, "row 1: text is True, true or false and not text"),
        ({"text": ["ab", "cd"]}, r"row 1: text is \['ab', 'cd'\], a list and not text"),
        ({"text": {"en": "a"}}, "row 1: text is .*, a mapping and not text"),
        ({"prompt": "a", "completion": 4}, "row 1: completion is 4, a number and not text"),
        ({"instruction": "a", "input": 3, "output": "b"}, "row 1: input is 3, a number and not text"),
        ({"conversations": [{"from": "narrator", "value": "a"}]}, "row 1: .* a turn from 'narrator'"),
    ],
)
def test_values_that_are_not_text(read: Read, row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read([row])
    assert str(caught.value).startswith("train_file, row 1")
