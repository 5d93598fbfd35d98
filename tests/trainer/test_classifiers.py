"""Test the losses of classifiers with several labels per text, of regressions, and classes in any order.

The oracles use sigmoids and squares in float64, as the definitions have them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from support import oracle
from support.doctor import tokenizer
from support.families import bert
from support.stored import settings
from support.tiny import rows
from torch import Tensor
from transformers import LlamaConfig, LlamaForSequenceClassification

from fastkd.corpora.labels import MULTI_LABEL, REGRESSION
from fastkd.divergences import DIVERGENCES
from fastkd.runs.cache import make_cache
from fastkd.runs.measuring import Measuring
from fastkd.trainer import DistillationConfig, DistillationTrainer
from fastkd.trainer.teachers import CachedTeacher, ReorderedTeacher

Configuration = Callable[..., DistillationConfig]
VECTORS = [[1, 0, 1], [0, 0, 0], [-100, -100, -100], [0, 1, -100], [1, 1, 1], [0, 0, 1]]
NUMBERS = [0.5, -2.0, -100.0, 3.25, 0.0, 1.0]


def model(seed: int, problem: str | None = None, names: list[str] | None = None) -> Any:
    """A classifier of three columns, or with one output for a regression."""
    made = bert(seed, layers=1)
    if names is not None:
        made.config.id2label = dict(enumerate(names))
        made.config.label2id = {name: i for i, name in enumerate(names)}
    if problem == REGRESSION:
        made.config.id2label = {0: "LABEL_0"}
        made.classifier = torch.nn.Linear(16, 1)
        torch.nn.init.normal_(made.classifier.weight, generator=torch.Generator().manual_seed(seed))
    made.config.problem_type = problem
    return made


def labelled(labels: list[Any], **columns: list[Any]) -> Dataset:
    encoded = rows(len(labels), seed=2, longest=7)
    more = [{name: values[i] for name, values in columns.items()} for i in range(len(labels))]
    return Dataset.from_list(
        [{**row, "labels": label, **extra} for row, label, extra in zip(encoded, labels, more, strict=True)]
    )


def trainer(
    configuration: Configuration, data: Any, student: Any, teacher: Any, **fields: Any
) -> DistillationTrainer:
    args = configuration(task="classification", per_device_train_batch_size=6, logging_steps=1, **fields)
    return DistillationTrainer(student, teacher, args, train_dataset=data, eval_dataset=data)


def batch_of(made: DistillationTrainer) -> Any:
    assert made.data_collator is not None and made.train_dataset is not None
    return made.data_collator([made.train_dataset[i] for i in range(len(made.train_dataset))])  # type: ignore


def logits(side: Any, batch: Any) -> Tensor:
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return copy.deepcopy(side).double().eval()(**inputs).logits


def loss_and_gradient(made: DistillationTrainer, batch: Any) -> tuple[float, Tensor]:
    made.model.train()
    loss = made.model(**batch)["loss"]
    loss.backward()
    return loss.item(), made.student.classifier.bias.grad.double()


def bias_gradient(side: Any, batch: Any, loss: Callable[[Tensor], Tensor]) -> tuple[float, Tensor]:
    """An oracle's loss and its gradient with respect to the bias of the last layer."""
    z = logits(side, batch)
    value = loss(z)
    (gradient,) = torch.autograd.grad(value, z)
    return value.item(), gradient.sum(0)


@pytest.mark.parametrize("name", sorted(DIVERGENCES))
def test_several_labels_are_bernoulli_divergences(configuration: Configuration, name: str) -> None:
    """The mean over all given labels of D(sigmoid, sigmoid) T^2 and of the binary cross-entropy."""
    student, teacher = model(0, MULTI_LABEL), model(1, MULTI_LABEL)
    made = trainer(
        configuration, labelled(VECTORS), student, teacher, kd_ratio=0.7, divergence=name, temperature=2.0,
        label_smoothing_factor=0.1,
    )  # fmt: skip
    batch, divergence = batch_of(made), DIVERGENCES[name]
    y = torch.tensor(VECTORS)
    valid = y >= 0
    t = logits(teacher, batch).detach()[valid] / 2

    def loss(z: Tensor) -> Tensor:
        z, hard = z[valid], y[valid]
        q, p = (torch.stack([F.logsigmoid(-x), F.logsigmoid(x)], -1) for x in (z / 2, t))
        beta, alpha = (
            divergence.parameters[key].default if key in divergence.parameters else None
            for key in ("beta", "alpha")
        )
        kd = oracle.divergence(name, p, q, beta, alpha, hard)
        ce = F.binary_cross_entropy_with_logits(z, 0.9 * hard + 0.05, reduction="none")
        return (0.7 * 4 * kd + 0.3 * ce).mean()

    value, gradient = loss_and_gradient(made, batch)
    expected, wanted = bias_gradient(student, batch, loss)
    assert value == pytest.approx(expected, rel=2e-5, abs=1e-7)
    torch.testing.assert_close(gradient, wanted, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
def test_numbers_are_compared_by_their_squared_error(configuration: Configuration, ratio: float) -> None:
    student, teacher = model(0, REGRESSION), model(1, REGRESSION)
    made = trainer(configuration, labelled(NUMBERS), student, teacher, kd_ratio=ratio)
    batch, y = batch_of(made), torch.tensor(NUMBERS, dtype=torch.float64)
    valid, t = y != -100, logits(teacher, batch_of(made)).detach()[:, 0]

    def loss(z: Tensor) -> Tensor:
        s = z[:, 0]
        return (ratio * (s - t).square() + (1 - ratio) * (s - y).square())[valid].mean()

    value, gradient = loss_and_gradient(made, batch)
    expected, wanted = bias_gradient(student, batch, loss)
    assert value == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-6)
    found = made.evaluate()
    assert found["eval_loss"] == pytest.approx(expected, rel=1e-5)
    s = logits(student, batch).detach()[:, 0]
    assert found["eval_mse"] == pytest.approx((s - y)[valid].square().mean().item(), rel=1e-5)
    assert found["eval_teacher_mse"] == pytest.approx((t - y)[valid].square().mean().item(), rel=1e-5)
    assert "eval_ce" not in found and "eval_perplexity" not in found


@pytest.mark.parametrize("problem", [MULTI_LABEL, REGRESSION])
def test_accumulated_micro_batches_are_one_batch(configuration: Configuration, problem: str) -> None:
    """Also with labels that are masked unevenly."""
    data = labelled(VECTORS if problem == MULTI_LABEL else NUMBERS)
    weights = []
    for size, times in ((6, 1), (2, 3)):
        args = configuration(
            task="classification", per_device_train_batch_size=size, gradient_accumulation_steps=times,
            max_steps=2, optim="sgd", learning_rate=0.1,
        )  # fmt: skip
        made = DistillationTrainer(model(0, problem), model(1, problem), args, train_dataset=data)
        made.train()
        weights.append(torch.cat([p.detach().flatten() for p in made.student.parameters()]))
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-6)


def test_predictions_of_several_labels(configuration: Configuration) -> None:
    """A user's metrics get the model's own logits, and the report counts labels and texts."""
    student = model(0, MULTI_LABEL)
    made = trainer(configuration, labelled(VECTORS), student, None, kd_ratio=0.0)
    z = logits(student, batch_of(made))
    output = made.predict(made.eval_dataset)  # type: ignore[arg-type]
    torch.testing.assert_close(torch.tensor(output.predictions).double(), z, rtol=1e-4, atol=1e-5)
    y, guess = torch.tensor(VECTORS), z > 0
    right = (guess == y)[y >= 0].double().mean().item()
    look = Measuring(made.args, None, made.eval_dataset)  # type: ignore[arg-type]
    look.watch(made)
    found = look.at("model", made)
    assert found["eval"]["accuracy"] == pytest.approx(right)
    whole = [i for i in range(6) if i not in (2, 3)]
    exact = (guess[whole] == y[whole]).all(1).double().mean().item()
    assert found["eval"]["exact_match"] == pytest.approx(exact)
    assert found["classes"]["classes"] == ["LABEL_0", "LABEL_1", "LABEL_2"]


def reordered(teacher: Any, order: list[int], names: list[str]) -> Any:
    """The same teacher with its columns, and their names, in another order."""
    made = copy.deepcopy(teacher)
    made.classifier.weight.data = teacher.classifier.weight.data[order]
    made.classifier.bias.data = teacher.classifier.bias.data[order]
    made.config.id2label = {i: names[j] for i, j in enumerate(order)}
    return made


@pytest.mark.parametrize("problem", ["single_label_classification", MULTI_LABEL])
@pytest.mark.parametrize("cached", [False, True])
def test_a_teacher_with_its_classes_in_another_order(
    configuration: Configuration, tmp_path: Any, problem: str, cached: bool
) -> None:
    """It is the same teacher: same loss, same gradient, same metrics."""
    names = ["neg", "mid", "pos"]
    data = labelled(VECTORS if problem == MULTI_LABEL else [0, 1, 2, 2, -100, 0])
    straight = model(1, problem, names)
    moved = reordered(straight, [2, 0, 1], names)
    results, metrics = [], []
    for number, teacher in enumerate((straight, moved)):
        side: Any = teacher
        if cached:
            fields = {"task": "classification", "class_names": names, "problem_type": problem}
            for part in ("train", "eval"):
                make_cache(teacher, data, tmp_path / str(number) / part, settings(**fields), None)
            side = CachedTeacher(tmp_path / str(number))
        made = trainer(configuration, data, model(0, problem, names), side, class_names=names)
        batch = next(iter(made.get_eval_dataloader()))
        results.append(loss_and_gradient(made, batch))
        metrics.append({k: v for k, v in made.evaluate().items() if "second" not in k and "time" not in k})
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-6)
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-5, abs=1e-6)


def test_each_new_student_reads_the_teacher_in_its_order(configuration: Configuration) -> None:
    """With ``model_init``, the second training is the first one again."""
    names = ["neg", "mid", "pos"]
    args = configuration(task="classification", class_names=names, kd_ratio=1.0, max_steps=2, logging_steps=1)
    made = DistillationTrainer(
        None, model(1, None, names[::-1]), args, train_dataset=labelled([0, 1, 2, 0]),
        model_init=lambda: model(0, None, names),
    )  # fmt: skip
    losses = []
    for _ in range(2):
        made.train()
        assert isinstance(made.model.teacher, ReorderedTeacher)
        losses.append([entry["kd"] for entry in made.state.log_history if "kd" in entry])
    assert losses[0] == losses[1]


def test_an_order_that_numbers_do_not_tell(configuration: Configuration) -> None:
    """Without class_names, a number of the data may be the student's class or the teacher's."""
    names = ["neg", "mid", "pos"]
    student, teacher = model(0, None, names), model(1, None, names[::-1])
    with pytest.raises(ValueError, match=r"student has the classes neg, mid, pos .* set class_names"):
        trainer(configuration, labelled([0, 1, 2]), student, teacher)
    trainer(configuration, labelled([0, 1, 2]), student, teacher, kd_ratio=1.0)  # labels are not read
    text = Dataset.from_dict({"text": ["w1", "w2"], "label": ["pos", "neg"]})
    args = configuration(task="classification")
    made = DistillationTrainer(student, teacher, args, train_dataset=text, processing_class=tokenizer())
    assert list(made.train_dataset["labels"]) == [2, 0]  # type: ignore[index]
    with pytest.raises(ValueError, match="set class_names to the student's"):
        trainer(configuration, labelled([0, 1, 2]), student, teacher, class_names=names[::-1])


@pytest.mark.parametrize(
    ("student", "teacher", "labels", "message"),
    [
        ((MULTI_LABEL, None), (MULTI_LABEL, None), [0, 1], "reads a list of 3 numbers that are 0 or 1"),
        ((MULTI_LABEL, None), (MULTI_LABEL, None), [[1, 0], [0, 1]], "reads a list of 3 numbers"),
        ((None, None), (None, None), [0, 3], "label 3 of row 1 .* not one of the student's 3 classes"),
        ((None, None), (None, None), [0.5, 1.5], "no class number: set problem_type: regression"),
        ((REGRESSION, None), (MULTI_LABEL, None), [0.5], "both must predict the same thing"),
        ((None, ["a", "b", "c"]), (None, ["a", "b", "d"]), [0], "the teacher's classes are a, b, d"),
    ],
)
def test_sides_and_labels_that_do_not_fit(
    configuration: Configuration, student: Any, teacher: Any, labels: list[Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(configuration, labelled(labels), model(0, *student), model(1, *teacher))


def test_one_column_without_a_problem(configuration: Configuration) -> None:
    """A softmax over one column is 1, so what the column means has to be said."""
    sides = model(0, REGRESSION), model(1, REGRESSION)
    for side in sides:
        side.config.problem_type = None
    with pytest.raises(ValueError, match="one output column.*set problem_type: regression"):
        trainer(configuration, labelled([0.5, 1.0]), *sides)
    trainer(configuration, labelled([0.5, 1.0]), *sides, problem_type=REGRESSION)
    assert sides[0].config.problem_type == sides[1].config.problem_type == REGRESSION


@pytest.mark.parametrize(
    "fields",
    [{"divergence": "jsd"}, {"temperature": 2.0}, {"label_smoothing_factor": 0.1}],
)
def test_a_regression_has_no_distribution(configuration: Configuration, fields: dict[str, Any]) -> None:
    (name,) = fields
    with pytest.raises(ValueError, match=f"{name}.* is for distributions"):
        trainer(configuration, labelled(NUMBERS), model(0, REGRESSION), model(1, REGRESSION), **fields)


@pytest.mark.parametrize("problem", ["single_label_classification", MULTI_LABEL, REGRESSION])
def test_texts_without_labels(configuration: Configuration, problem: str) -> None:
    """With kd_ratio 1 they count like any other; metrics that need a label leave them out."""
    known: Any = {MULTI_LABEL: [[1, 0, 1], [0, 1, 0]], REGRESSION: [0.5, 2.0]}.get(problem, [2, 0])
    missing: Any = {MULTI_LABEL: [-1] * 3, REGRESSION: float("nan")}.get(problem, -1)
    sides = model(0, problem), model(1, problem)
    some = trainer(configuration, labelled([*known, missing, missing]), *sides, kd_ratio=1.0)
    every = trainer(configuration, labelled([*known, *known]), *sides, kd_ratio=1.0)
    batches = batch_of(some), batch_of(every)
    value, gradient = loss_and_gradient(some, batches[0])
    gradient = gradient.clone()
    some.student.zero_grad()  # type: ignore[operator]
    expected, wanted = loss_and_gradient(every, batches[1])
    assert value == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(gradient, wanted)
    found = some.evaluate()
    some_known: Any = some.train_dataset
    alone = trainer(configuration, some_known.select([0, 1]), *sides, kd_ratio=1.0).evaluate()
    assert found["eval_kd"] == pytest.approx(every.evaluate()["eval_kd"], rel=1e-5)
    name = "eval_mse" if problem == REGRESSION else "eval_ce"
    assert found[name] == pytest.approx(alone[name], rel=1e-5)
    nothing = trainer(configuration, labelled([missing, missing]), *sides, kd_ratio=1.0).evaluate()
    assert "eval_kd" in nothing and name not in nothing


def test_features_of_several_labels(configuration: Configuration) -> None:
    """Layers and saliency are matched for texts whose targets are several."""
    made = trainer(
        configuration, labelled(VECTORS), model(0, MULTI_LABEL), model(1, MULTI_LABEL), max_steps=1,
        feature_matches=[{"student": -1, "teacher": -1, "kind": "hidden"}], gradient_match_weight=0.1,
    )  # fmt: skip
    made.train()
    logged = next(entry for entry in made.state.log_history if "feature_hidden" in entry)
    assert logged["feature_hidden"] > 0 and logged["saliency"] > 0


def decoder(seed: int, pad: int | None) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=48, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_labels=3, eos_token_id=1, pad_token_id=pad, initializer_range=0.4,
    )  # fmt: skip
    return LlamaForSequenceClassification(config)


@pytest.mark.parametrize("pads", [(None, None), (3, 5)])
def test_a_decoder_finds_the_end_of_each_text(
    configuration: Configuration, tmp_path: Any, pads: tuple[Any, Any]
) -> None:
    """Whatever padding token the configs have, the batch's own tells the last token from padding."""
    data = labelled([0, 1, 2, 0])
    for part in ("train", "eval"):
        make_cache(decoder(1, pads[1]), data, tmp_path / part, settings(task="classification"), None)
    found = []
    for size, teacher in ((1, decoder(1, pads[1])), (4, decoder(1, pads[1])), (4, CachedTeacher(tmp_path))):
        args = configuration(task="classification", per_device_eval_batch_size=size)
        made = DistillationTrainer(decoder(0, pads[0]), teacher, args, None, data, data)
        found.append(made.evaluate()["eval_kd"])
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[2] == pytest.approx(found[1], rel=5e-3)


def test_the_student_learns_the_names_of_its_classes(configuration: Configuration) -> None:
    text = Dataset.from_dict({"text": ["w1", "w2", "w3"], "label": ["pos", "neg", "mid"]})
    student = model(0)
    args = configuration(task="classification", kd_ratio=0.0)
    made = DistillationTrainer(student, None, args, train_dataset=text, processing_class=tokenizer())
    assert student.config.id2label == {0: "mid", 1: "neg", 2: "pos"}
    assert list(made.train_dataset["labels"]) == [2, 1, 0]  # type: ignore[index]
