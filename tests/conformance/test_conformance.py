"""The kit passes a right loss, finds each of a set of wrong ones in the right case, and passes fastkd."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from support.wrong_losses import WITH_A_DIRECTION, WRONG, adapter_of, in_float32, right
from torch import Tensor

from fastkd.conformance import Adapter, Call, Report, Status, run
from fastkd.conformance.adapters.fastkd_loss import adapters as ours
from fastkd.conformance.adapters.plain_torch import adapters as plain
from fastkd.conformance.cases import CASES
from fastkd.conformance.runner import amount

# The cases with large tensors.
LARGE = ("float16, loss scale 32,768", "vocabulary sizes")
CASE = {case.name: case for case in CASES}


def named(report: Report, status: Status) -> set[str]:
    return {verdict.case.name for verdict in report.verdicts if verdict.status is status}


def test_a_right_loss_passes_everything() -> None:
    report = run(adapter_of(right))
    assert named(report, Status.PASSES) == set(CASE)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_loss_is_found(name: str) -> None:
    """It is wrong in the cases that ask for what it lacks, and in no others."""
    wrong = WRONG[name]
    cases = [case for case in CASES if case.name not in LARGE or case.name in wrong.cases]
    report = run(adapter_of(wrong.loss, wrong.divergences), cases)
    assert named(report, Status.WRONG) == set(wrong.cases)
    assert named(report, Status.REFUSES) == set(wrong.refuses)


def test_every_case_finds_a_loss_that_is_wrong_in_little_else() -> None:
    found = {case for wrong in WRONG.values() if wrong.cases != WITH_A_DIRECTION for case in wrong.cases}
    assert set(CASE) - found == {"definition"}


@pytest.mark.parametrize(
    "divergences",
    [
        ("forward_kl", "jsd", "tvd", "decoupled"),
        pytest.param(ours[0].divergences, marks=pytest.mark.slow, id="all"),
    ],
)
def test_fastkd_passes_all_but_second_derivatives_which_it_refuses(divergences: tuple[str, ...]) -> None:
    report = run(replace(ours[0], divergences=divergences))
    assert named(report, Status.REFUSES) == {"second derivatives"}
    assert named(report, Status.PASSES) == set(CASE) - {"second derivatives"}


def test_plain_torch() -> None:
    report = run(plain[0])
    wrong = {"all labels ignored", "near-identical bfloat16", "large logits", "-inf on both sides"}
    assert named(report, Status.WRONG) == wrong
    without = {"parameters", "token weights", "padded vocabulary", "two widths", "top-K teacher"}
    assert named(report, Status.CANNOT) == without


def test_a_loss_that_takes_nothing_is_asked_for_nothing() -> None:
    def loss(call: Call) -> Tensor:
        assert call.labels is None and call.temperature == call.kd_ratio == 1 and call.vocab_size is None
        return right(call, reduction="mean")

    adapter = Adapter("bare", loss, function="bare", reductions={"": "tokens"}, teacher_gradient=True)
    report = run(adapter)
    assert not named(report, Status.WRONG) | named(report, Status.REFUSES)
    assert report.count(Status.CANNOT) == 12
    assert all(verdict.message for verdict in report.verdicts if verdict.status is Status.CANNOT)


@pytest.mark.parametrize(
    ("change", "loss"),
    [
        ({"t_squared": "never", "takes": ("temperature",)}, lambda call: right(call) / call.temperature**2),
        (
            {"t_squared": "mixed"},
            lambda call: right(call) / (call.temperature**2 if call.kd_ratio == 1 else 1.0),
        ),
        (
            {"reductions": {"mean": "elements"}, "takes": ("temperature",)},
            lambda call: right(call) / call.student.shape[-1],
        ),
        ({"in_float32": True}, in_float32),
        ({"teacher_gradient": False}, lambda call: right(call, teacher=call.teacher_logits.detach())),
    ],
)
def test_a_stated_definition_is_no_error(change: dict[str, object], loss: object) -> None:
    """A loss that the usual definition would find wrong passes by its own, and is wrong by the usual one."""
    names = ("definition", "temperature 3", "cross-entropy", "teacher's gradient", "float64")
    cases = [CASE[name] for name in names]
    given = replace(adapter_of(loss, ("forward_kl",)), tails=())  # type: ignore[arg-type]
    assert named(run(given, cases), Status.WRONG)
    assert not named(run(replace(given, **change), cases), Status.WRONG)  # type: ignore[arg-type]


def test_the_teachers_entropy_is_a_stated_term() -> None:
    def cross_entropy(call: Call) -> Tensor:
        q, p = call.student.log_softmax(-1), call.teacher_logits.softmax(-1)
        return -(p * q).sum(-1).mean()

    cases = [CASE["definition"], CASE["teacher's gradient"]]
    adapter = Adapter(
        "soft", cross_entropy, "soft", reductions={"": "tokens"}, teacher_entropy=True, teacher_gradient=True
    )
    assert named(run(adapter, cases), Status.PASSES) == {"definition", "teacher's gradient"}
    (verdict,) = run(replace(adapter, teacher_entropy=False), cases[:1]).verdicts
    assert verdict.worst is not None and verdict.worst.text.startswith("loss ")
    assert "gradient" not in verdict.worst.text


def test_a_refusal_is_no_error_and_keeps_its_message() -> None:
    def loss(call: Call) -> Tensor:
        raise NotImplementedError("only\nin France")

    report = run(adapter_of(loss), [CASE["definition"]])
    (finding, *_) = report.verdicts[0].findings
    assert finding.status is Status.REFUSES and finding.message == "NotImplementedError: only in France"


def test_another_shape_is_wrong() -> None:
    report = run(adapter_of(lambda call: right(call, reduction="none")), [CASE["definition"]])
    assert report.verdicts[0].worst is not None
    assert report.verdicts[0].worst.message == "the loss has shape (2, 5), not ()"


@pytest.mark.parametrize(
    ("relative", "text"),
    [
        (math.nan, "NaN"),
        (math.inf, "inf"),
        (50.2, "50x"),
        (2e4, "2e+04x"),
        (0.843, "84 %"),
        (0.0051, "0.51 %"),
    ],
)
def test_amounts(relative: float, text: str) -> None:
    assert amount(relative) == text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("divergences", ("forward",)),
        ("divergences", ()),
        ("reductions", {"mean": "rows"}),
        ("takes", ("mask",)),
        ("tails", ("cut",)),
        ("t_squared", "sometimes"),
        ("from_hidden", ("both",)),
    ],
)
def test_an_adapter_refuses_unknown_names(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{field} of 'tested'"):
        replace(adapter_of(right), **{field: value})  # type: ignore[arg-type]


def test_the_same_inputs_every_time() -> None:
    def seen(loss: Call) -> Tensor:
        calls.append(loss.student)
        return right(loss)

    calls: list[Tensor] = []
    for _ in range(2):
        run(adapter_of(seen), [CASE["definition"]])
    half = len(calls) // 2
    assert half == 3 and all(torch.equal(a, b) for a, b in zip(calls[:half], calls[half:], strict=True))
