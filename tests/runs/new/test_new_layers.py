"""Students with layers of their teacher: the layers are the teacher's, bit for bit, in every family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support import new_teachers
from transformers import AutoModel

from fastkd.cli import main
from fastkd.runs.new.layers import spread

# Where each family has its layers.
PLACES = {
    **dict.fromkeys(new_teachers.CAUSAL, ("model.layers",)),
    "gpt2": ("transformer.h",),
    "gpt_neo": ("transformer.h",),
    "t5": ("encoder.block", "decoder.block"),
    **dict.fromkeys(("bart", "marian", "m2m_100"), ("model.encoder.layers", "model.decoder.layers")),
    "bert": ("bert.encoder.layer",),
    "roberta": ("roberta.encoder.layer",),
    "modernbert": ("model.layers",),
    "distilbert": ("distilbert.transformer.layer",),
    "albert": (),  # its layers share their weights
}
# T5's position biases are in the first layer, whichever that is.
BIASES = "relative_attention_bias.weight"


def load(folder: Path, family: str) -> Any:
    auto = new_teachers.AUTO[new_teachers.TASK[family]]
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    words = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 2]])
    more = {"decoder_input_ids": words} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=words, **more).logits
    return found


@pytest.mark.parametrize(
    ("wanted", "there", "layers"),
    [
        (6, 12, [0, 2, 4, 7, 9, 11]),  # those of DistilBERT
        (3, 6, [0, 3, 5]),
        (2, 6, [0, 5]),
        (1, 6, [0]),
        (4, 12, [0, 4, 7, 11]),
        (3, 12, [0, 6, 11]),
        (12, 24, [0, 2, 4, 6, 8, 10, 13, 15, 17, 19, 21, 23]),
        (5, 5, [0, 1, 2, 3, 4]),
        (4, 5, [0, 1, 3, 4]),
    ],
)
def test_layers_are_evenly_spread(wanted: int, there: int, layers: list[int]) -> None:
    assert spread(wanted, there) == layers


@pytest.mark.repeats(8)
@pytest.mark.parametrize("family", new_teachers.FAMILIES)
def test_layers_are_the_teachers(family: str, tmp_path: Path) -> None:
    teacher = load(new_teachers.save(tmp_path / "teacher", family), family)
    assert (
        main(["new", str(tmp_path / "small"), "--teacher", str(tmp_path / "teacher"), "--layers", "2"]) == 0
    )
    small = load(tmp_path / "small", family)
    mine, theirs = small.state_dict(), teacher.state_dict()
    expected = {name: name for name in mine}
    for place in PLACES[family]:
        last = len(teacher.get_submodule(place)) - 1
        assert len(small.get_submodule(place)) == 2
        expected |= {
            name: name.replace(f"{place}.1.", f"{place}.{last}.", 1)
            for name in mine
            if name.startswith(f"{place}.1.")
        }
    for name, source in expected.items():
        assert torch.equal(mine[name], theirs[source]), name
    # Nothing that a module does by itself has changed either: the logits of a copied layer list are those of
    # the teacher with the other layers removed.
    if len(PLACES[family]) == 1 and family not in ("gpt2", "gpt_neo"):
        (place,) = PLACES[family]
        layers = teacher.get_submodule(place)
        kept = torch.nn.ModuleList([layers[0], layers[len(layers) - 1]])
        for number, layer in enumerate(kept):
            for module in layer.modules():
                if hasattr(module, "layer_idx"):
                    module.layer_idx = number
        parent, _, leaf = place.rpartition(".")
        setattr(teacher.get_submodule(parent), leaf, kept)
        teacher.config.num_hidden_layers = 2
        if getattr(teacher.config, "layer_types", None):
            kinds = list(teacher.config.layer_types)
            teacher.config.layer_types = [kinds[0], kinds[-1]]
        torch.testing.assert_close(logits(small), logits(teacher))


@pytest.mark.parametrize("family", ["tied", "gemma3", "qwen3_moe", "t5", "marian", "distilbert"])
def test_a_copy_of_all_layers_is_the_teacher(family: str, tmp_path: Path) -> None:
    teacher = load(new_teachers.save(tmp_path / "teacher", family), family)
    assert main(["new", str(tmp_path / "same"), "--teacher", str(tmp_path / "teacher")]) == 0
    assert torch.equal(logits(load(tmp_path / "same", family)), logits(teacher))


def test_layers_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first of T5's kept layers gets the position biases, and encoder and decoder are chosen apart."""
    teacher = load(new_teachers.save(tmp_path / "teacher", "t5"), "t5")
    chosen = ["--layers", "1,-1", "--decoder-layers", "[2]"]
    assert main(["new", str(tmp_path / "small"), "--teacher", str(tmp_path / "teacher"), *chosen]) == 0
    printed = capsys.readouterr().out
    assert "encoder layers 1, 3 of the teacher's 4 were copied" in printed
    assert "decoder layers 2 of the teacher's 3 were copied" in printed
    small = load(tmp_path / "small", "t5")
    assert (small.config.num_layers, small.config.num_decoder_layers) == (2, 1)
    mine, theirs = small.state_dict(), teacher.state_dict()
    for part, layers in (("encoder", [1, 3]), ("decoder", [2])):
        bias = f"{part}.block.0.layer.0.SelfAttention.{BIASES}"
        assert torch.equal(mine[bias], theirs[bias])
        for i, layer in enumerate(layers):
            name = "layer.0.SelfAttention.q.weight"
            assert torch.equal(mine[f"{part}.block.{i}.{name}"], theirs[f"{part}.block.{layer}.{name}"])


@pytest.mark.parametrize(
    ("family", "layers", "fields"),
    [
        ("qwen2", "1,3", {"layer_types": ["full_attention", "sliding_attention"], "max_window_layers": 1}),
        ("gemma3", "0,3", None),
        ("gpt_neo", "1,2", {"attention_layers": ["local", "global"]}),
        ("smollm3", "0,2,3", {"no_rope_layers": [1, 1, 0]}),
        ("qwen3_moe", "0,1,3", {"mlp_only_layers": [1]}),
    ],
)
def test_fields_of_single_layers_are_cut(family: str, layers: str, fields: Any, tmp_path: Path) -> None:
    teacher = load(new_teachers.save(tmp_path / "teacher", family), family)
    options = ["--teacher", str(tmp_path / "teacher"), "--layers", layers]
    assert main(["new", str(tmp_path / "small"), *options]) == 0
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    kinds = teacher.config.layer_types if fields is None else []
    for name, value in (fields or {"layer_types": [kinds[int(i)] for i in layers.split(",")]}).items():
        assert config[name] == value


def test_a_layer_that_would_change_its_kind_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ModernBERT's first layer has no norm of its own, so no other layer can take its place."""
    new_teachers.save(tmp_path / "teacher", "modernbert")
    options = ["--teacher", str(tmp_path / "teacher"), "--layers", "1,5"]
    assert main(["new", str(tmp_path / "small"), *options]) == 1
    assert "name the layers with --layers" in capsys.readouterr().err
    assert not (tmp_path / "small").exists()


def test_a_base_encoder_stays_without_a_head(tmp_path: Path) -> None:
    whole = load(new_teachers.save(tmp_path / "whole", "bert"), "bert")
    whole.bert.save_pretrained(tmp_path / "teacher")
    assert (
        main(["new", str(tmp_path / "small"), "--teacher", str(tmp_path / "teacher"), "--layers", "3"]) == 0
    )
    small, info = AutoModel.from_pretrained(tmp_path / "small", output_loading_info=True)
    assert not info["missing_keys"] | info["unexpected_keys"]
    assert small.config.architectures == ["BertModel"]
    name = "attention.output.dense.weight"
    for i, layer in enumerate([0, 3, 5]):
        assert torch.equal(
            small.state_dict()[f"encoder.layer.{i}.{name}"],
            whole.bert.state_dict()[f"encoder.layer.{layer}.{name}"],
        )
