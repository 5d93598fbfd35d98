"""Test that the recipes in ``docs/integrations.md`` run, each with the library that it is for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from torch import nn

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "integrations.md").read_text()
RECIPES = re.findall(r"^```python (\w+)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_each_library_has_a_recipe() -> None:
    assert [name for name, _ in RECIPES] == ["trl", "modelopt", "speculators", "sentence_transformers"]


def scope_of(name: str, folder: Path) -> dict[str, Any]:
    """The names that the recipe takes for granted."""
    if name == "trl":
        from datasets import Dataset
        from test_trl import COMMON, tokenizer
        from trl import DistillationConfig

        return {
            "student": tiny.llama(0),
            "teacher": tiny.llama(1),
            "args": DistillationConfig(output_dir=str(folder), max_completion_length=4, **COMMON),
            "prompts": Dataset.from_dict({"prompt": ["w3 w4", "w5"] * 3}),
            "tokenizer": tokenizer(),
        }
    if name == "modelopt":
        from fastkd.integrations.modelopt import LogitsDistillationLoss

        return {
            "student": nn.Linear(4, 9),
            "teacher": nn.Linear(4, 9),
            "criterion": LogitsDistillationLoss(),
        }
    return {"model": nn.Identity()}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "recipe"), RECIPES, ids=[name for name, _ in RECIPES])
def test_the_recipe_runs(name: str, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(name)
    if name == "speculators":
        utils = pytest.importorskip("speculators.losses.utils")
        for key, loss in dict(utils._FUSED_LOSS_FN_MAP).items():
            monkeypatch.setitem(utils._FUSED_LOSS_FN_MAP, key, loss)  # restored afterwards
    scope = scope_of(name, tmp_path)
    exec(compile(recipe, "integrations.md", "exec"), scope)
    if name == "trl":
        assert scope["trainer"].state.global_step == 3
    elif name == "modelopt":
        model = scope["model"]
        model.train()
        model(torch.randn(3, 4))
        assert model.compute_kd_loss().item() > 0
    elif name == "speculators":
        assert set(scope["loss_config"]) == {"ce", "tv"}
    else:
        assert scope["loss"].compute_loss_from_embeddings([torch.ones(2, 3)] * 3, torch.rand(2, 2)) > 0
