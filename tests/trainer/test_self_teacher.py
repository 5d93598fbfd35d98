"""Test prompts that the teacher alone reads, and the student as its own teacher."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from support import stored
from support.served import Stub, serving
from support.stored import settings
from support.tiny import llama
from transformers import GPT2Config, GPT2LMHeadModel

import fastkd
from fastkd.cli import main
from fastkd.corpora.teacher_prompts import columns_in, prompted
from fastkd.trainer import DistillationTrainer
from fastkd.trainer.teachers.own import FILE
from fastkd.trainer.teachers.prompted import LENGTHS, PROMPTS

HINT = "{prompt} see {hint} "
DATA = [
    {"prompt": "abcde"[: 2 + i % 3], "completion": "fghi"[i % 3 :], "hint": "xyz"[: i % 4]} for i in range(12)
]


def trainer_of(tmp_path: Path, teacher: Any, data: Any = DATA, **fields: Any) -> DistillationTrainer:
    usual = {
        "max_steps": 4,
        "max_length": 24,
        "max_completion_length": 4,
        "teacher_prompt": HINT,
        "learning_rate": 1e-2,
    }
    args = settings(
        output_dir=str(tmp_path), logging_steps=1, seed=3, per_device_train_batch_size=4,
        **{**usual, **fields},
    )  # fmt: skip
    data = Dataset.from_list(data)
    student = stored.bart(0) if fields.get("task") == "seq2seq" else llama(0)
    return DistillationTrainer(student, teacher, args, None, data, data, stored.tokenizer())


def losses(trainer: DistillationTrainer) -> list[float]:
    trainer.train()
    return [one["loss"] for one in trainer.state.log_history if "loss" in one]


def ids(text: str) -> list[int]:
    found: list[int] = stored.tokenizer()(text)["input_ids"]
    return found


@pytest.mark.parametrize("fused_head", ["auto", "false"])
def test_the_teacher_reads_its_own_prompt(tmp_path: Path, fused_head: str) -> None:
    """The loss of a batch is that of the answers alone, row by row, each side after its own prompt."""
    teacher = llama(1, hidden=24)
    trainer = trainer_of(tmp_path, teacher, fused_head=fused_head, kd_ratio=1.0, temperature=2.0)
    batch = next(iter(trainer.get_train_dataloader()))
    assert PROMPTS in batch and LENGTHS in batch
    found = trainer.model.train()(**batch)
    found["loss"].backward()
    ours = [p.grad.clone() for p in trainer.student.parameters()]

    student, total, count = llama(0), 0.0, 0
    for tokens, labels, prompt, length, mask in zip(
        batch["input_ids"].tolist(), batch["labels"].tolist(), batch[PROMPTS].tolist(),
        batch[LENGTHS].tolist(), batch["attention_mask"].tolist(), strict=True,
    ):  # fmt: skip
        tokens, labels = tokens[: sum(mask)], labels[: sum(mask)]
        start = next(i for i, label in enumerate(labels) if label != -100)
        answer, whole = tokens[start:], [*prompt[:length], *tokens[start:]]
        own = student(torch.tensor([tokens])).logits[0, start - 1 : -1]
        with torch.no_grad():
            given = teacher(torch.tensor([whole])).logits[0, length - 1 : -1]
        assert len(own) == len(given) == len(answer)
        total = total + fastkd.kd_loss(own, given, kd_ratio=1.0, temperature=2.0, reduction="sum")
        count += len(answer)
    (total / count).backward()
    assert float(found["loss"]) == pytest.approx(float(total) / count, rel=1e-5)
    for mine, other in zip(ours, student.parameters(), strict=True):
        torch.testing.assert_close(mine, other.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("fields", [{}, {"lmbda": 1.0}, {"lmbda": 1.0, "objective": "sampled"}])
def test_the_same_prompt_is_no_prompt(tmp_path: Path, fields: dict[str, Any]) -> None:
    teacher = llama(1, hidden=24)
    plain = losses(trainer_of(tmp_path / "plain", teacher, teacher_prompt=None, **fields))
    prompted = losses(trainer_of(tmp_path / "prompted", teacher, teacher_prompt="{prompt}", **fields))
    assert prompted == pytest.approx(plain, abs=2e-5)
    pytest.importorskip("httpx")
    with serving(Stub(teacher, stored.tokenizer(), max_logprobs=48)) as stub:
        served = trainer_of(
            tmp_path / "served", stub.url, teacher_prompt="{prompt}", teacher_top_k=48, **fields
        )
        assert losses(served) == pytest.approx(plain, abs=2e-4)


def test_sources_of_an_encoder_decoder(tmp_path: Path) -> None:
    data = [{"source": row["prompt"], "target": row["completion"], "hint": row["hint"]} for row in DATA]
    teacher = stored.bart(1)
    fields = {"task": "seq2seq", "max_target_length": 8}
    plain = losses(trainer_of(tmp_path / "plain", teacher, data, teacher_prompt=None, **fields))
    same = losses(trainer_of(tmp_path / "same", teacher, data, teacher_prompt="{source}", **fields))
    other = losses(trainer_of(tmp_path / "other", teacher, data, teacher_prompt="{source}{hint}", **fields))
    assert same == pytest.approx(plain, abs=2e-5) and other != pytest.approx(plain, abs=1e-3)


def test_a_conversation_gets_a_system_message(tmp_path: Path) -> None:
    data = [
        {"messages": [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}],
         "hint": "xyz"},
        {"messages": [
            {"role": "system", "content": "q"}, {"role": "user", "content": "ef"},
            {"role": "assistant", "content": "gh"}], "hint": "w"},
    ] * 2  # fmt: skip
    trainer = trainer_of(tmp_path, llama(1, hidden=24), data, teacher_prompt="see {hint}")
    rows = sorted(tuple(row["teacher_prompt"]) for row in trainer.train_dataset)
    assert rows == sorted([tuple(ids("see xyz ab ")), tuple(ids("see w ef "))] * 2)
    several = [*data[0]["messages"], *data[0]["messages"]]
    with pytest.raises(ValueError, match="row 1: teacher_prompt needs conversations with one answer"):
        trainer_of(
            tmp_path, llama(1, hidden=24), [{"messages": several, "hint": "x"}], teacher_prompt="{hint}"
        )


@pytest.mark.parametrize(
    ("fields", "longest"),
    [({}, 23 + 3), ({"lmbda": 1.0, "max_completion_length": 9}, 23 + 9), ({"lmbda": 0.5}, 23 + 4)],
)
def test_a_prompt_without_room(tmp_path: Path, fields: dict[str, Any], longest: int) -> None:
    """The teacher's prompt and the answer, the data's or the longest one written, must fit its positions."""
    data = [*DATA[:4], {"prompt": "ab", "completion": "fg", "hint": "x" * 15}]  # and the end of the sequence
    assert len(ids("ab see  ")) == 8

    def teacher(positions: int) -> Any:
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=48, n_embd=16, n_layer=1, n_head=2, n_positions=positions)
        return GPT2LMHeadModel(config)

    trainer_of(tmp_path / "fits", teacher(longest), data, **fields)
    with pytest.raises(
        ValueError, match=f"row 5 of those with text: teacher_prompt and the answer have {longest}"
    ):
        trainer_of(tmp_path / "not", teacher(longest - 1), data, **fields)


def test_a_rotary_teacher_is_only_warned_of(tmp_path: Path, caplog: Any) -> None:
    data = [*DATA[:4], {"prompt": "ab", "completion": "fg", "hint": "x" * 15}]
    trainer_of(tmp_path, llama(1, positions=24), data)
    assert "row 5: with teacher_prompt the teacher reads 26 tokens, and it was trained on 24" in caplog.text


def test_a_server_without_room(tmp_path: Path) -> None:
    pytest.importorskip("httpx")
    data = [*DATA[:4], {"prompt": "ab", "completion": "fg", "hint": "x" * 15}]
    short = Stub(llama(1), stored.tokenizer(), max_logprobs=48, max_model_len=26)
    said = "have 26 tokens, and the teacher 25 positions"
    with serving(short) as stub, pytest.raises(ValueError, match=said):
        trainer_of(tmp_path, stub.url, data, teacher_top_k=48)


def test_a_source_without_room(tmp_path: Path) -> None:
    data = [{"source": "ab", "target": "cd", "hint": "x" * 50}]
    fields = {"task": "seq2seq", "max_target_length": 8, "max_length": 64, "teacher_prompt": "{hint}"}
    with pytest.raises(ValueError, match="row 1 of those with text: the source of teacher_prompt has 50"):
        trainer_of(tmp_path, stored.bart(1), data, **fields)


def test_templates() -> None:
    assert columns_in("{a} and {b} {a} {{c}}") == ["a", "b"]
    for wrong in ("{a", "{}", "{0}", "{a.b}"):
        with pytest.raises(ValueError, match="teacher_prompt"):
            columns_in(wrong)
    assert prompted({"p": "x", "h": None}, "{p}|{h}|", "p") == {"p": "x||", "h": None}


def test_data_without_the_columns(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="teacher_prompt names answer, and train_dataset has the columns prompt"
    ):
        trainer_of(tmp_path, llama(1), teacher_prompt="{prompt} {answer}")
    with pytest.raises(ValueError, match="this text has none"):
        trainer_of(tmp_path, llama(1), [{"text": "abc", "hint": "x"}], teacher_prompt="{hint}")


def test_live_weights_teach_themselves(tmp_path: Path) -> None:
    """With the same prompt the divergence is 0; with another one, the student comes nearer to what it says
    with the hint.
    """
    same = trainer_of(tmp_path / "same", "self", teacher_prompt="{prompt}", kd_ratio=1.0)
    assert losses(same) == pytest.approx([0.0] * 4, abs=1e-5)
    hinted = losses(trainer_of(tmp_path / "hint", "self", kd_ratio=1.0, max_steps=30))
    assert sum(hinted[-5:]) < 0.7 * sum(hinted[:5])


def test_initial_weights_stay(tmp_path: Path) -> None:
    own = losses(trainer_of(tmp_path / "own", "self", self_weights="initial", teacher_prompt=None))
    frozen = losses(trainer_of(tmp_path / "frozen", copy.deepcopy(llama(0)), teacher_prompt=None))
    assert own == pytest.approx(frozen, abs=1e-6)


def test_the_average_follows_and_resumes(tmp_path: Path) -> None:
    fields = {"self_weights": "ema", "self_decay": 0.5, "teacher_prompt": None, "max_steps": 6}
    more = {"save_strategy": "steps", "save_steps": 3}
    whole = trainer_of(tmp_path / "whole", "self", **fields, **more)
    before = {name: p.detach().clone() for name, p in whole.student.named_parameters()}
    average = {name: p.clone() for name, p in before.items()}
    steps: list[dict[str, torch.Tensor]] = []
    follow = whole._teacher.follow

    def watched() -> None:
        follow()
        steps.append({name: p.detach().clone() for name, p in whole.student.named_parameters()})

    whole._teacher.follow = watched
    expected = losses(whole)
    for weights in steps:
        average = {name: average[name] / 2 + weights[name] / 2 for name in average}
    for name, p in whole._teacher.model.named_parameters():
        torch.testing.assert_close(p, average[name], rtol=1e-5, atol=1e-6)
    saved = load_file(tmp_path / "whole" / "checkpoint-3" / FILE)
    assert set(saved) == set(before) and not (tmp_path / "whole" / FILE).exists()
    resumed = trainer_of(tmp_path / "whole", "self", **fields, **more)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    again = [one["loss"] for one in resumed.state.log_history if "loss" in one]
    assert again[-3:] == pytest.approx(expected[-3:], abs=1e-6)
    losses(trainer_of(tmp_path / "other", "self", **{**fields, "self_weights": "initial"}, **more))
    with pytest.raises(ValueError, match="has no self_teacher"):
        trainer_of(tmp_path / "other", "self", **fields, **more).train(
            resume_from_checkpoint=str(tmp_path / "other" / "checkpoint-3")
        )


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = stored.workplace(tmp_path, 8)
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in DATA))
    fields = {"teacher": "self", "teacher_prompt": HINT, "max_steps": 2, "eval_answers": 2, "seeds": 2}
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps({**given, **fields, "eval_file": given["train_file"]}))
    assert main(["distill", str(config), "--output-dir", str(tmp_path / "out"), "--self-weights", "ema"]) == 0
    found = json.loads((tmp_path / "out" / "seed-42" / "report.json").read_text())
    assert found["student"]["eval"]["kd"] > 0
    assert main(["estimate", str(config), "--no-time", "--output-dir", str(tmp_path / "estimate")]) == 0
    assert main(["evaluate", str(config), "--model", str(tmp_path / "student")]) == 0
    for command in ("cache", "generate"):
        assert main([command, str(config), "--output-dir", str(tmp_path / command)]) == 1
    assert "teacher is 'self'" in capsys.readouterr().err
