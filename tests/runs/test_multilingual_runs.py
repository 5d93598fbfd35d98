"""Test distillation, generation and evaluation of a multilingual encoder-decoder, from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import languages
from transformers import AutoTokenizer, GenerationConfig

from fastkd.cli import main
from fastkd.corpora.store import open_generated


@pytest.fixture
def workplace(tmp_path: Path) -> Any:
    """Writes a configuration, with models and data beside it, and returns its path."""
    tokenizer = languages.nllb()
    for name, seed in (("student", 0), ("teacher", 1)):
        model = languages.m2m100_model(seed, len(tokenizer))
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    data = [{"source": "ab" + "c" * (i % 3), "target": "de"} for i in range(8)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))

    def write(**fields: Any) -> str:
        fixed: dict[str, Any] = {
            "task": "seq2seq",
            "model": str(tmp_path / "student"),
            "teacher": str(tmp_path / "teacher"),
            "train_file": str(tmp_path / "data.jsonl"),
            "eval_file": str(tmp_path / "data.jsonl"),
            "output_dir": str(tmp_path / "out"),
            "max_steps": 2,
            "max_length": 16,
            "max_completion_length": 6,
            "num_beams": 2,
            "use_cpu": True,
            "disable_tqdm": True,
            "report_to": "none",
            "save_strategy": "no",
        }
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({**fixed, **fields}))
        return str(tmp_path / "config.yaml")

    return write


@pytest.mark.parametrize("command", ["distill", "generate", "evaluate"])
def test_a_target_language_is_asked_for(
    command: str, workplace: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, workplace()]) == 1
    assert "set source_language and target_language" in capsys.readouterr().err


def test_the_whole_way(workplace: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The answers are in the target language, and so are those of the saved student by itself."""
    config = workplace(
        source_language="eng_Latn", target_language="deu_Latn", generation_kwargs={"length_penalty": 2.0}
    )
    answers, out = str(tmp_path / "answers"), str(tmp_path / "out")
    assert main(["generate", config, "--output-dir", answers]) == 0
    made_from = json.loads((tmp_path / "answers" / "manifest.json").read_text())["made_from"]
    assert made_from["generation_kwargs"] == {"length_penalty": 2.0}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "teacher")
    wanted = tokenizer.convert_tokens_to_ids("deu_Latn")
    assert made_from["generation_config"]["forced_bos_token_id"] == wanted
    assert not any("deu_Latn" in text for text in open_generated("train_file", Path(answers))["target"])
    assert main(["distill", config, "--train-file", answers, "--lmbda", "0.5"]) == 0
    assert GenerationConfig.from_pretrained(out).forced_bos_token_id == wanted
    saved = AutoTokenizer.from_pretrained(out)
    assert (saved.src_lang, saved.tgt_lang) == ("eng_Latn", "deu_Latn")
    assert main(["evaluate", workplace(), "--model", out]) == 0  # the tokenizer has stored its languages
    assert main(["generate", workplace(target_language="fra_Latn", source_language="eng_Latn"),
                 "--output-dir", answers]) == 1  # fmt: skip
    assert "target_language (deu_Latn, now fra_Latn)" in (capsys.readouterr().err)
