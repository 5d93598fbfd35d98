"""Models, data and jobs for the tests of caches and generated sets; runs/test_kill.py also kills the jobs."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny import VOCAB, llama, rows
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from fastkd.corpora.rows import load_rows
from fastkd.corpora.store import manifest as manifests
from fastkd.runs.cache import make_cache
from fastkd.runs.generate import generate_rows
from fastkd.runs.train import load_data, run
from fastkd.trainer import DistillationConfig
from fastkd.trainer.loading import load_teacher_model

LETTERS = ["<end>", *(chr(97 + i) for i in range(26)), "Ġ", *(chr(65 + i) for i in range(20))]
CHAT = "{% for m in messages %}{{ m.content }} {% endfor %}"


def tokenizer(end: str = "<end>", letters: list[str] = LETTERS) -> Any:
    """A tokenizer with one token per letter, and a chat template."""
    bpe = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=end)
    made.chat_template = CHAT
    return made


def bart(seed: int = 0, hidden: int = 16) -> Any:
    torch.manual_seed(seed)
    config = BartConfig(
        vocab_size=VOCAB, d_model=hidden, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=40,
        init_std=0.4, pad_token_id=1, bos_token_id=0, eos_token_id=0, decoder_start_token_id=2,
        forced_eos_token_id=None, dropout=0.0,
    )  # fmt: skip
    model = BartForConditionalGeneration(config)
    model.final_logits_bias.copy_(torch.randn(1, VOCAB))
    return model


def bert(seed: int = 0, hidden: int = 16) -> Any:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCAB, hidden_size=hidden, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=40, num_labels=5, initializer_range=0.5,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForSequenceClassification(config)


MODELS = {"causal_lm": llama, "seq2seq": bart, "classification": bert}


def encoded(task: str, count: int = 20) -> list[dict[str, Any]]:
    """Rows as the task encodes them, with some of their targets masked."""
    found = rows(count)
    for i, row in enumerate(found):
        ids = row["input_ids"]
        if task == "causal_lm":
            row["labels"] = [-100, -100, *ids[2:]]
        elif task == "seq2seq":
            row["labels"] = ids[: 1 + i % 5]
        else:
            row["labels"] = -100 if i % 7 == 3 else i % 5
    return found


def files(folder: Path) -> dict[str, bytes]:
    """The contents of every file."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def prompts(count: int) -> list[dict[str, str]]:
    words = ["ab", "cde", "fgab", "hi", "jkl mn"]
    return [
        {"prompt": f"{words[i % 5]} {words[i % 3]}", "completion": f" {words[i % 4]}", "tag": f"row {i}"}
        for i in range(count)
    ]


def workplace(folder: Path, count: int = 24) -> dict[str, Any]:
    """A saved teacher and student, data with prompts, and the settings of a run on them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, model in (("teacher", llama(1, hidden=24)), ("student", llama(0))):
        model.save_pretrained(folder / name)
        tokenizer().save_pretrained(folder / name)
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts(count)))
    return {
        "model": str(folder / "student"),
        "teacher": str(folder / "teacher"),
        "train_file": str(folder / "data.jsonl"),
        "max_length": 24,
        "max_completion_length": 6,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
    }


def settings(**fields: Any) -> DistillationConfig:
    fixed: dict[str, Any] = {
        "output_dir": "unused",
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
    }
    return DistillationConfig(**{**fixed, "max_steps": 2, "save_strategy": "no", **fields})


class Crash(BaseException):
    """Ends a run like a kill: as a BaseException, it passes the handlers in fastkd."""


@contextlib.contextmanager
def crash_at(moment: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Raise ``Crash`` at the given moment; the moments are before and after each flush and rename."""
    passed = 0

    def counting(function: Any) -> Any:
        def called(*args: Any, **kwargs: Any) -> Any:
            nonlocal passed
            for late in (False, True):
                passed += 1
                if passed == moment:
                    raise Crash
                result = None if late else function(*args, **kwargs)
                if not late:
                    kept = result
            return kept

        return called

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", counting(os.fsync))
        patch.setattr(Path, "replace", counting(Path.replace))
        yield


def redigested(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Alter a manifest and give it a right digest, as an attacker would."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    del content["digest"]
    change(content)
    path.write_text(json.dumps({**content, "digest": manifests._digest(content)}))


def job(command: str, folder: Path, fields: dict[str, Any]) -> None:
    """Do the work of a command, with shards so small that there are many of them."""
    torch.set_num_threads(1)
    args = DistillationConfig(output_dir=str(folder), **fields)
    if command == "cache":
        data = load_data(args)
        make_cache(load_teacher_model(args), data.train, folder, args, data.tokenizer, shard_rows=2)
    elif command == "generate":
        rows = load_rows("train_file", args)
        assert rows is not None
        generate_rows(load_teacher_model(args), tokenizer(), rows, folder, args, shard_rows=2)
    else:
        run(args, command)
