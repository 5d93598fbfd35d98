"""Runs that start from what ``fastkd new`` made, and tokenizers that it trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import new_teachers
from transformers import AutoConfig, AutoTokenizer

from fastkd.cli import main

STEP = ["--max-steps", "1", "--use-cpu", "--save-strategy", "no", "--max-length", "32"]
PAIRS = [{"source": f"{n} cats.", "target": f"{n} kleine Katzen,\n ja {n}! Größe  ü"} for n in range(40)]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("family", "row"),
    [
        ("qwen2", {"text": "a cat, a dog and a bird"}),
        ("t5", {"source": "a cat", "target": "a dog"}),
        ("roberta", {"text": "a fine cat", "label": "good"}),
    ],
)
def test_one_configuration_makes_the_student_and_distils_it(
    family: str, row: dict[str, str], tmp_path: Path
) -> None:
    teacher = new_teachers.save(tmp_path / "teacher", family)
    config = {
        "task": new_teachers.TASK[family],
        "model": str(tmp_path / "student"),
        "teacher": str(teacher),
        "train_file": write(tmp_path / "rows.jsonl", [row] * 8),
        "output_dir": str(tmp_path / "out"),
    }
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(config))
    assert main(["new", str(path), "--layers", "2"]) == 0
    assert main(["distill", str(path), *STEP]) == 0
    made = AutoConfig.from_pretrained(tmp_path / "out")
    if family == "roberta":
        assert made.id2label == {0: "bad", 1: "good"}
    assert made.num_hidden_layers == 2


def test_a_llama_from_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"body": f"The {n}th line\n\tof  text: naïve 😀 </s>"} for n in range(50)]
    data = ["--train-file", write(tmp_path / "rows.jsonl", rows), "--column-mapping", "{text: body}"]
    sizes = ["--hidden-size", "32", "--layers", "2", "--vocab-size", "300"]
    made = str(tmp_path / "fresh")
    assert main(["new", made, "--architecture", "llama", *data, *sizes]) == 0
    assert "trained on 50 texts" in capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained(made)
    assert tokenizer.is_fast
    assert len(tokenizer) == AutoConfig.from_pretrained(made).vocab_size == 300
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert tokenizer.chat_template is None
    for text in (rows[7]["body"], "quite other words, in 日本語 too"):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.eos_token_id) == 0
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    run = tmp_path / "config.yaml"
    run.write_text(json.dumps({"model": made, "output_dir": str(tmp_path / "out")}))
    assert main(["train", str(run), *data, *STEP]) == 0


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_an_encoder_decoder_from_nothing(kind: str, tmp_path: Path) -> None:
    data = ["--train-file", write(tmp_path / "pairs.jsonl", PAIRS)]
    sizes = ["--hidden-size", "32", "--layers", "2", "--decoder-layers", "1", "--vocab-size", "300"]
    found = []
    for name in ("first", "second"):
        assert main(["new", str(tmp_path / name), "--architecture", kind, *data, *sizes]) == 0
        found.append((tmp_path / name / "tokenizer.json").read_text())
    assert found[0] == found[1]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "first")
    for text in PAIRS[3].values():
        ids = tokenizer(text_target=text)["input_ids"]
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    path = tmp_path / "config.yaml"
    path.write_text(
        json.dumps({"task": "seq2seq", "model": str(tmp_path / "first"), "output_dir": str(tmp_path / "out")})
    )
    assert main(["train", str(path), *data, *STEP]) == 0


def test_a_bert_from_nothing(tmp_path: Path) -> None:
    rows = [{"text": f"Great film number {n}", "label": "good"} for n in range(30)] + [
        {"text": "Bad", "label": "bad"}
    ]
    data = ["--train-file", write(tmp_path / "rows.jsonl", rows)]
    made = str(tmp_path / "fresh")
    sizes = ["--hidden-size", "32", "--layers", "2", "--vocab-size", "80"]
    assert main(["new", made, "--architecture", "bert", *data, *sizes]) == 0
    tokenizer = AutoTokenizer.from_pretrained(made)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("great", "film")["input_ids"])
    assert tokens[0] == "[CLS]"
    assert tokens.count("[SEP]") == 2
    assert "good" not in tokenizer.get_vocab()  # a label is not text
    path = tmp_path / "config.yaml"
    path.write_text(
        json.dumps({"task": "classification", "model": made, "output_dir": str(tmp_path / "out")})
    )
    assert main(["train", str(path), *data, *STEP]) == 0
    assert AutoConfig.from_pretrained(tmp_path / "out").id2label == {0: "bad", 1: "good"}


def test_conversations_get_a_chat_template(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "hello there"}, {"role": "assistant", "content": "good morning"}]
    data = ["--train-file", write(tmp_path / "chats.jsonl", [{"messages": chat}] * 8)]
    sizes = ["--hidden-size", "32", "--layers", "1", "--vocab-size", "280"]
    made = str(tmp_path / "fresh")
    assert main(["new", made, "--architecture", "llama", *data, *sizes]) == 0
    tokenizer = AutoTokenizer.from_pretrained(made)
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    assert text.count("<|im_end|>") == 2
    assert tokenizer.eos_token == "<|im_end|>"
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps({"model": made, "output_dir": str(tmp_path / "out")}))
    assert main(["train", str(path), *data, *STEP]) == 0


def test_another_architecture_takes_the_teachers_tokenizer(tmp_path: Path) -> None:
    teacher = str(new_teachers.save(tmp_path / "teacher", "gpt2"))
    made = tmp_path / "fresh"
    options = ["--architecture", "llama", "--hidden-size", "32", "--layers", "1"]
    assert main(["new", str(made), "--teacher", teacher, *options]) == 0
    theirs, ours = (AutoTokenizer.from_pretrained(folder) for folder in (teacher, made))
    assert ours.get_vocab() == theirs.get_vocab()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "set train_file or dataset"),
        (["--train-file", "ROWS", "--vocab-size", "100"], "give at least 259"),
        (["--train-file", "ROWS", "--layers", "0,1"], "takes their number"),
        (["--train-file", "ROWS", "--task", "seq2seq"], "llama is for causal_lm or classification"),
        (["--train-file", "ROWS", "--hidden-size", "30", "--num-attention-heads", "4"], "no multiple"),
        (["--teacher", "cache:somewhere"], "give its directory or id"),
    ],
)
def test_models_from_nothing_that_cannot_be_made(
    options: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write(tmp_path / "rows.jsonl", [{"text": "words"}])
    given = [rows if option == "ROWS" else option for option in options]
    assert main(["new", str(tmp_path / "fresh"), "--architecture", "llama", *given]) == 1
    assert sentence in capsys.readouterr().err
