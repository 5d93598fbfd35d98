"""Compare matches between two models' hidden states, attention and saliency with definitions by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.families import causal_rows, gpt2
from support.matching import CASES, EVERY_KIND, EVERY_KIND_OF_ONE_LAYER, distilled, matched, total
from support.tiny import VOCAB, llama

from fastkd.corpora.tasks import TASKS


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
                else (mapped - t[b, i]).pow(2).sum() / t[b, i].pow(2).sum()
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
    match = {"student": 1, "teacher": 2, "kind": "attention", "loss": loss, "weight": 1}
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
            one = (p - q).pow(2).sum() / p.pow(2).sum() if loss == "mse" else (p * (p.log() - q.log())).sum()
            expected = expected + one / s.shape[1]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("loss", ["mse", "kl"])
def test_relations_by_hand(loss: str) -> None:
    task, batch = TASKS["causal_lm"], TASKS["causal_lm"].collate(causal_rows(), 0)
    student, teacher = llama(0), gpt2(1, hidden=24, layers=2)
    match = {"student": 1, "teacher": 2, "kind": "relation", "loss": loss, "weight": 1}
    found = matched(distilled(task, student, teacher, [match]), batch)["feature_relation"]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    s = student(**inputs, output_hidden_states=True).hidden_states[1]
    t = teacher(**inputs, output_hidden_states=True).hidden_states[2]
    expected = 0.0
    for b, i in ((batch["labels"][:, 1:] != -100).nonzero()).tolist():
        tokens = range(int(batch["attention_mask"][b].sum()))
        if loss == "mse":
            own, aim = (
                torch.stack([F.cosine_similarity(x[b, i], x[b, j], dim=0) for j in tokens]) for x in (s, t)
            )
            expected = expected + (own - aim).pow(2).sum() / aim.pow(2).sum()
        else:
            q, p = (
                torch.stack([F.cosine_similarity(x[b, i], x[b, j], dim=0) for j in tokens])
                .mul(24**0.5)
                .log_softmax(0)
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
def test_a_batch_equals_the_sum_of_its_rows_without_padding(case: str) -> None:
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
