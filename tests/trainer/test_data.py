"""From files to batches: nothing dropped in silence, every mistake named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fastkd.trainer import DistillationConfig
from fastkd.trainer.data import load_file, tokenize

Configuration = Callable[..., DistillationConfig]
TEXTS = ["abc", "a longer line of text", "", "xy"]
EOS = 256


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """One token per byte, and an end-of-text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate(alphabet)} | {"<|endoftext|>": EOS}
    bytes_only = Tokenizer(models.BPE(vocabulary, []))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bytes_only, eos_token="<|endoftext|>")


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
    args = configuration()
    found = tokenize(load_file("train_file", str(write(tmp_path, kind)), args), tokenizer, args, "train_file")
    assert [tokenizer.decode(ids) for ids in found["input_ids"]] == [f"{t}<|endoftext|>" for t in TEXTS if t]


def test_columns_can_be_mapped(configuration: Configuration, tmp_path: Path) -> None:
    path = str(write(tmp_path, "jsonl", column="body"))
    assert load_file("train_file", path, configuration(column_mapping={"text": "body"}))["text"] == TEXTS
    with pytest.raises(ValueError, match="column_mapping names 'page', but there are body"):
        load_file("train_file", path, configuration(column_mapping={"text": "page"}))


def test_packing_loses_no_token(configuration: Configuration, tokenizer: Any, tmp_path: Path) -> None:
    args = configuration(packing=True, max_length=5)
    found = tokenize(
        load_file("train_file", str(write(tmp_path, "jsonl")), args), tokenizer, args, "train_file"
    )
    joined = [token for ids in found["input_ids"] for token in ids]
    assert tokenizer.decode(joined) == "".join(f"{t}<|endoftext|>" for t in TEXTS if t)
    assert {len(ids) for ids in found["input_ids"][:-1]} == {5}


def test_a_packed_txt_file_is_one_text_with_its_line_breaks(
    configuration: Configuration, tokenizer: Any, tmp_path: Path
) -> None:
    args = configuration(packing=True, max_length=64)
    found = tokenize(
        load_file("train_file", str(write(tmp_path, "txt")), args), tokenizer, args, "train_file"
    )
    assert tokenizer.decode(found["input_ids"][0]) == "\n".join(TEXTS) + "\n<|endoftext|>"


def test_cutting_is_said_aloud(
    configuration: Configuration, tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    args = configuration(max_length=6)
    found = tokenize(
        load_file("train_file", str(write(tmp_path, "jsonl")), args), tokenizer, args, "train_file"
    )
    assert max(map(len, found["input_ids"])) == 6
    assert "1 of 3 texts are longer than max_length=6 and were cut" in caplog.text


@pytest.mark.parametrize(
    ("name", "message"),
    [("nothing.txt", "train_file: there is no file"), ("data.xml", "is not one of .txt, .json")],
)
def test_file_errors(configuration: Configuration, tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "data.xml").write_text("<a/>")
    with pytest.raises(ValueError, match=message):
        load_file("train_file", str(tmp_path / name), configuration())


def test_text_errors(configuration: Configuration, tokenizer: Any, tmp_path: Path) -> None:
    args = configuration()
    rows = load_file("train_file", str(write(tmp_path, "csv", column="body")), args)
    with pytest.raises(ValueError, match=r"no column 'text' \(it has body\)"):
        tokenize(rows, tokenizer, args, "train_file")
    with pytest.raises(ValueError, match="holds no text"):
        tokenize(rows.rename_column("body", "text").select([2]), tokenizer, args, "train_file")
