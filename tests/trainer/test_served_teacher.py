"""Test a teacher behind a URL against the same model beside the student, and what is refused of a server."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from support import stored
from support.served import Stub, serving
from support.served_runs import TOP_K, TopK, trained
from support.stored import settings
from support.tiny import VOCAB, llama, rows
from transformers import TrainerCallback

pytest.importorskip("httpx")

from fastkd import SparseTeacher
from fastkd.corpora.tasks import TASKS
from fastkd.served import Sglang
from fastkd.served.client import read_key
from fastkd.trainer import DistillationTrainer
from fastkd.trainer.teachers import ServedTeacher


@pytest.fixture
def stub() -> Iterator[Stub]:
    with serving(Stub(llama(1, hidden=24), stored.tokenizer())) as found:
        yield found


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 2.0, "divergence": "jsd", "beta": 0.3},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "cache_tail": "bucket"},
    ],
    ids=["plain", "jsd", "accumulated"],
)
def test_the_loss_is_that_of_the_teacher_beside_the_student(
    stub: Stub, tmp_path: Path, fields: dict[str, Any]
) -> None:
    beside = TopK(stub.model, TASKS["causal_lm"], fused=False)
    live = trained(beside, tmp_path, "live", **fields)
    served = trained(stub.url, tmp_path, "served", **fields)
    assert len(live) == len(served) == 7
    for ours, theirs in zip(served, live, strict=True):
        for name in ("loss", "kd", "ce", "eval_loss", "eval_kd"):
            if name in theirs:
                assert ours[name] == pytest.approx(theirs[name], abs=1e-5), name


def test_a_server_of_sglang(stub: Stub, tmp_path: Path) -> None:
    """Its native form, for distributions and for tokens alone."""
    stub.is_sglang = True
    beside = TopK(stub.model, TASKS["causal_lm"], fused=False)
    live, served = (trained(one, tmp_path, name) for one, name in ((beside, "live"), (stub.url, "served")))
    assert [one["loss"] for one in served[:5]] == pytest.approx([one["loss"] for one in live[:5]], abs=1e-5)
    args = settings(output_dir=str(tmp_path), max_length=24, teacher=stub.url, teacher_top_k=TOP_K)
    teacher = ServedTeacher(args)
    teacher.check(args, stored.tokenizer())
    assert isinstance(teacher.model, Sglang)
    batch = TASKS["causal_lm"].collate(rows(6), 0)
    found = teacher.token_logprobs(batch)
    with torch.no_grad():
        logits = stub.model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    labels = TASKS["causal_lm"].targets(batch["labels"])
    wanted = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(found, wanted.masked_fill(labels < 0, 0.0), rtol=1e-4, atol=1e-5)
    stub.mode = "short"
    with pytest.raises(ValueError, match="entries in prompt_logprobs"):
        teacher(batch)


def test_packed_texts_are_asked_for_one_by_one(stub: Stub, tmp_path: Path) -> None:
    text = [{"text": "abc defg hij" * (1 + i % 4)} for i in range(30)]
    fields = {"packing": True, "max_length": 20}
    beside = TopK(stub.model, TASKS["causal_lm"], fused=False)
    live = trained(beside, tmp_path, "live", Dataset.from_list(text), **fields)
    served = trained(stub.url, tmp_path, "served", Dataset.from_list(text), **fields)
    for ours, theirs in zip(served[:5], live[:5], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
    assert max(map(len, stub.prompts[3:])) <= 20


def test_tokens_that_are_masked_between_others(stub: Stub, tmp_path: Path) -> None:
    args = settings(output_dir=str(tmp_path), max_length=24, teacher=stub.url, teacher_top_k=TOP_K)
    batch = TASKS["causal_lm"].collate([{"input_ids": [3, 4, 5, 6]}], 0)
    batch["attention_mask"][0, 1] = 0
    with pytest.raises(ValueError, match="masks tokens between others"):
        ServedTeacher(args)(batch)


def test_samples_of_the_student_are_judged(stub: Stub, tmp_path: Path) -> None:
    """On-policy steps ask for texts that nobody could have asked for ahead."""
    data = [{"prompt": "abc", "completion": "d"}, {"prompt": "hello", "completion": "you"}] * 4
    fields = {"lmbda": 1.0, "max_completion_length": 5, "max_steps": 3}
    beside = TopK(stub.model, TASKS["causal_lm"], fused=False)
    live = trained(beside, tmp_path, "live", Dataset.from_list(data), **fields)
    served = trained(stub.url, tmp_path, "served", Dataset.from_list(data), **fields)
    assert [one["loss"] for one in served[:3]] == pytest.approx([one["loss"] for one in live[:3]], abs=1e-5)


class Asked(TrainerCallback):
    """Counts the prompts that were asked for when a step begins."""

    def __init__(self, stub: Stub) -> None:
        self.stub, self.counts = stub, []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        for _ in range(200):  # the requests are under way, and arrive soon
            if len(self.stub.prompts) >= 4 * (len(self.counts) + 2):
                break
            time.sleep(0.05)
        self.counts.append(len(self.stub.prompts))


def test_a_batch_is_asked_for_during_the_one_before(stub: Stub, tmp_path: Path) -> None:
    args = settings(
        output_dir=str(tmp_path), max_steps=4, max_length=24, per_device_train_batch_size=4,
        teacher=stub.url, teacher_top_k=TOP_K,
    )  # fmt: skip
    asked = Asked(stub)
    data = [{"input_ids": [1 + i, *row["input_ids"]]} for i, row in enumerate(rows(24))]  # all different
    trainer = DistillationTrainer(
        llama(0), ServedTeacher(args), args, None, data, None, stored.tokenizer(), callbacks=[asked]
    )
    stub.prompts.clear()  # those of the probe
    trainer.train()
    assert asked.counts[0] >= 8 and asked.counts[1] >= 12 and asked.counts[2] >= 16


@pytest.mark.parametrize(
    ("fault", "fields", "message"),
    [
        ({}, {"teacher_served_name": "other"}, "has no model 'other', only teacher"),
        ({"name": "first"}, {"max_length": 256}, "reads 256 tokens and writes one of them"),
        ({"max_logprobs": 4}, {}, "fewer log-probabilities than the 6 asked for: start it with --max-l"),
        ({"tokenizer": stored.tokenizer(letters=stored.LETTERS[::-1])}, {}, "has another tokenizer"),
        ({"model": llama(1, vocab=VOCAB - 1)}, {}, "does not know token 47, the last of the student's"),
        ({"mode": "renormalised"}, {}, "has renormalised them; start it with --logprobs-mode raw_logprobs"),
        ({"mode": "top_p"}, {}, "hides tokens"),
        ({"mode": "tempered"}, {}, "depend on temperature"),
        ({"mode": "short"}, {}, "25 tokens have 24 entries in prompt_logprobs"),
        ({"mode": "fewer"}, {}, "has 5 log-probabilities of a token, and 6 were asked for"),
        ({"mode": "plain"}, {}, "has no prompt_logprobs: only a server of vLLM gives them"),
        ({"key": "secret"}, {}, r"refuses a request \(HTTP 401\): Unauthorized"),
        ({}, {"task": "seq2seq"}, "needs task: causal_lm, not seq2seq"),
    ],
)  # fmt: skip
def test_a_server_that_cannot_teach_is_refused(
    stub: Stub, tmp_path: Path, fault: dict[str, Any], fields: dict[str, Any], message: str
) -> None:
    """The error comes before the first step, in one sentence."""
    for name, value in fault.items():
        setattr(stub, name, value)
    with pytest.raises(ValueError, match=message) as caught:
        trained(stub.url, tmp_path, "run", **fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:9/v1", "has not answered for .* start its server, or raise teacher_patience"),
        ("http://", "is no URL"),
        ("{}/models", "names no model|its address ends in /v1"),
    ],
)
def test_an_address_without_a_server(stub: Stub, tmp_path: Path, url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trained(url.format(stub.url), tmp_path, "run", teacher_patience=0.5)


@pytest.mark.parametrize("failure", [503, 500, 429, -1])
def test_a_server_that_is_away_is_waited_for(
    stub: Stub, tmp_path: Path, failure: int, caplog: pytest.LogCaptureFixture
) -> None:
    args = settings(output_dir=str(tmp_path), max_length=24, teacher=stub.url, teacher_top_k=TOP_K)
    teacher = ServedTeacher(args)
    teacher.check(args, stored.tokenizer())
    batch = TASKS["causal_lm"].collate(rows(6), 0)
    whole = teacher(batch).distribution
    with caplog.at_level(logging.WARNING):
        stub.failure, stub.fails = failure, 8
        again = teacher(batch).distribution
    assert isinstance(whole, SparseTeacher) and isinstance(again, SparseTeacher)
    torch.testing.assert_close(again.logprobs, whole.logprobs)
    said = [record.message for record in caplog.records]
    assert sum("does not answer" in one for one in said) == sum("answers again" in one for one in said) >= 1


def test_a_request_that_waits_for_others_has_its_whole_patience(stub: Stub, tmp_path: Path) -> None:
    """A long queue is no fault of the server: only the time since a request was first sent counts."""
    stub.delay = 0.2
    args = settings(
        output_dir=str(tmp_path), max_length=24, teacher=stub.url, teacher_top_k=TOP_K,
        teacher_requests=1, teacher_patience=1.0,
    )  # fmt: skip
    teacher = ServedTeacher(args)
    data = [[1 + i, 2, 3] for i in range(10)]
    for ids in data:
        teacher.ahead.ask(ids)
    for i, ids in enumerate(data):
        stub.fails = int(i == len(data) - 2)
        assert len(teacher.ahead.take(ids)) == 2


def test_the_key_is_sent_and_written_nowhere(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.key = "very-secret"
    monkeypatch.setenv("TEACHER_KEY", " very-secret ")
    trained(stub.url, tmp_path, "run", teacher_key_variable="TEACHER_KEY", max_steps=2)
    args = settings(output_dir=str(tmp_path), teacher=stub.url, teacher_key_variable="TEACHER_KEY")
    assert "very-secret" not in args.to_json_string() + repr(ServedTeacher(args).model.client.server)
    for path in (tmp_path / "run").rglob("*"):
        assert path.is_dir() or b"very-secret" not in path.read_bytes(), path
    (tmp_path / "key").write_text("very-secret\n")
    assert read_key(None, str(tmp_path / "key")) == "very-secret"
    for variable, file, message in (
        ("NO_SUCH_KEY", None, "unset or empty"),
        (None, str(tmp_path / "none"), "cannot be read"),
    ):
        with pytest.raises(ValueError, match=message):
            read_key(variable, file)
    with pytest.raises(ValueError, match="leave out one of them"):
        settings(teacher_key_variable="A", teacher_key_file="b")


def test_a_server_without_tokenize(stub: Stub, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stub.has_tokenize = False
    trained(stub.url, tmp_path, "run", max_steps=1)
    assert any("its tokens are not compared" in record.message for record in caplog.records)
