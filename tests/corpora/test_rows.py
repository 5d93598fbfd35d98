"""Test the way from files to batches: nothing is dropped without a message, and every mistake is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fastkd.corpora.labels import classes_in
from fastkd.corpora.rows import load_rows
from fastkd.corpora.tasks import TASKS
from fastkd.trainer import DistillationConfig

Configuration = Callable[..., DistillationConfig]
TEXTS = ["abc", "a longer line of text", "", "xy"]
EOS = 256


@pytest.fixture
def tokenizer() -> Any:
    """A tokenizer with one token per byte, and an end-of-text token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate(alphabet)} | {"<|endoftext|>": EOS}
    bytes_only = Tokenizer(models.BPE(vocabulary, []))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bytes_only, eos_token="<|endoftext|>")


def encoded(args: DistillationConfig, tokenizer: Any) -> Any:
    rows = load_rows("train_file", args)
    assert rows is not None
    return TASKS[args.task].tokenize(rows, tokenizer, args, "train_file")


def write(folder: Path, kind: str, column: str = "text") -> Path:
    import pandas

    path = folder / f"data.{kind}"
    frame = pandas.DataFrame({column: TEXTS})
    if kind == "txt":
        path.write_text("\n".join(TEXTS) + "\n")
    elif kind == "json":
        path.write_text(json.dumps([{column: text} for text in TEXTS]))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({column: text}) + "\n" for text in TEXTS))
    elif kind == "csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    return path


@pytest.mark.parametrize("kind", ["txt", "json", "jsonl", "csv", "parquet"])
def test_every_format_gives_the_same_tokens(
    configuration: Configuration, tokenizer: Any, tmp_path: Path, kind: str
) -> None:
    found = encoded(configuration(train_file=str(write(tmp_path, kind))), tokenizer)
    assert [tokenizer.decode(ids) for ids in found["input_ids"]] == [f"{t}<|endoftext|>" for t in TEXTS if t]


def test_columns_can_be_mapped(configuration: Configuration, tmp_path: Path) -> None:
    path = str(write(tmp_path, "jsonl", column="body"))
    rows = load_rows("train_file", configuration(train_file=path, column_mapping={"text": "body"}))
    assert rows is not None and list(rows["text"]) == TEXTS
    with pytest.raises(ValueError, match="column_mapping names 'page', but the columns are body"):
        load_rows("train_file", configuration(train_file=path, column_mapping={"text": "page"}))


def test_the_columns_of_two_files_need_not_have_the_same_names(
    configuration: Configuration, tmp_path: Path
) -> None:
    """A mapping is for both files: one of them may have our name already, or no label to train on."""
    for name, row in {"train": {"text": "a"}, "eval": {"body": "b", "intent": "x"}}.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    args = configuration(
        task="classification",
        train_file=str(tmp_path / "train.jsonl"),
        eval_file=str(tmp_path / "eval.jsonl"),
        column_mapping={"text": "body", "label": "intent"},
    )
    train, held_out = (load_rows(field, args) for field in ("train_file", "eval_file"))
    assert train is not None and train[:] == {"text": ["a"]}
    assert held_out is not None and held_out[:] == {"text": ["b"], "label": ["x"]}
    args.eval_file = args.train_file
    with pytest.raises(ValueError, match="eval_file: column_mapping names 'intent'"):
        load_rows("eval_file", args)


def test_packing_loses_no_token(configuration: Configuration, tokenizer: Any, tmp_path: Path) -> None:
    args = configuration(packing=True, max_length=5, train_file=str(write(tmp_path, "jsonl")))
    found = encoded(args, tokenizer)
    joined = [token for ids in found["input_ids"] for token in ids]
    assert tokenizer.decode(joined) == "".join(f"{t}<|endoftext|>" for t in TEXTS if t)
    assert {len(ids) for ids in found["input_ids"][:-1]} == {5}


def test_packed_positions_restart_and_no_text_predicts_the_next(
    configuration: Configuration, tokenizer: Any, tmp_path: Path
) -> None:
    args = configuration(packing=True, max_length=5, train_file=str(write(tmp_path, "jsonl")))
    first, second = (encoded(args, tokenizer)[i] for i in (0, 1))
    assert first["position_ids"] == [0, 1, 2, 3, 0]  # "abc" and its end, then the next text's first byte
    assert first["labels"] == [-100, *first["input_ids"][1:4], -100]
    assert second["position_ids"] == [0, 1, 2, 3, 4] and second["labels"] == second["input_ids"]


def test_a_packed_txt_file_is_one_text_with_its_line_breaks(
    configuration: Configuration, tokenizer: Any, tmp_path: Path
) -> None:
    args = configuration(packing=True, max_length=64, train_file=str(write(tmp_path, "txt")))
    found = encoded(args, tokenizer)
    assert tokenizer.decode(found["input_ids"][0]) == "\n".join(TEXTS) + "\n<|endoftext|>"


def test_cut_texts_are_logged(
    configuration: Configuration, tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A message states how many texts were cut to max_length."""
    found = encoded(configuration(max_length=6, train_file=str(write(tmp_path, "jsonl"))), tokenizer)
    assert max(map(len, found["input_ids"])) == 6
    assert "1 of 3 texts are longer than max_length=6 and were cut" in caplog.text


@pytest.mark.parametrize(
    ("name", "message"),
    [("nothing.txt", "train_file: there is no file"), ("data.xml", "is not one of .txt, .json")],
)
def test_file_errors(configuration: Configuration, tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "data.xml").write_text("<a/>")
    with pytest.raises(ValueError, match=message):
        load_rows("train_file", configuration(train_file=str(tmp_path / name)))


def test_text_errors(configuration: Configuration, tokenizer: Any, tmp_path: Path) -> None:
    args = configuration(train_file=str(write(tmp_path, "csv", column="body")))
    with pytest.raises(
        ValueError, match=r"train_file has the columns body, but causal_lm reads prompt.completion or"
    ):
        encoded(args, tokenizer)
    rows = load_rows("train_file", args)
    assert rows is not None
    with pytest.raises(ValueError, match="holds no text"):
        TASKS["causal_lm"].tokenize(
            rows.rename_column("body", "text").select([2]), tokenizer, args, "train_file"
        )


def jsonl(folder: Path, *rows: dict[str, Any]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def said(tokenizer: Any, row: dict[str, Any]) -> str:
    """The text of the labels."""
    return tokenizer.decode([label for label in row["labels"] if label != -100])


@pytest.mark.parametrize("columns", [("prompt", "completion"), ("source", "target")])
def test_only_the_completion_is_a_label(
    configuration: Configuration, tokenizer: Any, tmp_path: Path, columns: tuple[str, str]
) -> None:
    path = jsonl(tmp_path, dict(zip(columns, ("ab:", "cd"), strict=True)))
    (row,) = encoded(configuration(train_file=path), tokenizer)
    assert tokenizer.decode(row["input_ids"]) == "ab:cd<|endoftext|>"
    assert said(tokenizer, row) == "cd<|endoftext|>"


END = "<|endoftext|>"


@pytest.mark.parametrize(
    ("max_length", "text", "label"),
    [
        (12, f"abcdefgh:cd{END}", f"cd{END}"),
        (11, "abcdefgh:cd", "cd"),
        (10, "abcdefgh:c", "c"),
        # From here on, the prompt has no room for an answer by itself.
        (9, f"cdefgh:cd{END}"[1:], f"cd{END}"),
        (4, "h:cd", "cd"),
        (2, ":c", "c"),
    ],
)
def test_a_prompt_is_not_cut_for_its_completion(
    configuration: Configuration,
    tokenizer: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    max_length: int,
    text: str,
    label: str,
) -> None:
    path = jsonl(tmp_path, {"prompt": "abcdefgh:", "completion": "cd"})
    (row,) = encoded(configuration(train_file=path, max_length=max_length), tokenizer)
    assert tokenizer.decode(row["input_ids"]) == text and said(tokenizer, row) == label
    assert ("1 of 1 texts are longer" in caplog.text) == (max_length < 12)
    assert (f"1 of 1 prompts have max_length={max_length} tokens" in caplog.text) == (max_length < 10)


TEMPLATE = (
    "{% for m in messages %}<{{ m['role'][0] }}>{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %};{% endif %}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


def test_every_turn_of_the_assistant_is_a_label_and_nothing_else(
    configuration: Configuration, tokenizer: Any, tmp_path: Path
) -> None:
    turns = [("system", "s"), ("user", "u1"), ("assistant", "a1"), ("user", "u2"), ("assistant", "a2")]
    path = jsonl(tmp_path, {"messages": [{"role": r, "content": c} for r, c in [*turns, ("user", "u3")]]})
    tokenizer.chat_template = TEMPLATE
    (row,) = encoded(configuration(train_file=path), tokenizer)
    assert tokenizer.decode(row["input_ids"]) == "<s>s<u>u1<a>a1;<u>u2<a>a2;"
    assert said(tokenizer, row) == "a1;a2;"

    tokenizer.chat_template = "{% for m in messages[-1:] %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(ValueError, match="rewrites what comes before an answer"):
        encoded(configuration(train_file=path), tokenizer)


def test_pairs_of_seq2seq(
    configuration: Configuration, tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = jsonl(tmp_path, {"source": "abcd", "target": "xyz"}, {"source": "", "target": "z"})
    args = configuration(train_file=path, task="seq2seq", max_length=3, max_target_length=2)
    (row,) = encoded(args, tokenizer)
    assert tokenizer.decode(row["input_ids"]) == "abc" and tokenizer.decode(row["labels"]) == "xy"
    assert "1 of 1 pairs are longer" in caplog.text


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [(["no", "yes", "no"], ["no", "yes"], [0, 1, 0]), ([2, 0, 0], ["0", "1", "2"], [2, 0, 0])],
)
def test_classes_from_the_data(
    configuration: Configuration,
    tokenizer: Any,
    tmp_path: Path,
    labels: list[Any],
    names: list[str],
    numbers: list[int],
) -> None:
    path = jsonl(tmp_path, *({"text": "a", "label": label} for label in labels))
    args = configuration(train_file=path, task="classification")
    rows = load_rows("train_file", args)
    assert rows is not None
    args.class_names = classes_in(rows)
    assert args.class_names == names
    assert list(encoded(args, tokenizer)["labels"]) == numbers
    args.class_names = ["other"]
    if isinstance(labels[0], str):
        with pytest.raises(ValueError, match=r"the label 'no' is not one of the classes \(other\)"):
            encoded(args, tokenizer)
