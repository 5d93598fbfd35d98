"""Test matches in training: memory, precision, accumulation, checkpoints, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from support.families import causal_rows, gpt2
from support.matching import EVERY_KIND, EVERY_KIND_OF_ONE_LAYER, distilled, matched
from support.tiny import llama, rows

from fastkd.corpora.tasks import TASKS
from fastkd.trainer import DistillationConfig, DistillationTrainer
from fastkd.trainer.matches import LOSSES, WEIGHTS, parse_matches
from fastkd.trainer.matching import Matching

Configuration = Callable[..., DistillationConfig]


def test_the_teachers_graph_is_freed_before_the_student_runs() -> None:
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


def test_attention_dropout_gives_finite_losses() -> None:
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
    with pytest.raises(ValueError, match=r"feature_matches\[0\]: the teacher returns no attention maps"):
        Matching(llama(0), teacher, [{"student": 1, "teacher": 1, "kind": "attention"}], 0.0)


def test_projections_do_not_change_the_random_state() -> None:
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
def test_layers_that_do_not_exist_are_refused(match: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"feature_matches\[0\]: {message}"):
        Matching(llama(0), llama(1), [match], 0.0)


def test_defaults() -> None:
    (found,) = parse_matches([{"student": 1, "teacher": -1}])
    assert (found.kind, found.loss, found.weight) == ("hidden", "mse", 0.01)
    assert {kind: tuple(weights) for kind, weights in WEIGHTS.items()} == LOSSES
    for kind, loss, weight in (
        ("hidden", "cosine", 0.1),
        ("attention", "kl", 0.1),
        ("relation", "kl", 0.001),
    ):
        (found,) = parse_matches([{"student": 1, "teacher": 1, "kind": kind, "loss": loss}])
        assert found.weight == weight


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


def test_matches_without_distillation_run_the_teacher_and_are_logged(configuration: Configuration) -> None:
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
    with pytest.raises(ValueError, match="give one model, not a cache or a server"):
        DistillationTrainer(llama(0), None, configuration(kd_ratio=0.0, **MIX), train_dataset=rows(4))
