"""Test the configuration: bad values are refused at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from fastkd.trainer import DistillationConfig

Configuration = Callable[..., DistillationConfig]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"problem_type": "ranking"}, "problem_type must be single_label_classification or multi_label"),
        ({"problem_type": "regression"}, "problem_type is for classification, not for causal_lm"),
        ({"task": "translation"}, "task must be causal_lm or seq2seq or classification"),
        ({"divergence": "forwrd_kl"}, "forward_kl"),
        ({"kd_ratio": 1.5}, "kd_ratio"),
        ({"temperature": 0.0}, "temperature"),
        ({"fused_head": "maybe"}, "fused_head must be"),
        ({"model_init": "random"}, "model_init must be"),
        ({"max_length": 1}, "max_length"),
        ({"lmbda": 1.5}, "lmbda is a share"),
        ({"packing": True, "task": "seq2seq"}, "packing is for causal_lm"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs must not set tokenize"),
        ({"rewritten_turns": "first"}, "rewritten_turns must be split or last"),
        ({"cache_kind": "top"}, "cache_kind must be topk"),
    ],
)
def test_a_bad_configuration_is_refused_at_once(
    configuration: Configuration, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        configuration(**fields)


def test_a_configuration_is_read_without_the_trainer() -> None:
    """Importing the configuration imports no module with models or tasks, only what validates its fields."""
    code = (
        "import sys, fastkd.trainer.config; print(*sorted(m for m in sys.modules if m.startswith('fastkd.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    loaded = {name for name in done.stdout.split() if name.split(".")[1] in ("trainer", "corpora", "runs")}
    settings = ("config", "field_values", "matches", "seeds", "teacher_names", "zero")
    own = {"fastkd.trainer", *(f"fastkd.trainer.{name}" for name in settings)}
    assert loaded == {*own, "fastkd.corpora", "fastkd.corpora.generation"}
