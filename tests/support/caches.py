"""Caches of tiny teachers, trainers that read them, and the memory of this process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import stored
from support.stored import MODELS, encoded, settings
from support.tiny import VOCAB, llama
from torch import nn

from fastkd.runs.cache import make_cache
from fastkd.trainer import DistillationConfig, DistillationTrainer

EXACT = {"topk": 2e-3, "hidden": 2e-6}


@pytest.fixture(scope="session")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a cache of the task and kind, with an evaluation part; each is made only once."""
    made: dict[tuple[str, str], Path] = {}

    def make(task: str = "causal_lm", kind: str = "topk") -> Path:
        if (task, kind) not in made:
            folder = tmp_path_factory.mktemp(f"{task}-{kind}")
            args = settings(task=task, cache_kind=kind, cache_top_k=VOCAB)
            teacher = MODELS[task](1, hidden=24)
            for part, count in (("train", 20), ("eval", 6)):
                data = encoded(task, count)
                make_cache(teacher, data, folder / part, args, stored.tokenizer(), shard_rows=6)
            made[task, kind] = folder
        return made[task, kind]

    return make


@pytest.fixture
def copied(caches: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Return a copy of a cache, which the test may damage."""

    def make(*which: str) -> Path:
        return Path(shutil.copytree(caches(*which), tmp_path / "cache"))

    return make


def trainer(
    teacher: Any, args: DistillationConfig, data: Any = None, held_out: Any = None, tokens: Any = None
) -> DistillationTrainer:
    data = encoded(args.task) if data is None else data
    tokens = tokens or stored.tokenizer()
    return DistillationTrainer(MODELS[args.task](0), teacher, args, None, data, held_out, tokens)


def step(made: DistillationTrainer) -> tuple[float, torch.Tensor]:
    """The loss of the first batch and all gradients."""
    torch.manual_seed(3)
    batch = next(iter(made.get_train_dataloader()))
    made.model.train()
    loss = made.model(**batch)["loss"]
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in made.student.parameters() if p.grad is not None])


def peaked(vocab: int, seed: int = 0) -> Any:
    """A teacher whose distributions fall off like a power of the rank, as those of language models do."""
    model = llama(seed, vocab=vocab, tied=False)
    generator = torch.Generator().manual_seed(seed)
    model.lm_head = nn.Linear(16, vocab)
    rank = torch.randperm(vocab, generator=generator) + 1
    with torch.no_grad():
        model.lm_head.weight.normal_(0, 0.3, generator=generator)
        model.lm_head.bias.copy_(-1.85 * rank.float().log())
    return model


def resident(kind: str) -> int:
    lines = Path("/proc/self/status").read_text().split("\n")
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")) * 1024
