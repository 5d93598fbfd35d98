"""The directory that ``fastkd new`` writes: nothing is lost, and the same seed gives the same files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import new_teachers
from transformers import AutoConfig, LlamaForCausalLM

from fastkd.cli import main
from fastkd.files import file_digest


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    return str(new_teachers.save(tmp_path / "teacher", "llama"))


def digest(folder: Path) -> str:
    return file_digest(folder / "model.safetensors")


def test_the_same_seed_gives_the_same_weights(teacher: str, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    options = ["--teacher", teacher, "--init", "scratch", "--layers", "2"]
    found = []
    for seed in ("1", "1", "2"):  # its own directory is made again
        assert main(["new", str(folder), *options, "--seed", seed]) == 0
        found.append(digest(folder))
    assert found[0] == found[1] != found[2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small", "teacher"]


def test_files_of_others_are_not_replaced(
    teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "small"
    make = ["new", str(folder), "--teacher", teacher]
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    assert main([*make, "--layers", "2"]) == 1
    assert "notes.txt, which fastkd new did not write" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    (folder / "notes.txt").unlink()
    assert main([*make, "--layers", "2"]) == 0
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 5.0}))
    assert main([*make, "--layers", "3"]) == 1
    assert "config.json, which" in capsys.readouterr().err
    assert main(["new", teacher, "--teacher", teacher, "--layers", "2"]) == 1


def test_a_failure_leaves_the_directory_as_it_was(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "small"
    make = ["new", str(folder), "--teacher", teacher, "--layers"]
    assert main([*make, "2"]) == 0
    before = digest(folder)

    def fails(*_: Any, **__: Any) -> None:
        raise OSError("broken")

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", fails)
    assert main([*make, "3"]) == 1
    assert digest(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small", "teacher"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--layers", "9"], "ask for at most 4"),
        (["--layers", "0,7"], "the teacher has no layer 7"),
        (["--layers", "3,1"], "in their order"),
        (["--layers", "few"], "must be a number of layers"),
        (["--layer", "2"], "did you mean --layers?"),
        (["--decoder-layers", "2"], "decoder_layers is for encoder-decoders"),
        (["--hidden-size", "8", "--init", "layers"], "cannot be copied to another width"),
        (["--hidden-size", "10", "--num-attention-heads", "4"], "give 5 heads, or hidden_size 8"),
        (["--num-key-value-heads", "3"], "give 4 key-value heads"),
        (["--vocab-size", "90"], "vocab_size is for --architecture"),
        (["--task", "seq2seq"], "no model of the family 'llama' can be made for seq2seq"),
        (["--init", "layers", "--architecture", "llama"], "leave --architecture or --init out"),
    ],
)
def test_requests_that_cannot_be_met(
    teacher: str, tmp_path: Path, options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", str(tmp_path / "small"), "--teacher", teacher, *options]) == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_models_made_of_several(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model of images and text is refused in a sentence that says what to give instead."""
    AutoConfig.for_model(family).save_pretrained(tmp_path / "teacher")
    assert (
        main(["new", str(tmp_path / "small"), "--teacher", str(tmp_path / "teacher"), "--layers", "2"]) == 1
    )
    said = " ".join(capsys.readouterr().err.split())
    assert f"({family}) consists of several models: save its language model in a directory of its own" in said


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("adapter_config.json", {"base_model_name_or_path": "x"}, "merge it into its model first"),
        ("config.json", {"quantization_config": {"quant_method": "bitsandbytes"}}, "is quantised"),
    ],
)
def test_teachers_without_weights_to_copy(
    teacher: str, tmp_path: Path, file: str, content: Any, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(teacher) / file
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(before | content))
    assert main(["new", str(tmp_path / "small"), "--teacher", teacher, "--layers", "2"]) == 1
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("family", "options", "fields"),
    [
        ("llama", {"hidden_size": 8}, {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4}),
        ("llama", {"intermediate_size": 24}, {"hidden_size": 16, "intermediate_size": 24}),
        ("qwen3", {"hidden_size": 8}, {"num_attention_heads": 2, "head_dim": 8, "intermediate_size": 16}),
        ("gpt2", {"hidden_size": 8}, {"n_embd": 8, "n_head": 2}),
        ("t5", {"hidden_size": 8}, {"d_model": 8, "num_heads": 2, "d_kv": 4, "d_ff": 16}),
        ("bart", {"hidden_size": 8}, {"decoder_attention_heads": 2, "decoder_ffn_dim": 16}),
        ("distilbert", {"hidden_size": 8}, {"dim": 8, "hidden_dim": 16, "n_heads": 2}),
        ("qwen3_moe", {"hidden_size": 8}, {"moe_intermediate_size": 8, "num_experts": 4}),
    ],
)
def test_widths_shrink_together(
    family: str, options: dict[str, int], fields: dict[str, int], tmp_path: Path
) -> None:
    teacher = new_teachers.save(tmp_path / "teacher", family)
    sizes = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    assert main(["new", str(tmp_path / "small"), "--teacher", str(teacher), *sizes]) == 0
    config = AutoConfig.from_pretrained(tmp_path / "small")
    assert {name: getattr(config, name) for name in fields} == fields
