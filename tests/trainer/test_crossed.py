"""Test the losses between different tokenizers against plain torch, and the runs that use them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from support import crossed
from support.crossed import ROWS, STUDENT, TEACHER
from support.tiny import llama
from support.vocabularies import tokenizer

from fastkd.corpora.shared_tokens import shared_tokens
from fastkd.corpora.spans import SPANS, TEACHER_IDS, TEACHER_LABELS, TEACHER_SPANS, Aligner
from fastkd.corpora.tasks import TASKS
from fastkd.corpora.token_bytes import comparable, token_bytes
from fastkd.trainer import DistillationTrainer
from fastkd.trainer.crossed import SpanLoss, beginnings, per_slot, slots
from fastkd.trainer.crossed_distributions import HybridLoss

PLAIN = {"alpha": None, "beta": None}


def spans_of(count: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(count)
    one, other = (-(torch.randn(count, generator=draw) * 1.2).exp() for _ in range(2))
    return one.to(dtype).requires_grad_(), other.to(dtype)


@pytest.mark.parametrize("temperature", [1.0, 3.0, 100.0])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd", "tvd"])
def test_the_loss_of_spans(divergence: str, temperature: float) -> None:
    own, given = spans_of(37, torch.float64)
    present = torch.arange(37) % 5 != 0
    found = SpanLoss({"divergence": divergence, **PLAIN}, temperature)(own, given, present)
    found.backward()
    ours = own.grad
    own.grad = None
    wanted = crossed.binary(own[present], given[present], temperature, divergence).sum()
    wanted.backward()
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(ours, own.grad, rtol=1e-6, atol=1e-9)
    assert ours is not None and not ours[~present].any()


@pytest.mark.parametrize("temperature", [1.0, 100.0])
def test_the_loss_of_spans_in_float32(temperature: float) -> None:
    own, given = spans_of(200, torch.float32)
    found = SpanLoss({"divergence": "forward_kl", **PLAIN}, temperature)(own, given, own < 0)
    found.backward()
    ours = own.grad
    own.grad = None
    wanted = crossed.binary(own, given, temperature, "forward_kl").sum()
    wanted.backward()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours, own.grad, rtol=2e-3, atol=1e-4)


def test_a_high_temperature_is_the_divergence_of_poisson_distributions() -> None:
    own, given = spans_of(50, torch.float64)
    found = SpanLoss({"divergence": "forward_kl", **PLAIN}, 1e4)(own, given, own < 0)
    found.backward()
    torch.testing.assert_close(found, crossed.poisson(own, given).sum(), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(own.grad, (given / own - 1).detach(), rtol=5e-3, atol=1e-4)


def test_certain_and_impossible_spans_are_finite() -> None:
    values = torch.tensor([0.0, -1e-9, -1e-3, -30.0, -5e4, -torch.inf])
    own, given = (x.flatten() for x in torch.meshgrid(values, values, indexing="ij"))
    for temperature in (1.0, 100.0):
        for divergence in ("forward_kl", "reverse_kl", "jsd"):
            side = own.clone().requires_grad_()
            found = SpanLoss({"divergence": divergence, **PLAIN}, temperature)(side, given, own <= 0)
            found.backward()
            assert side.grad is not None and found.isfinite() and side.grad.isfinite().all()
    alike = SpanLoss({"divergence": "forward_kl", **PLAIN}, 100.0)(values, values, values <= 0)
    assert alike.abs() < 1e-4


def test_sums_over_spans() -> None:
    spans = torch.tensor([[0, 0, -100, 1], [-100, -100, -100, -100], [0, 1, 1, 1]])
    values = torch.arange(12.0).reshape(3, 4).requires_grad_()
    numbers = slots(spans, 3)
    assert numbers.tolist() == [[0, 0, -1, 1], [-1, -1, -1, -1], [6, 7, 7, 7]]
    found = per_slot(values, numbers, 3)
    assert found.tolist() == [1, 3, 0, 0, 0, 0, 8, 30, 0]
    found.sum().backward()
    assert values.grad is not None and values.grad.tolist() == (spans != -100).float().tolist()
    first = beginnings(numbers, 3).tolist()
    assert [first[i] for i in (0, 1, 6, 7)] == [0, 3, 8, 9] and max(first) < 12


def tokens() -> Any:
    return shared_tokens(*comparable(token_bytes(tokenizer("metaspace")), token_bytes(tokenizer(TEACHER))))


def hybrid(made: Any, divergence: dict[str, Any], temperature: float) -> HybridLoss:
    sides = (torch.tensor(side) for side in (made.student, made.teacher))
    return HybridLoss(*sides, made.count, divergence, temperature)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("divergence", ["forward_kl", "jsd"])
def test_the_loss_of_distributions(divergence: str, temperature: float) -> None:
    made = tokens()
    draw = torch.Generator().manual_seed(3)
    own = torch.randn(7, len(made.student) + 3, generator=draw, dtype=torch.float64) * 3
    given = torch.randn(7, len(made.teacher) + 1, generator=draw, dtype=torch.float64) * 3
    own.requires_grad_()
    present = torch.tensor([True] * 5 + [False] * 2)
    found = hybrid(made, {"divergence": divergence, **PLAIN}, temperature)(own, given, present)
    found.backward()
    ours = own.grad
    own.grad = None
    q, p = (
        crossed.by_class(side[present], numbers, made.count, temperature)
        for side, numbers in ((own, made.student), (given, made.teacher))
    )
    m = (p + q) / 2
    kl = (p * (p / q).log()).sum()
    wanted = kl if divergence == "forward_kl" else ((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2
    wanted = wanted * temperature**2
    wanted.backward()
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(ours, own.grad, rtol=1e-6, atol=1e-9)


def test_extreme_logits_are_finite() -> None:
    made = tokens()
    for dtype in (torch.float32, torch.bfloat16):
        own = (torch.randn(5, len(made.student)) * 300).to(dtype).requires_grad_()
        given = (torch.randn(5, len(made.teacher)) * 300).to(dtype)
        found = hybrid(made, {"divergence": "forward_kl", **PLAIN}, 1.0)(
            own, given, torch.ones(5, dtype=torch.bool)
        )
        found.backward()
        assert own.grad is not None and own.grad.dtype == dtype
        assert found.isfinite() and own.grad.isfinite().all()


def trainer_of(tmp_path: Path, configuration: Any, crossing: str, **fields: Any) -> DistillationTrainer:
    teacher = crossed.teacher(tmp_path / "teacher")
    data = Dataset.from_list(fields.pop("data", ROWS))
    held_out = data if "completion" in data.column_names else None
    args = configuration(cross_tokenizer=crossing, max_length=64, **fields)
    return DistillationTrainer(crossed.student(), teacher, args, None, data, held_out, tokenizer(STUDENT))


def batch_of(trainer: DistillationTrainer, rows: Any = slice(None)) -> dict[str, Any]:
    whole = [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))]
    return dict(trainer.data_collator(whole[rows]))


def span_sums(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor, spans: torch.Tensor
) -> Any:
    """The log-probability of each span of a batch by its row and number, in plain torch."""
    logs = model(ids, attention_mask=mask).logits.double().log_softmax(-1)
    found: dict[tuple[int, int], torch.Tensor] = {}
    for row in range(len(ids)):
        for place in range(1, ids.shape[1]):
            if (number := int(spans[row, place])) >= 0:
                key = row, number
                found[key] = found.get(key, 0) + logs[row, place - 1, labels[row, place]]
    return found


@pytest.mark.parametrize("fused_head", ["auto", "false"])
@pytest.mark.parametrize("kd_ratio", [1.0, 0.3])
def test_a_batch_with_spans(tmp_path: Path, configuration: Any, fused_head: str, kd_ratio: float) -> None:
    trainer = trainer_of(
        tmp_path, configuration, "spans", temperature=10.0, kd_ratio=kd_ratio, fused_head=fused_head
    )
    assert trainer.fused == (fused_head == "auto")
    batch = batch_of(trainer)
    found = trainer.model.train()(**batch, with_sums=True, num_items_in_batch=100)
    found["loss"].backward()
    ours = [p.grad.clone() for p in trainer.student.parameters() if p.grad is not None]

    plain = crossed.student()
    own = span_sums(plain, batch["input_ids"], batch["attention_mask"], batch["labels"], batch[SPANS])
    with torch.no_grad():
        given = span_sums(
            trainer._teacher.model,  # type: ignore[union-attr]
            batch[TEACHER_IDS], batch["teacher_attention_mask"], batch[TEACHER_LABELS], batch[TEACHER_SPANS],
        )  # fmt: skip
    assert own.keys() == given.keys() and len(own) > 30
    kd = sum(crossed.binary(own[key], given[key], 10.0, "forward_kl") for key in own)
    logits = plain(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].double()
    ce = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum"
    )
    wanted = (kd_ratio * kd + (1 - kd_ratio) * ce) / 100
    wanted.backward()
    assert float(found["loss"]) == pytest.approx(float(wanted), rel=1e-5)
    for mine, p in zip(ours, (p for p in plain.parameters() if p.grad is not None), strict=True):
        torch.testing.assert_close(mine, p.grad, rtol=1e-3, atol=1e-5)
    sums = {name: float(value) for name, value in found["sums"].items()}
    assert sums["kd"] == pytest.approx(float(kd), rel=1e-4) and sums["ce"] == pytest.approx(
        float(ce), rel=1e-5
    )
    assert sums["teacher_ce"] == pytest.approx(-float(sum(given.values())), rel=1e-5)
    assert sums["aligned"] == sums["tokens"] == (batch["labels"] != -100).sum()


@pytest.mark.parametrize("fused_head", ["auto", "false"])
def test_a_batch_with_distributions(tmp_path: Path, configuration: Any, fused_head: str) -> None:
    trainer = trainer_of(tmp_path, configuration, "hybrid", kd_ratio=1.0, fused_head=fused_head)
    batch = batch_of(trainer)
    found = trainer.model.train()(**batch, num_items_in_batch=7)
    found["loss"].backward()
    plain = crossed.student()
    tokens = shared_tokens(*comparable(*(token_bytes(tokenizer(kind)) for kind in (STUDENT, TEACHER))))
    own = plain(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    with torch.no_grad():
        given = trainer._teacher.model(  # type: ignore[union-attr]
            batch[TEACHER_IDS], attention_mask=batch["teacher_attention_mask"]
        ).logits
    wanted = torch.zeros((), dtype=torch.float64)
    for row in range(len(own)):
        for number in range(int(batch[SPANS][row].max()) + 1):
            here, there = (batch[name][row].tolist().index(number) - 1 for name in (SPANS, TEACHER_SPANS))
            q = crossed.by_class(own[row, here, None], tokens.student, tokens.count, 1.0)
            p = crossed.by_class(given[row, there, None], tokens.teacher, tokens.count, 1.0)
            wanted = wanted + (p * (p / q).log()).sum() / 7
    wanted.backward()
    assert float(found["loss"]) == pytest.approx(float(wanted), rel=1e-5)
    for mine, other in zip(trainer.student.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("crossing", ["spans", "hybrid", "gold"])
def test_accumulated_batches_add_up(tmp_path: Path, configuration: Any, crossing: str) -> None:
    trainer = trainer_of(tmp_path, configuration, crossing)
    whole = batch_of(trainer)
    items = int((whole["labels"][:, 1:] != -100).sum())
    parts = [batch_of(trainer, slice(0, 1)), batch_of(trainer, slice(1, 4))]
    losses = [trainer.model.train()(**part, num_items_in_batch=items)["loss"] for part in (whole, *parts)]
    assert float(losses[0]) == pytest.approx(float(sum(losses[1:])), rel=1e-5)


@pytest.mark.parametrize("crossing", ["spans", "hybrid", "gold"])
def test_rows_without_a_span_and_batches_in_bfloat16(
    tmp_path: Path, configuration: Any, crossing: str
) -> None:
    trainer = trainer_of(tmp_path, configuration, crossing, bf16=True, kd_ratio=1.0)
    batch = batch_of(trainer)
    with torch.autocast("cpu", torch.bfloat16):
        found = trainer.model.train()(**batch)
    assert found["loss"].isfinite()
    for name in (SPANS, TEACHER_SPANS):
        batch[name] = torch.full_like(batch[name], -100)
    found = trainer.model.train()(**batch, with_sums=True)
    found["loss"].backward()
    assert float(found["loss"]) == 0 and float(found["sums"]["aligned"]) == 0
    assert all(p.grad is None or not p.grad.any() for p in trainer.student.parameters())


@pytest.mark.parametrize("crossing", ["spans", "hybrid", "gold"])
def test_a_student_becomes_more_like_its_teacher(tmp_path: Path, configuration: Any, crossing: str) -> None:
    trainer = trainer_of(tmp_path, configuration, crossing, kd_ratio=1.0, max_steps=15, temperature=2.0)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_kd"] < 0.9 * before["eval_kd"]
    assert after["eval_loss"] == pytest.approx(after["eval_kd"])
    assert {"eval_ce", "eval_perplexity", "eval_teacher_perplexity", "eval_aligned"} <= after.keys()
    assert (
        before["eval_teacher_ce"] == pytest.approx(after["eval_teacher_ce"]) and "eval_agreement" not in after
    )


@pytest.mark.parametrize("crossing", ["spans", "hybrid", "gold"])
@pytest.mark.parametrize("answered", [True, False])
def test_the_students_own_answers(tmp_path: Path, configuration: Any, crossing: str, answered: bool) -> None:
    data = ROWS if answered else [{"prompt": row["prompt"]} for row in ROWS]
    trainer = trainer_of(tmp_path, configuration, crossing, lmbda=1.0, max_completion_length=12, data=data)
    batch, policy = batch_of(trainer), trainer._on_policy
    assert policy is not None
    (made,) = policy.resample(iter([batch]), trainer.student, trainer.student, 0)
    for i, row in enumerate(ROWS):
        own, theirs = (made[name][i] for name in ("labels", TEACHER_LABELS))
        given = made[TEACHER_IDS][i][made["teacher_attention_mask"][i] > 0]
        prompt, answer = given[: int((theirs >= 0).int().argmax())], theirs[theirs >= 0]
        assert tokenizer(TEACHER).decode(prompt).startswith(row["prompt"].rstrip())
        said, heard = tokenizer(STUDENT).decode(own[own >= 0]), tokenizer(TEACHER).decode(answer)
        # Bytes that are no UTF-8 end what the teacher can be shown alike.
        assert said.partition("\ufffd")[0].startswith(heard[: len(said.partition("\ufffd")[0])])
    assert (made[SPANS] >= 0).any()
    trainer.train()
    assert all("kd" in one for one in trainer.state.log_history if "loss" in one)


def test_an_answer_that_the_student_ended_ends_for_the_teacher(tmp_path: Path, configuration: Any) -> None:
    trainer = trainer_of(tmp_path, configuration, "spans")
    crossing = trainer._crossing
    assert crossing is not None
    batch = batch_of(trainer, slice(0, 2))
    said = tokenizer(STUDENT)("the cat", add_special_tokens=False)["input_ids"]
    end = tokenizer(STUDENT).eos_token_id
    rows = [{"input_ids": [5, *answer], "labels": [-100, *answer]} for answer in ([*said, end], said)]
    made = crossing.of_answers(batch, [True, True], rows, frozenset([end]))
    last = [[t for t in row if t != -100][-1] for row in made[TEACHER_LABELS].tolist()]
    assert last[0] == tokenizer(TEACHER).eos_token_id != last[1]
    counts = [len({*row} - {-100}) for row in made[SPANS].tolist()]
    assert counts[0] == counts[1] + 1


@pytest.mark.parametrize("crossing", ["spans", "gold"])
def test_encoder_decoders(tmp_path: Path, configuration: Any, crossing: str) -> None:
    from support.stored import bart
    from transformers import BartForConditionalGeneration

    sides = []
    for kind, seed in ((STUDENT, 0), (TEACHER, 1)):
        torch.manual_seed(seed)
        config = bart().config
        config.vocab_size, config.max_position_embeddings = len(tokenizer(kind)), 80
        BartForConditionalGeneration(config).save_pretrained(tmp_path / kind)
        tokenizer(kind).save_pretrained(tmp_path / kind)
        sides.append(BartForConditionalGeneration.from_pretrained(tmp_path / kind))
    args = configuration(
        task="seq2seq", cross_tokenizer=crossing, max_length=60, max_target_length=60, max_steps=12,
        kd_ratio=1.0,
    )  # fmt: skip
    data = Dataset.from_list([{"source": row["prompt"], "target": row["completion"]} for row in ROWS])
    trainer = DistillationTrainer(*sides, args, None, data, data, tokenizer(STUDENT))
    before = trainer.evaluate()
    assert before["eval_aligned"] == 1
    trainer.train()
    assert trainer.evaluate()["eval_kd"] < 0.9 * before["eval_kd"]


def test_conversations_have_the_template_of_each_side(tmp_path: Path, configuration: Any) -> None:
    templates = {
        STUDENT: "{% for m in messages %}[{{ m.role }}] {{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}",
        TEACHER: "{% for m in messages %}<{{ m.role }}>\n{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>\n{% endif %}",
    }
    chat = [
        {"role": "user", "content": "why?"},
        {"role": "assistant", "content": "the cat sat"},
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": "the dog"},
    ]
    made = {}
    for kind, template in templates.items():
        made[kind] = tokenizer(kind).__class__.from_pretrained(_saved(tmp_path / kind, kind))
        made[kind].chat_template = template
    found = TASKS["causal_lm"].tokenize(
        Dataset.from_list([{"messages": chat}]), made[STUDENT], configuration(), "train_file",
        teacher_tokenizer=made[TEACHER],
    )[0]  # fmt: skip
    labels = [t for t in found[TEACHER_LABELS] if t != -100]
    assert made[TEACHER].decode(labels) == "the cat sat</s>the dog</s>"
    assert made[TEACHER].decode(found[TEACHER_IDS]).startswith("<user>\nwhy?")
    # The first answer's spans and its end, then those of the second.
    assert [span >= 0 for span in found[SPANS]] == [label != -100 for label in found["labels"]]


def _saved(folder: Path, kind: str) -> Path:
    tokenizer(kind).save_pretrained(folder)
    return folder


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"packing": True}, "packing"),
    ({"objective": "sampled", "lmbda": 1.0}, "objective: sampled"),
    ({"teacher_temperature": 2.0}, "softens both sides alike"),
    ({"divergence": "decoupled"}, "no label"),
    ({"teacher_prompt": "{prompt}"}, "leave out teacher_prompt"),
    ({"gradient_match_weight": 1.0}, "layers cannot be compared"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_settings_that_do_not_go_with_it(
    tmp_path: Path, configuration: Any, fields: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path, configuration, "spans", **fields)


def test_teachers_that_do_not_go_with_it(tmp_path: Path, configuration: Any) -> None:
    args = configuration(cross_tokenizer="spans")
    data = Dataset.from_list(ROWS)

    def make(teacher: Any, tokens: Any = STUDENT, rows: Any = data) -> None:
        side = None if tokens is None else tokenizer(tokens)
        DistillationTrainer(crossed.student(), teacher, args, None, rows, None, side)

    with pytest.raises(ValueError, match="none was saved beside the teacher"):
        make(llama(1))
    teacher = crossed.teacher(tmp_path / "teacher")
    with pytest.raises(ValueError, match="the same vocabulary"):
        make(teacher, TEACHER)
    with pytest.raises(ValueError, match="processing_class"):
        make(teacher, None)
    with pytest.raises(ValueError, match="is encoded already"):
        make(teacher, rows=Dataset.from_list([{"input_ids": [3, 4, 5]}]))
    with pytest.raises(ValueError, match="one teacher that is a model"):
        make({"a": teacher, "b": crossed.teacher(tmp_path / "b")})
    args = configuration()
    with pytest.raises(ValueError, match=r"token numbers mean another token.*set cross_tokenizer"):
        make(crossed.teacher(tmp_path / "other", kind="metaspace"))


def test_without_a_teacher_the_field_says_nothing(configuration: Any) -> None:
    args = configuration(cross_tokenizer="spans", kd_ratio=0.0)
    trainer = DistillationTrainer(
        crossed.student(), None, args, None, Dataset.from_list(ROWS), None, tokenizer(STUDENT)
    )
    trainer.train()
    assert SPANS not in trainer.train_dataset.column_names


def test_the_columns_are_those_of_the_aligner() -> None:
    aligner = Aligner(tokenizer(STUDENT), tokenizer(TEACHER), True)
    row = {"input_ids": [5, 6], "labels": [5, 6]}
    assert aligner.unpaired(row)[SPANS] == [-100, -100]
