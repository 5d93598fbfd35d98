"""Compare matches between two models' hidden states, attention and saliency with definitions by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file
from tiny import VOCAB, llama, rows

from fastkd.corpora.tasks import TASKS, Task
from fastkd.trainer import DistillationConfig, DistillationTrainer
from fastkd.trainer.heads import find_linear_head
from fastkd.trainer.matches import parse_matches
from fastkd.trainer.matching import Matching
from fastkd.trainer.models import LinearHead, forward
from fastkd.trainer.student import DistilledStudent
from fastkd.trainer.teachers import LiveTeacher

Configuration = Callable[..., DistillationConfig]
OPTIONS: dict[str, Any] = {
    "kd_ratio": 0.5,
    "divergence": "forward_kl",
    "beta": None,
    "alpha": None,
    "temperature": 1.0,
    "teacher_temperature": None,
    "label_smoothing": 0.0,
    "vocab_size": None,
}
EVERY_KIND = [
    {"student": 1, "teacher": 2},
    {"student": -1, "teacher": 1, "loss": "cosine", "weight": 0.5},
    {"student": 1, "teacher": 2, "kind": "attention"},
    {"student": 1, "teacher": 1, "kind": "attention", "loss": "kl", "weight": 0.3},
    {"student": 1, "teacher": 2, "kind": "relation", "weight": 2.0},
    {"student": 0, "teacher": 0, "kind": "relation", "loss": "kl"},
]


def gpt2(seed: int, hidden: int = 16, layers: int = 1, heads: int = 2, dtype: Any = torch.float32) -> Any:
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=VOCAB,
        n_embd=hidden,
        n_layer=layers,
        n_head=heads,
        n_positions=32,
        initializer_range=0.4,
        bos_token_id=0,
        eos_token_id=0,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    )
    return transformers.GPT2LMHeadModel(config).to(dtype)


def bart(seed: int, hidden: int = 16, classes: int = 0, layers: int = 2) -> Any:
    torch.manual_seed(seed)
    config = transformers.BartConfig(
        vocab_size=VOCAB,
        d_model=hidden,
        encoder_layers=1,
        decoder_layers=layers,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_position_embeddings=32,
        init_std=0.4,
        dropout=0.0,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
        **({"num_labels": classes} if classes else {}),
    )
    kind = (
        transformers.BartForSequenceClassification if classes else transformers.BartForConditionalGeneration
    )
    return kind(config)


def t5(seed: int, hidden: int = 16) -> Any:
    torch.manual_seed(seed)
    config = transformers.T5Config(
        vocab_size=VOCAB,
        d_model=hidden,
        d_kv=8,
        d_ff=24,
        num_layers=3,
        num_decoder_layers=2,
        num_heads=2,
        dropout_rate=0.0,
        initializer_factor=2.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config)


def bert(seed: int, hidden: int = 16, layers: int = 2) -> Any:
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=VOCAB,
        hidden_size=hidden,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.4,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.BertForSequenceClassification(config)


# For each task a student, a teacher and two rows of uneven lengths.
def causal_rows() -> list[dict[str, Any]]:
    long, short = rows(1, seed=4, shortest=9, longest=9)[0], rows(1, seed=3, shortest=5, longest=5)[0]
    return [
        {**long, "labels": [-100] * 3 + long["input_ids"][3:]},  # with a prompt
        {**short, "labels": short["input_ids"]},
    ]


def pair_rows() -> list[dict[str, Any]]:
    return [
        {"input_ids": [5, 6, 7, 8, 9, 10, 2], "labels": [11, 12, 2]},
        {"input_ids": [13, 14, 2], "labels": [15, 16, 17, 18, 2]},
    ]


def class_rows() -> list[dict[str, Any]]:
    return [{"input_ids": [5, 6, 7, 8, 9, 2], "labels": 2}, {"input_ids": [10, 11, 2], "labels": 0}]


CASES: dict[str, tuple[str, Callable[[], Any], Callable[[], Any], Callable[[], list[dict[str, Any]]]]] = {
    "llama": ("causal_lm", lambda: llama(0), lambda: gpt2(1, hidden=24, layers=2), causal_rows),
    "bart": ("seq2seq", lambda: bart(0), lambda: bart(1, hidden=24), pair_rows),
    "t5": ("seq2seq", lambda: t5(0), lambda: t5(1, hidden=24), pair_rows),
    "bert": ("classification", lambda: bert(0), lambda: bert(1, hidden=24), class_rows),
    "bart-classifier": (
        "classification",
        lambda: bart(0, classes=3),
        lambda: bart(1, hidden=24, classes=3),
        class_rows,
    ),
}


def distilled(
    task: Task,
    student: Any,
    teacher: Any,
    matches: list[dict[str, Any]],
    gradient_weight: float = 0.0,
    fused: bool = True,
    **options: Any,
) -> DistilledStudent:
    options = {**OPTIONS, **options}
    head = find_linear_head(student) if fused and task.name != "classification" else None
    head = head if isinstance(head, LinearHead) else None
    side = LiveTeacher(teacher, task, head is not None)
    matching = Matching(student, teacher, matches, gradient_weight, options["vocab_size"])
    return DistilledStudent(student, task, head, side, options, matching).train()


def matched(model: DistilledStudent, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The model's matching losses of a batch, called as its forward calls them."""
    matching, targets = model.matching, model.task.targets(batch["labels"])
    assert matching is not None and model.teacher is not None
    teacher = matching.prepare(model.teacher(batch, matching.requested), targets)
    inputs = model.task.model_inputs(model.student, batch)
    student = forward(model.student, model.head, inputs, matching.requested)
    return matching(student, teacher, targets, batch)


def total(model: DistilledStudent, batch: dict[str, Any]) -> torch.Tensor:
    return torch.stack(list(matched(model, batch).values())).sum()


def test_hidden_states_by_hand() -> None:
    """Position i counts if token i + 1 is a target, and a projection maps between the models' widths."""
    task, batch = TASKS["causal_lm"], TASKS["causal_lm"].collate(causal_rows(), 0)
    student, teacher = llama(0), gpt2(1, hidden=24, layers=2)
    for loss in ("mse", "cosine"):
        model = distilled(task, student, teacher, [{"student": 1, "teacher": -2, "loss": loss, "weight": 3}])
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        s = student(**inputs, output_hidden_states=True).hidden_states[1]
        t = teacher(**inputs, output_hidden_states=True).hidden_states[1]
        expected = []
        for b, i in ((batch["labels"][:, 1:] != -100).nonzero()).tolist():
            mapped = model.matching.projections[0](s[b, i])
            assert mapped.shape == (24,)
            expected.append(
                1 - F.cosine_similarity(mapped, t[b, i], dim=0)
                if loss == "cosine"
                else (mapped - t[b, i]).pow(2).sum() / 24
            )
        assert len(expected) == 6 + 4
        found = matched(model, batch)
        assert found.keys() == {"feature_hidden"}
        torch.testing.assert_close(found["feature_hidden"], 3 * torch.stack(expected).sum())


@pytest.mark.parametrize("loss", ["mse", "kl"])
@pytest.mark.parametrize("heads", [2, 4])
def test_attention_by_hand(loss: str, heads: int) -> None:
    """Each query covers the keys up to itself; maps are averaged over heads if their numbers differ."""
    task, batch = TASKS["causal_lm"], TASKS["causal_lm"].collate(causal_rows(), 0)
    student, teacher = llama(0), gpt2(1, layers=2, heads=heads)
    match = {"student": 1, "teacher": 2, "kind": "attention", "loss": loss}
    found = matched(distilled(task, student, teacher, [match]), batch)["feature_attention"]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    s = student(**inputs, output_attentions=True).attentions[0]
    t = teacher(**inputs, output_attentions=True).attentions[1]
    if heads != 2:
        s, t = s.mean(1, keepdim=True), t.mean(1, keepdim=True)
    expected = 0.0
    for b, i in ((batch["labels"][:, 1:] != -100).nonzero()).tolist():
        for h in range(s.shape[1]):
            q, p = s[b, h, i, : i + 1], t[b, h, i, : i + 1]
            one = (p - q).pow(2).mean() if loss == "mse" else (p * (p.log() - q.log())).sum()
            expected = expected + one / s.shape[1]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("loss", ["mse", "kl"])
def test_relations_by_hand(loss: str) -> None:
    task, batch = TASKS["causal_lm"], TASKS["causal_lm"].collate(causal_rows(), 0)
    student, teacher = llama(0), gpt2(1, hidden=24, layers=2)
    match = {"student": 1, "teacher": 2, "kind": "relation", "loss": loss}
    found = matched(distilled(task, student, teacher, [match]), batch)["feature_relation"]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    s = student(**inputs, output_hidden_states=True).hidden_states[1]
    t = teacher(**inputs, output_hidden_states=True).hidden_states[2]
    expected = 0.0
    for b, i in ((batch["labels"][:, 1:] != -100).nonzero()).tolist():
        tokens = range(int(batch["attention_mask"][b].sum()))
        if loss == "mse":
            between = [
                F.cosine_similarity(s[b, i], s[b, j], dim=0) - F.cosine_similarity(t[b, i], t[b, j], dim=0)
                for j in tokens
            ]
            expected = expected + torch.stack(between).pow(2).mean()
        else:
            q, p = (
                torch.stack([x[b, i] @ x[b, j] / x.shape[-1] ** 0.5 for j in tokens]).log_softmax(0)
                for x in (s, t)
            )
            expected = expected + (p.exp() * (p - q)).sum()
    torch.testing.assert_close(found, expected)


def norms(model: Any, inputs: dict[str, Any], score: Callable[[Any], Any], embed: Any) -> torch.Tensor:
    """Saliencies: the norms of a score's gradient with respect to the input embeddings."""
    embeddings = embed(inputs.pop("input_ids")).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(score(model(inputs_embeds=embeddings, **inputs).logits), embeddings)
    return gradient.norm(dim=-1)


@pytest.mark.parametrize("case", ["llama", "bart", "t5", "bert"])
@pytest.mark.parametrize("fused", [True, False])
def test_saliency_by_hand(case: str, fused: bool) -> None:
    """Saliency equals a computation text by text; in an encoder-decoder it is that of the source's tokens."""
    name, make_student, make_teacher, make_rows = CASES[case]
    task, student, teacher = TASKS[name], make_student().eval(), make_teacher()
    model = distilled(task, student, teacher, [], 0.7, fused)
    expected = 0.0
    for row in make_rows():
        batch = task.collate([row], 0)
        targets = task.targets(batch["labels"])
        valid = targets != -100
        pair = []
        for side in (student, teacher):
            inputs = task.model_inputs(side, batch)

            def score(logits: Any, valid: Any = valid, targets: Any = targets) -> Any:
                return logits.log_softmax(-1)[valid][range(int(valid.sum())), targets[valid]].sum()

            embed = (side.get_encoder() if name == "seq2seq" else side).get_input_embeddings()
            norm = norms(side, inputs, score, embed)[0]
            pair.append(norm / norm.norm())
        expected = expected + int(valid.sum()) * (pair[0] - pair[1]).pow(2).sum()
    found = matched(model, task.collate(make_rows(), 0))
    assert found.keys() == {"saliency"}
    torch.testing.assert_close(found["saliency"], 0.7 * expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_a_batch_is_the_sum_of_its_rows_and_padding_is_nothing(case: str) -> None:
    """This makes results independent of gradient accumulation and the number of processes."""
    name, make_student, make_teacher, make_rows = CASES[case]
    task, two = TASKS[name], make_rows()
    model = distilled(task, make_student(), make_teacher(), EVERY_KIND, 0.7)
    together = matched(model, task.collate(two, 0))
    alone = [matched(model, task.collate([row], 0)) for row in two]
    assert together.keys() == {"feature_hidden", "feature_attention", "feature_relation", "saliency"}
    for kind, value in together.items():
        assert value > 0
        torch.testing.assert_close(value, alone[0][kind] + alone[1][kind], rtol=1e-4, atol=1e-6)
    # A text without a label counts for nothing.
    masked = task.collate(two, 0)
    masked["labels"][1] = -100
    for kind, value in matched(model, masked).items():
        torch.testing.assert_close(value, alone[0][kind], rtol=1e-4, atol=1e-6)
    gradients = torch.autograd.grad(total(model, masked), list(model.parameters()), allow_unused=True)
    assert all(torch.isfinite(g).all() for g in gradients if g is not None)


def test_packed_documents_are_sequences_of_their_own() -> None:
    task, two = TASKS["causal_lm"], [row["input_ids"] for row in causal_rows()]
    model = distilled(task, llama(0), llama(1, hidden=24), EVERY_KIND_OF_ONE_LAYER, 0.7)
    packed = {
        "input_ids": two[0] + two[1],
        "labels": [-100, *two[0][1:], -100, *two[1][1:]],
        "position_ids": [*range(9), *range(5)],
    }
    beside = {"input_ids": [3] * 16, "labels": [-100] + [3] * 15, "position_ids": list(range(16))}
    apart = matched(model, task.collate([{"input_ids": ids, "labels": ids} for ids in two], 0))
    rest = matched(model, task.collate([beside], 0))
    for kind, value in matched(model, task.collate([packed, beside], 0)).items():
        torch.testing.assert_close(value, apart[kind] + rest[kind], rtol=1e-4, atol=1e-6)


EVERY_KIND_OF_ONE_LAYER = [{**match, "teacher": min(match["teacher"], 1)} for match in EVERY_KIND]


@pytest.mark.parametrize("case", CASES)
def test_a_model_matches_itself(case: str) -> None:
    name, make_student, _, make_rows = CASES[case]
    last = [{**match, "student": -1, "teacher": -1} for match in EVERY_KIND]
    model = distilled(TASKS[name], make_student(), make_student(), last, 1.0)
    assert not list(model.matching.parameters())
    found = matched(model, TASKS[name].collate(make_rows(), 0))
    assert all(abs(value) < 1e-6 for value in found.values())


@pytest.mark.parametrize("fused", [True, False])
def test_gradients_by_finite_differences(fused: bool) -> None:
    """Gradients match finite differences. For saliency, itself a gradient, this covers second derivatives."""
    task, batch = TASKS["causal_lm"], TASKS["causal_lm"].collate(causal_rows(), 0)
    student, teacher = gpt2(0, dtype=torch.float64), gpt2(1, hidden=24, layers=2, dtype=torch.float64)
    model = distilled(task, student, teacher, EVERY_KIND, 5.0, fused)
    model(**batch)["loss"].backward()
    alone = distilled(task, student, teacher, [], 5.0, fused)
    generator = torch.Generator().manual_seed(0)
    checked = 0
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        for one, analytic in (
            (lambda: model(**batch)["loss"], parameter.grad),
            (lambda: total(alone, batch), None),
        ):
            if analytic is None:
                (analytic,) = torch.autograd.grad(one(), parameter, allow_unused=True)
                if analytic is None:  # a projection, or a layer after all attention
                    continue
            values = []
            for step in (1e-6, -1e-6):
                with torch.no_grad():
                    parameter.add_(direction, alpha=step)
                values.append(one().item())
                with torch.no_grad():
                    parameter.add_(direction, alpha=-step)
            numeric = (values[0] - values[1]) / 2e-6
            assert numeric == pytest.approx((analytic * direction).sum().item(), rel=2e-5, abs=2e-7), name
            checked += 1
    assert checked > 20


def test_the_teachers_graph_is_gone_before_the_student_runs() -> None:
    task, batch = TASKS["causal_lm"], TASKS["causal_lm"].collate(causal_rows(), 0)
    for fused in (True, False):
        model = distilled(task, llama(0), llama(1), EVERY_KIND_OF_ONE_LAYER, 1.0, fused)
        view = model.teacher(batch, model.matching.requested)
        kept = view.distribution if isinstance(view.distribution, torch.Tensor) else view.distribution.hidden
        assert kept.requires_grad and view.embeddings.requires_grad
        prepared = model.matching.prepare(view, task.targets(batch["labels"]))
        kept = prepared.distribution
        inside = [kept] if isinstance(kept, torch.Tensor) else [kept.hidden, kept.weight]
        inside += [*prepared.hidden_states, *prepared.attentions, prepared.saliency]
        assert len(inside) >= 5 and not any(value.requires_grad for value in inside)
        assert prepared.embeddings is None
        model(**batch)["loss"].backward()
        assert all(p.grad is None for p in model.teacher.model.parameters())
        assert all(p.grad is not None for p in model.student.parameters())


def test_padded_columns_have_no_saliency() -> None:
    task, batch = TASKS["causal_lm"], TASKS["causal_lm"].collate(causal_rows(), 0)
    narrow, wide = llama(0), llama(0, vocab=VOCAB + 16)
    with torch.no_grad():
        for name, value in narrow.state_dict().items():
            wide.state_dict()[name][: len(value)] = value  # the same columns, and random ones after them
    teacher = llama(1)
    found = [
        matched(distilled(task, student, teacher, [], 1.0, vocab_size=VOCAB), batch)["saliency"]
        for student in (narrow, wide)
    ]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant: bool) -> None:
    """Non-reentrant checkpointing gives the same gradients. Reentrant would lose them and is refused."""
    task, batch = TASKS["causal_lm"], TASKS["causal_lm"].collate(causal_rows(), 0)
    found = []
    for checkpointing in (False, True):
        model = distilled(task, llama(0), llama(1), EVERY_KIND_OF_ONE_LAYER, 0.0 if reentrant else 1.0)
        if checkpointing:
            model.student.gradient_checkpointing_enable({"use_reentrant": reentrant})
            if reentrant:
                with pytest.raises(ValueError, match="use_reentrant: false"):
                    model(**batch)
                return
        model(**batch)["loss"].backward()
        found.append([p.grad for p in model.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_mixed_precision() -> None:
    """Under autocast, 16-bit hidden states and maps are compared in float32."""
    task, batch = TASKS["causal_lm"], TASKS["causal_lm"].collate(causal_rows(), 0)
    model = distilled(task, llama(0), gpt2(1, hidden=24, layers=2), EVERY_KIND, 1.0)
    exact = matched(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = matched(model, batch)
        loss = model(**batch)["loss"]
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in model.parameters())
    for kind, value in exact.items():
        assert rounded[kind].dtype == torch.float32
        torch.testing.assert_close(rounded[kind], value, rtol=0.1, atol=0.05)


def test_attention_dropout_leaves_keys_out_rather_than_infinities() -> None:
    task, batch = TASKS["causal_lm"], TASKS["causal_lm"].collate(causal_rows(), 0)
    student = llama(0)
    student.config.attention_dropout = 0.5
    student.model.layers[0].self_attn.attention_dropout = 0.5
    match = {"student": 1, "teacher": 1, "kind": "attention", "loss": "kl"}
    model = distilled(task, student, llama(1), [match])
    student.train()
    found = [float(matched(model, batch)["feature_attention"].detach()) for _ in range(5)]
    assert len(set(found)) > 1 and all(abs(value) < 50 for value in found)


def test_a_teacher_without_attention_maps_is_refused() -> None:
    teacher = llama(1)
    forward = teacher.forward
    teacher.forward = lambda **inputs: forward(**{**inputs, "output_attentions": False})
    with pytest.raises(ValueError, match=r"feature_matches\[0\]: the teacher gives no attention maps"):
        Matching(llama(0), teacher, [{"student": 1, "teacher": 1, "kind": "attention"}], 0.0)


def test_nobodys_random_numbers_move() -> None:
    """Creating projections leaves the global random state unchanged, and gives equal weights each time."""
    student, teacher = llama(0), llama(1, hidden=24)
    before = torch.get_rng_state()
    made = [Matching(student, teacher, [{"student": 1, "teacher": 1}], 0.0) for _ in range(2)]
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(*(m.projections[0].weight for m in made))  # equal in all processes


@pytest.mark.parametrize(
    ("matches", "message"),
    [
        ([{"student": 1, "teacher": 1, "kind": "atention"}], "did you mean 'attention'?"),
        (
            [{"student": 1, "teacher": 1, "loss": "mes"}],
            "the loss mse or cosine, not 'mes'; did you mean",
        ),
        ([{"student": 1, "teacher": 1, "kind": "relation", "loss": "cosine"}], "takes the loss mse or kl"),
        ([{"studnet": 1, "teacher": 1}], "unknown field 'studnet'; did you mean 'student'?"),
        ([{"teacher": 1}], "the student's layer is missing"),
        ([{"student": "last", "teacher": 1}], "the student's layer must be a whole number, not 'last'"),
        ([{"student": 1, "teacher": True}], "the teacher's layer must be a whole number"),
        ([{"student": 1, "teacher": 1, "weight": -1}], "weight must be a positive number, not -1"),
        ([{"student": 1, "teacher": 1, "weight": math.nan}], "weight must be a positive number"),
        (["hidden"], r"feature_matches\[0\] must be a mapping"),
        ({"student": 1}, "must be a list"),
    ],
)
def test_bad_matches_are_refused_with_the_configuration(
    configuration: Configuration, matches: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        configuration(feature_matches=matches)


@pytest.mark.parametrize(
    ("match", "message"),
    [
        ({"student": 2, "teacher": 1}, "the student has hidden states from 0 to 1 .* not 2"),
        ({"student": 1, "teacher": -3}, "the teacher has hidden states from 0 to 1 .* not -3"),
        ({"student": 0, "teacher": 1, "kind": "attention"}, "the student has attention maps from 1 to 1"),
        ({"student": 1, "teacher": 2, "kind": "attention"}, "the teacher has attention maps from 1 to 1"),
    ],
)
def test_layers_that_are_not_there(match: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"feature_matches\[0\]: {message}"):
        Matching(llama(0), llama(1), [match], 0.0)


def test_defaults() -> None:
    (found,) = parse_matches([{"student": 1, "teacher": -1}])
    assert (found.kind, found.loss, found.weight) == ("hidden", "mse", 1.0)


# Through the trainer.


def trainer_of(args: DistillationConfig, student: Any = None, **options: Any) -> DistillationTrainer:
    options.setdefault("train_dataset", rows(32))
    student = llama(0) if student is None else student
    return DistillationTrainer(student, llama(1, hidden=24), args, **options)


def weights(trainer: DistillationTrainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


MIX: dict[str, Any] = {"feature_matches": EVERY_KIND_OF_ONE_LAYER, "gradient_match_weight": 0.7}


def test_accumulation_equals_one_batch(configuration: Configuration) -> None:
    found = []
    for size, accumulation in ((8, 1), (4, 2), (1, 8)):
        trainer = trainer_of(
            configuration(
                per_device_train_batch_size=size,
                gradient_accumulation_steps=accumulation,
                optim="sgd",
                learning_rate=0.1,
                lr_scheduler_type="constant",
                logging_steps=1,
                **MIX,
            )
        )
        before = weights(trainer)
        trainer.train()
        names = ("loss", "kd", "feature_hidden", "feature_attention", "feature_relation", "saliency")
        logs = [[entry[name] for name in names] for entry in trainer.state.log_history if "loss" in entry]
        found.append((torch.tensor(logs), weights(trainer)))
        moved = {name for name, value in found[-1][1].items() if not torch.equal(value, before[name])}
        assert {"matching.projections.0.weight", "student.lm_head.weight"} <= moved
    for logs, after in found[1:]:
        torch.testing.assert_close(logs, found[0][0], rtol=2e-5, atol=1e-6)
        for name, value in after.items():
            torch.testing.assert_close(value, found[0][1][name], rtol=1e-4, atol=2e-6)


def test_matches_alone_run_the_teacher_and_are_logged(configuration: Configuration) -> None:
    """With kd_ratio=0 the loss is the cross-entropy and the matches, which still need the teacher."""
    data = rows(4)
    args = configuration(kd_ratio=0.0, max_steps=1, logging_steps=1, **MIX)
    trainer = trainer_of(args, train_dataset=data)
    batch = trainer.data_collator(data)
    found = matched(trainer.model.train(), batch)
    tokens = (batch["labels"][:, 1:] != -100).sum()
    with torch.no_grad():
        ce = trainer.student(**batch).loss
    trainer.train()
    entry = trainer.state.log_history[0]
    expected = {name: float(value.detach() / tokens) for name, value in found.items()}
    assert {name: entry[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert entry["loss"] == pytest.approx(ce.item() + sum(expected.values()), rel=1e-4)


def test_projections_are_saved_beside_the_student_and_restored(
    configuration: Configuration, tmp_path: Path
) -> None:
    def args(name: str, **more: Any) -> DistillationConfig:
        return configuration(output_dir=str(tmp_path / name), max_steps=6, **MIX, **more)

    whole = trainer_of(args("whole"))
    whole.train()
    trainer_of(args("cut", save_strategy="steps", save_steps=3)).train()
    folder = tmp_path / "cut" / "checkpoint-3"
    inside, beside = load_file(folder / "model.safetensors"), load_file(folder / "projections.safetensors")
    assert set(inside) <= set(llama(0).state_dict())
    assert set(beside) == {f"projections.{i}.{part}" for i in (0, 1) for part in ("weight", "bias")}
    transformers.AutoModelForCausalLM.from_pretrained(folder)

    again = trainer_of(args("cut"), llama(5))
    again.train(resume_from_checkpoint=str(folder))
    for name, value in weights(again).items():
        assert torch.equal(value, weights(whole)[name]), name

    whole._save(str(tmp_path / "full"), state_dict=whole.model.state_dict())  # in the form that FSDP passes
    assert set(load_file(tmp_path / "full" / "model.safetensors")) <= set(llama(0).state_dict())
    for name, value in load_file(tmp_path / "full" / "projections.safetensors").items():
        assert torch.equal(value, weights(whole)[f"matching.{name}"])

    other = Matching(llama(0), llama(1, hidden=32), [{"student": 1, "teacher": 1}], 0.0)
    with pytest.raises(ValueError, match="projections of other feature_matches"):
        other.load(folder)
    (folder / "projections.safetensors").unlink()
    with pytest.raises(ValueError, match="has no projections"):
        again.model.matching.load(folder)


def test_matching_makes_the_models_alike(configuration: Configuration) -> None:
    """Training with matches reduces every matching loss."""
    args = configuration(max_steps=60, kd_ratio=0.0, logging_steps=1, learning_rate=3e-3, **MIX)
    trainer = trainer_of(args, train_dataset=rows(4))
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "saliency" in entry]
    for name in ("feature_hidden", "feature_attention", "feature_relation", "saliency"):
        assert logs[-1][name] < 0.8 * logs[0][name], name


def test_a_match_needs_a_live_teacher(configuration: Configuration) -> None:
    with pytest.raises(ValueError, match="need a live one"):
        DistillationTrainer(llama(0), None, configuration(kd_ratio=0.0, **MIX), train_dataset=rows(4))
