"""Test what fastkd cache, doctor and estimate say a cache holds and takes, for flat and peaked teachers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import stored
from support.stored import encoded, settings
from support.tiny import VOCAB, llama

from fastkd.cli import main
from fastkd.corpora.store import CacheReader
from fastkd.corpora.store.held import BINS
from fastkd.divergences import DIVERGENCES
from fastkd.runs.cache import make_cache
from fastkd.runs.cache_contents import measured_mass, stated_mass
from fastkd.runs.doctor import examine
from fastkd.runs.estimate import estimate
from fastkd.trainer.teachers import CachedTeacher

# Factors on the head of a teacher: nearly uniform distributions, and ones with most on a few columns.
SHAPES = {"flat": 0.3, "peaked": 4.0}


def teacher_of(shape: str) -> Any:
    model = llama(1, hidden=24, tied=False)
    with torch.no_grad():
        model.lm_head.weight.mul_(SHAPES[shape])
    return model


def distributions(model: Any, temperature: float) -> np.ndarray:
    """The teacher's distributions at all targets of the data, in float64."""
    found = []
    for row in encoded("causal_lm"):
        with torch.no_grad():
            logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1]
        there = torch.tensor(row["labels"])[1:] != -100
        found.append((logits[there].double() / temperature).softmax(-1).numpy())
    return np.concatenate(found)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_manifest_states_the_mass(tmp_path: Path, shape: str) -> None:
    model = teacher_of(shape)
    args = settings(cache_top_k=8, teacher_temperature=2.0)
    made = make_cache(model, encoded("causal_lm"), tmp_path, args, stored.tokenizer(), shard_rows=6)
    content = json.loads((tmp_path / "manifest.json").read_text())["notes"]["held"]
    assert content["entries_per_token"] == 8 and set(content["mass"]) == {"1", "2"}
    for name, stated in content["mass"].items():
        held = np.sort(distributions(model, float(name)), -1)[:, -8:].sum(-1)
        low = np.percentile(held, 5, method="inverted_cdf")
        assert len(held) == made.tokens
        assert stated["mean"] == pytest.approx(held.mean(), abs=1e-4)
        assert stated["p5"] == pytest.approx(low, abs=1.1 / BINS)
    reader = CacheReader(tmp_path)
    reader.verify()
    assert measured_mass(reader)[0].mean == pytest.approx(content["mass"]["1"]["mean"], abs=1e-3)
    assert stated_mass(made, 3.0) == stated_mass(made, 1.0)


@pytest.fixture
def place(tmp_path: Path) -> dict[str, Any]:
    """A workplace with a flat teacher, and its settings."""
    given = stored.workplace(tmp_path, 60)
    teacher_of("flat").save_pretrained(tmp_path / "teacher")
    (tmp_path / "run.yaml").write_text(json.dumps({**given, "output_dir": str(tmp_path / "out")}))
    return {**given, "output_dir": str(tmp_path / "out")}


@pytest.mark.parametrize("shape", SHAPES)
def test_estimated_bytes_are_those_of_the_cache(
    tmp_path: Path, place: dict[str, Any], shape: str, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher_of(shape).save_pretrained(tmp_path / "teacher")
    args = settings(**{**place, "cache_samples": 20, "cache_top_k": 8})
    found = estimate(args, timed=False, measured=True).caches
    for kind in ("topk", "sampled"):
        option = ["--cache-samples", "20"] if kind == "sampled" else ["--cache-top-k", "8"]
        folder = tmp_path / f"{kind}"
        command = ["cache", str(tmp_path / "run.yaml"), "--kind", kind, "--output-dir", str(folder), *option]
        assert main(command) == 0
        made = json.loads((folder / "train" / "manifest.json").read_text())
        header = sum(
            int.from_bytes((folder / "train" / shard["name"]).read_bytes()[:8], "little") + 8
            for shard in made["shards"]
        )
        written = (
            made["bytes_per_token"] - header / made["tokens"]
        )  # the header of a shard is 1 kB at any size
        assert found[kind].per_token == pytest.approx(written, rel=0.15)
        if kind == "sampled":
            stated = made["notes"]["held"]["entries_per_token"]
            assert found[kind].distinct == pytest.approx(stated, rel=0.1) and found[kind].range is None
            assert f"{stated:.1f} distinct columns per token hold" in capsys.readouterr().out
        else:
            assert found[kind].mass == pytest.approx(made["notes"]["held"]["mass"]["1"]["mean"], abs=0.05)
    assumed = estimate(args, timed=False).caches["sampled"]
    low, high = assumed.range or (0, 0)
    assert low < assumed.per_token < high and assumed.distinct is None


def test_a_cache_that_holds_little_is_reported(
    tmp_path: Path, place: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """By `fastkd cache` when it is made, and by the doctor before that and when a run reads it."""
    folder = str(tmp_path / "cached")
    found = {one.name: one for one in examine(settings(**place, cache_top_k=4))}
    assert found["cache_would_hold_little"].severity == "note"
    assert "distinct" in found["cache_would_hold_little"].found
    command = ["cache", str(tmp_path / "run.yaml"), "--output-dir", folder, "--cache-top-k"]
    assert main([*command, "4"]) == 0
    said = capsys.readouterr().out
    assert "warning: " in said and "at temperature 1 (5th percentile " in said
    reading = {**place, "teacher": f"cache:{folder}"}
    for fast in (True, False):
        found = {one.name: one for one in examine(settings(**reading), fast)}
        assert found["cache_holds_little"].severity == "warning"
        assert "cache_kind: sampled" in found["cache_holds_little"].remedy
    renormalized = settings(**reading, cache_tail="renormalize", temperature=2.0)
    advice = {one.name: one for one in examine(renormalized, fast=True)}["cache_holds_little"]
    assert advice.remedy.startswith("set cache_tail: bucket, or set temperature: 1, or ")
    assert main([*command[:-2], str(tmp_path / "more"), "--cache-top-k", "48"]) == 0
    assert "warning" not in capsys.readouterr().out
    whole = settings(**{**place, "teacher": f"cache:{tmp_path / 'more'}"})
    assert "cache_holds_little" not in {one.name for one in examine(whole)}


def test_a_tail_for_a_sampled_cache_is_refused(
    tmp_path: Path, place: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, config = str(tmp_path / "cached"), str(tmp_path / "run.yaml")
    assert main(["cache", config, "--kind", "sampled", "--output-dir", folder]) == 0
    assert main(["doctor", config, "--teacher", f"cache:{folder}", "--cache-tail", "bucket"]) == 1
    assert "is of the kind sampled: leave it out" in capsys.readouterr().err


def test_the_default_tail_supports_what_the_other_does(tmp_path: Path) -> None:
    make_cache(llama(1, hidden=24), encoded("causal_lm"), tmp_path / "train", settings(), stored.tokenizer())
    for divergence in DIVERGENCES:
        options: dict[str, Any] = {"alpha": 0.5} if divergence == "alpha" else {}
        for tail in ("bucket", "renormalize"):
            args = settings(divergence=divergence, cache_tail=tail, **options)
            if divergence == "decoupled":
                with pytest.raises(ValueError, match="does not work with a topk cache"):
                    CachedTeacher(tmp_path).check(args, stored.tokenizer())
            else:
                CachedTeacher(tmp_path).check(args, stored.tokenizer())
    assert VOCAB == 48 and settings().cache_tail == "bucket"
