"""Test a served teacher against a real server of vLLM, and the stub of the other tests against it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from support import stored
from support.served import Stub, serving
from support.served_runs import TopK, generated, trained
from support.stored import settings
from support.vllm_server import Vllm

pytest.importorskip("httpx")

from fastkd.cli import main
from fastkd.corpora.tasks import TASKS
from fastkd.trainer.teachers import ServedTeacher

pytestmark = pytest.mark.served

REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "models": ("/v1/models", {}),
    "tokenize": ("/tokenize", {"model": "teacher", "prompt": "abc d", "add_special_tokens": False}),
    "prompt": ("/v1/completions", {"prompt": [5, 7, 9, 47], "prompt_logprobs": 3}),
    "the token among the largest": ("/v1/completions", {"prompt": [5, 7, 9], "prompt_logprobs": 20}),
    "the token alone": ("/v1/completions", {"prompt": [5, 7, 9], "prompt_logprobs": 0}),
    "too many": ("/v1/completions", {"prompt": [5, 7], "prompt_logprobs": 21}),
    "unknown token": ("/v1/completions", {"prompt": [5, 48], "prompt_logprobs": 3}),
    "too long": ("/v1/completions", {"prompt": [5] * 128, "prompt_logprobs": 3}),
    "another model": ("/v1/completions", {"model": "other", "prompt": [5, 7], "prompt_logprobs": 3}),
}


def asked(url: str, path: str, content: dict[str, Any]) -> tuple[int, Any]:
    if path == "/v1/completions":
        content = {"model": "teacher", "max_tokens": 1, "temperature": 1.0, **content}
    data = json.dumps(content).encode() if content else None
    request = urllib.request.Request(
        url.removesuffix("/v1") + path, data, {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request) as found:
            return found.status, json.load(found)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.parametrize("name", REQUESTS)
def test_the_stub_answers_as_the_server_does(vllm: Vllm, name: str) -> None:
    """The stub's fields are among the server's, with the same values up to rounding."""
    with serving(Stub(vllm.model, stored.tokenizer(), max_model_len=128, root=str(vllm.folder))) as stub:
        (status, theirs), (ours_status, ours) = (asked(url, *REQUESTS[name]) for url in (vllm.url, stub.url))
    assert ours_status == status
    if status != 200:
        assert set(ours["error"]) == set(theirs["error"])
        same = ours["error"]["message"].rstrip(".").split()
        words = set(theirs["error"]["message"].replace(".", "").replace(",", "").split())
        assert name == "too long" or len(words.intersection(same)) > len(same) / 2, theirs
    elif name == "models":
        assert ours["data"][0].items() <= theirs["data"][0].items()
    elif name == "tokenize":
        assert ours["tokens"] == theirs["tokens"] and ours["max_model_len"] == theirs["max_model_len"]
    else:
        assert set(ours["choices"][0]) <= set(theirs["choices"][0])
        given, wanted = (one["choices"][0]["prompt_logprobs"] for one in (ours, theirs))
        assert given[0] is wanted[0] is None and len(given) == len(wanted)
        for entry, expected in zip(given[1:], wanted[1:], strict=True):
            assert next(iter(entry)) == next(iter(expected)) and set(entry) == set(expected)
            for token, one in entry.items():
                assert set(one) == set(expected[token]) and one["rank"] == expected[token]["rank"]
                assert one["logprob"] == pytest.approx(expected[token]["logprob"], abs=1e-4)


def test_twenty_steps_are_those_of_the_teacher_beside_the_student(vllm: Vllm, tmp_path: Path) -> None:
    live = trained(TopK(vllm.model, TASKS["causal_lm"], fused=False), tmp_path, "live", max_steps=20)
    served = trained(vllm.url, tmp_path, "served", max_steps=20)
    assert [one["loss"] for one in served if "loss" in one] == pytest.approx(
        [one["loss"] for one in live if "loss" in one], abs=1e-5
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"teacher_served_name": "other"}, "has no model 'other', only teacher"),
        ({"max_length": 128}, "reads 128 tokens and writes one of them"),
        ({"teacher_top_k": 21}, "start it with --max-logprobs 21"),
    ],
)
def test_a_server_that_cannot_teach_is_refused(
    vllm: Vllm, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        trained(vllm.url, tmp_path, "run", **fields)


@pytest.mark.parametrize("options", [["--num-beams", "1"], ["--num-beams", "3"], ["--mode", "sample"]])
def test_answers(vllm: Vllm, tmp_path: Path, options: list[str]) -> None:
    """The greedy answers are those of the same model here; beam searches differ in how they end."""
    given = {**stored.workplace(tmp_path, 12), "teacher": vllm.url}
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps(given))
    said = ["generate", str(config), *options, "--output-dir"]
    assert main([*said, str(tmp_path / "served")]) == 0
    assert main([*said, str(tmp_path / "live"), "--teacher", str(vllm.folder)]) == 0
    served, live = ([row["completion"] for row in generated(tmp_path / name)] for name in ("served", "live"))
    assert len(served) == 12 and all(served)
    if options[-1] == "1":
        assert served == live


def test_another_tokenizer_is_refused(vllm: Vllm, tmp_path: Path) -> None:
    args = settings(output_dir=str(tmp_path), max_length=24, teacher=vllm.url, teacher_top_k=4)
    with pytest.raises(ValueError, match="has another tokenizer than the student"):
        ServedTeacher(args).check(args, stored.tokenizer(letters=stored.LETTERS[::-1]))


def test_a_killed_run_goes_on_although_the_server_is_away(vllm: Vllm, tmp_path: Path) -> None:
    """Killed in the middle, resumed while the server is away for 10 seconds and more: the same losses."""
    given = stored.workplace(tmp_path, 40)
    fields = {"teacher": vllm.url, "teacher_top_k": 6, "max_steps": 12, "learning_rate": 0.01}
    more = {"eval_answers": 0, "logging_steps": 1, "save_steps": 3}
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps({**given, **fields, **more}))
    options = ["distill", str(config), "--output-dir"]
    assert main([*options, str(tmp_path / "whole")]) == 0
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "fastkd.cli", *options, str(folder)]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 300
    while not list(folder.glob("checkpoint-*/trainer_state.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    vllm.stop()
    back = threading.Timer(10, vllm.start)
    back.start()
    resumed = subprocess.run(
        [*command, "--resume-from-checkpoint", "true"], capture_output=True, text=True, check=False
    )
    back.join()
    assert resumed.returncode == 0, resumed.stderr
    assert "does not answer" in resumed.stderr and "answers again, after" in resumed.stderr
    losses = [
        [
            one["loss"]
            for one in json.loads((place / "report.json").read_text())["student"]["history"]
            if "loss" in one
        ]
        for place in (tmp_path / "whole", folder)
    ]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
