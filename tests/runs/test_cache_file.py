"""Test caches of log-probabilities that another program has written, in the layout of vLLM."""

from __future__ import annotations

import functools
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support import stored
from support.tiny import VOCAB
from transformers import AutoModelForCausalLM

from fastkd.cli import main
from fastkd.corpora.logprobs.vllm_files import VllmFiles
from fastkd.corpora.store import CacheReader

K = 5


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's configuration, with held-out data of its own."""
    given = stored.workplace(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("eval.txt").write_text("abc\nbcd efg\n")
    given |= {"max_steps": 2, "save_strategy": "no", "eval_file": "eval.txt", "output_dir": "out"}
    Path("run.yaml").write_text(yaml.safe_dump(given))
    return Path("run.yaml")


def lines(rows: str = "rows.jsonl") -> list[list[int]]:
    return [json.loads(line)["prompt_token_ids"] for line in Path(rows).read_text().splitlines()]


@functools.cache
def teacher(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder / "teacher")


def distributions(ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return teacher(Path.cwd())(torch.tensor([ids])).logits[0].log_softmax(-1)


def answer(ids: list[int], k: int = K) -> dict[str, Any]:
    """An answer such as vLLM gives: the K largest, and the token itself where it is none of them."""
    entries: list[Any] = [None]
    for token, logprobs in zip(ids[1:], distributions(ids), strict=False):
        top = logprobs.topk(k).indices.tolist()
        entries.append(
            {str(i): {"logprob": float(logprobs[i]), "rank": 1} for i in dict.fromkeys([*top, token])}
        )
    return {"prompt_token_ids": ids, "prompt_logprobs": entries}


def write(answers: list[dict[str, Any]], path: str = "logprobs.jsonl") -> None:
    Path(path).write_text("".join(json.dumps(one) + "\n" for one in answers))


def contents(folder: str) -> list[tuple[list[int], list[int], list[float]]]:
    reader = CacheReader(Path(folder))
    reader.verify()
    found = [reader.entries(row) for row in range(len(reader))]
    return [(one.per_token().tolist(), one.columns().tolist(), one.values.tolist()) for one in found]


def test_it_is_the_cache_of_the_model(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows out, log-probabilities in, in another order and in several files: as if the teacher had run."""
    assert main(["cache", str(config), "--write-rows", "rows.jsonl"]) == 0
    assert f"wrote the tokens of {len(lines())} rows" in capsys.readouterr().out
    answers = [answer(ids) for ids in lines()]
    random.Random(0).shuffle(answers)
    # Completions have the lists in their first choice; `RequestOutput` may have been reduced to numbers.
    answers[0] = {"choices": [answers[0]]}
    for i, one in enumerate(answers[1]["prompt_logprobs"][1:], 1):
        answers[1]["prompt_logprobs"][i] = {int(token): value["logprob"] for token, value in one.items()}
    write(answers[:3], "a.jsonl")
    write(answers[3:], "b.jsonl")

    assert main(["cache", str(config), "--from", "[a.jsonl, b.jsonl]", "--output-dir", "given"]) == 0
    said = capsys.readouterr().out
    assert "5.0 entries per token hold" in said and "given/eval: 2 rows" in said
    assert main(["cache", str(config), "--cache_top_k", str(K), "--output-dir", "own"]) == 0
    for part in ("train", "eval"):
        given, own = contents(f"given/{part}"), contents(f"own/{part}")
        assert given == own and given
    made = CacheReader(Path("given/train")).manifest
    assert made.notes["held"] == {**CacheReader(Path("own/train")).manifest.notes["held"]}
    assert main(["distill", str(config), "--teacher", "cache:given"]) == 0
    assert json.loads(Path("out/report.json").read_text())["student"]["eval"]["kd"] > 0


def test_a_killed_run_resumes(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that was written is kept; files that have changed are another cache."""
    monkeypatch.setattr("fastkd.runs.cache.SHARD_TOKENS", 40)
    assert main(["cache", str(config), "--write-rows", "rows.jsonl"]) == 0
    write([answer(ids) for ids in lines()])
    command = ["cache", str(config), "--from", "logprobs.jsonl", "--output-dir", "given"]
    assert main(command) == 0
    before = contents("given/train")
    shards = sorted(Path("given/train").glob("*.safetensors"))
    assert len(shards) > 2
    kept = shards[0].stat().st_mtime_ns
    shards[1].unlink()
    assert main(command) == 0
    assert contents("given/train") == before and shards[0].stat().st_mtime_ns == kept
    write([answer(ids, 4) for ids in lines()])
    assert main(command) == 1


def test_held_out_rows_may_be_missing(config: Path, capsys: pytest.CaptureFixture[str], caplog: Any) -> None:
    assert main(["cache", str(config), "--write-rows", "rows.jsonl"]) == 0
    answers = [answer(ids) for ids in lines()]
    command = ["cache", str(config), "--from", "logprobs.jsonl", "--output-dir"]
    write(answers[:-2])
    assert main([*command, "given"]) == 0
    assert "no row of eval_file is in cache_from" in caplog.text and not Path("given/eval").exists()
    capsys.readouterr()
    write(answers[:-1])
    assert main([*command, "partly"]) == 1
    assert "1 of the 2 rows of eval_file have no line in cache_from, the first of them row 1" in " ".join(
        capsys.readouterr().err.split()
    )
    write(answers[1:])
    assert main([*command, "lacking"]) == 1
    assert "1 of the 24 rows of train_file have no line" in " ".join(capsys.readouterr().err.split())
    assert not Path("lacking/train").exists()


def test_a_probability_of_zero(tmp_path: Path) -> None:
    """vLLM writes -9999 or less for minus infinity. The K largest stay, in the order of their size."""
    path = tmp_path / "a.jsonl"
    entries = [
        {"3": -0.1, "4": -9999.0, "5": -12000.0},
        {"3": {"logprob": -2.5}, "1": -0.7, "0": -1.5, "9": -3.0},
    ]
    path.write_text(json.dumps({"prompt_token_ids": [1, 2, 3], "prompt_logprobs": [None, *entries]}) + "\n")
    files = VllmFiles([path])
    assert (len(files), files.entries, files.renormalised) == (1, 3, False)
    assert files.place([1, 2, 3]) is not None and files.place([1, 2]) is None
    first, second = files.find([1, 2, 3])
    assert first.columns.tolist() == [3, 4, 5] and first.logprobs.tolist() == [-0.1, -math.inf, -math.inf]
    assert second.columns.tolist() == [1, 0, 3] and second.logprobs.tolist() == [-0.7, -1.5, -2.5]


def test_renormalised_probabilities_are_mentioned(config: Path, caplog: Any) -> None:
    assert main(["cache", str(config), "--write-rows", "rows.jsonl"]) == 0
    answers = []
    for ids in lines():
        tops = [logprobs.topk(K) for logprobs in distributions(ids)[:-1]]
        given = [
            dict(zip(map(str, top.indices.tolist()), top.values.log_softmax(-1).tolist(), strict=True))
            for top in tops
        ]
        answers.append({"prompt_token_ids": ids, "prompt_logprobs": [None, *given]})
    write(answers)
    assert main(["cache", str(config), "--from", "logprobs.jsonl", "--output-dir", "given"]) == 0
    assert "the 5 probabilities of every token sum to 1" in caplog.text


WRONG: list[tuple[str, str]] = [
    ("{", "logprobs.jsonl, line 2 is no JSON"),
    ("[]", "line 2 has no list prompt_token_ids: ask vLLM for prompt_logprobs"),
    ('{"prompt_token_ids": [1, 2]}', "line 2 has no list prompt_logprobs"),
    ('{"prompt_token_ids": [1, "a"], "prompt_logprobs": [null, {"1": -1}]}', "must be a list of numbers"),
    ('{"prompt_token_ids": [1, 2, 3], "prompt_logprobs": [null, {"1": -1}]}', "3 tokens have 2 entries"),
    ('{"prompt_token_ids": [1, 2, 3], "prompt_logprobs": [null, {"1": -1}, null]}',
     "line 2, token 3 has no log-probabilities"),
    ('{"prompt_token_ids": [1, 2], "prompt_logprobs": [null, {}]}', "token 2 has no log-probabilities"),
    ('{"prompt_token_ids": [1, 2], "prompt_logprobs": [null, {"x": -1}]}', "'x' is no token id"),
    ('{"prompt_token_ids": [1, 2], "prompt_logprobs": [null, {"1": NaN}]}', "nan is no log-probability"),
    ('{"prompt_token_ids": [1, 2], "prompt_logprobs": [null, {"1": {"rank": 1}}]}', "None is no log-prob"),
    ('{"prompt_token_ids": [1, 2], "prompt_logprobs": [null, {"1": -0.1, "2": -0.1}]}',
     "the probabilities sum to 1.810, more than 1"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "said"), WRONG)
def test_lines_that_cannot_be_right(
    config: Path, capsys: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    good = {"prompt_token_ids": [1, 2], "prompt_logprobs": [None, {"1": -0.5}]}
    Path("logprobs.jsonl").write_text(f"{json.dumps(good)}\n{line}\n")
    assert main(["cache", str(config), "--from", "logprobs.jsonl", "--output-dir", "given"]) == 1
    assert said in " ".join(capsys.readouterr().err.split()) and not Path("given/train").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--from", "none.jsonl"], "cache_from: there is no file 'none.jsonl'"),
        (["--from", "logprobs.jsonl", "--kind", "hidden"], "cache_from makes a topk cache"),
        (["--from", "logprobs.jsonl", "--task", "seq2seq"],
         "cache_from has log-probabilities of prompts, which need task: causal_lm, not seq2seq"),
        (["--from", "empty.jsonl"], "empty.jsonl: no log-probabilities in it"),
        (["--write-rows", "logprobs.jsonl"], "logprobs.jsonl is there already"),
        (["--write-rows"], "--write-rows needs the name of a file"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit(
    config: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert main(["cache", str(config), "--write-rows", "rows.jsonl"]) == 0
    write([answer(ids) for ids in lines()])
    Path("empty.jsonl").write_text("\n")
    assert main(["cache", str(config), "--output-dir", "given", *options]) == 1
    assert said in " ".join(capsys.readouterr().err.split())


def test_tokens_that_the_teacher_does_not_know(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", str(config), "--write-rows", "rows.jsonl"]) == 0
    answers = [answer(ids) for ids in lines()]
    likeliest = answers[2]["prompt_logprobs"][-1]
    likeliest[str(VOCAB)] = likeliest.pop(next(iter(likeliest)))
    write(answers)
    assert main(["cache", str(config), "--from", "logprobs.jsonl", "--output-dir", "given"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert f"token {VOCAB}, and the teacher's vocabulary is {VOCAB}: it is another model's" in said
