"""Test the report of several seeds on reports that are made up: its numbers, its verdicts and its page."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from support.pages import Page

from fastkd.runs import report
from fastkd.runs.report.seeds import BETTER, Measured
from fastkd.runs.report.statistics import paired, spread, student_quantile

# The 0.975 quantiles of Student's t distribution, from printed tables, by degrees of freedom.
QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 10: 2.228, 30: 2.042, 120: 1.980}


def part(group: str = "eval", **scores: Any) -> dict[str, Any]:
    held = scores if group == "eval" else {"num_beams": 1 if group == "greedy" else 4, **scores}
    return {"parameters": 7, "fused_head": True, "steps": 4, "history": [{"step": 1}], group: held}


def several(
    key: str, student: list[Any], control: list[Any], teacher: float | None = None, group: str = "eval"
) -> dict[str, Any]:
    """The report of seeds 1, 2, ... with these scores."""
    reports = {}
    for seed, (own, other) in enumerate(zip(student, control, strict=True), 1):
        reports[seed] = {"student": part(group, **{key: own}), "control": part(group, **{key: other})}
        if teacher is not None:
            reports[seed]["teacher"] = part(group, **{key: teacher})
    return {"command": "distill", **report.summary(reports, {})}


@pytest.mark.parametrize(("freedom", "expected"), QUANTILES.items())
def test_quantiles(freedom: int, expected: float) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(expected, abs=5e-4)
    # Simulated: a ratio of a normal to the root of a mean square is within the quantile in 95 % of cases.
    draws = np.random.default_rng(freedom).standard_normal((freedom + 1, 200_000 // (freedom + 1)))
    ratios = np.abs(draws[0]) / np.sqrt((draws[1:] ** 2).mean(0))
    assert (ratios <= student_quantile(0.975, freedom)).mean() == pytest.approx(0.95, abs=0.02)


def test_the_numbers_are_those_of_numpy() -> None:
    own, other = np.random.default_rng(0).normal([[10.0], [11.0]], 0.5, (2, 5))
    found = several("perplexity", own.tolist(), other.tolist(), teacher=6.0)
    metrics = found["seeds"]["metrics"]
    for name, values in (("student", own), ("control", other)):
        measured = metrics[name]["eval"]["perplexity"]
        assert measured["mean"] == pytest.approx(values.mean()) == found[name]["eval"]["perplexity"]
        assert measured["spread"] == pytest.approx(values.std(ddof=1)) and measured["n"] == 5
        assert list(measured["values"].values()) == values.tolist()
    (difference,) = found["seeds"]["differences"]
    apart = own - other
    assert difference["mean"] == pytest.approx(apart.mean())
    assert difference["interval"] == pytest.approx(2.776445 * apart.std(ddof=1) / math.sqrt(5))
    assert difference["largest_spread"] == pytest.approx(max(own.std(ddof=1), other.std(ddof=1)))
    assert found["student"] == {
        "parameters": 7, "fused_head": True, "steps": 4, "eval": {"perplexity": pytest.approx(own.mean())}
    }  # fmt: skip


# The metric, the scores of student and control by seed, and a part of the sentence.
CASES = [
    ("perplexity", [8.0, 8.1, 7.9], [10.0, 10.2, 9.8], "lower by 2.00 ± 0.25, which is better."),
    ("perplexity", [10.0, 10.2, 9.8], [8.0, 8.1, 7.9], "higher by 2.00 ± 0.25, which is worse."),
    ("perplexity", [9.9, 10.1], [10.0, 10.1], "no difference beyond the spread of 2 seeds (-0.05 ± 0.64)."),
    # Two seeds that agree to the last digit leave no doubt; two that differ a little leave much.
    ("perplexity", [8.0, 8.0], [9.0, 9.0], "lower by 1.00 ± 0.00, which is better."),
    ("perplexity", [8.0, 8.2], [9.0, 9.0], "no difference beyond the spread of 2 seeds (-0.90 ± 1.27)."),
    # Steady seed by seed, and yet smaller than what another seed would make of either.
    ("perplexity", [8.0, 9.0, 10.0], [8.5, 9.5, 10.5], "no difference beyond the spread of 3 seeds (-0.50 ±"),
    ("perplexity", [9.0, 9.0, 9.0], [9.0, 9.0, 9.0], "no difference beyond the spread of 3 seeds (0.00 ±"),
    ("perplexity", [8.0], [10.0], "one run cannot tell whether another seed would say the same."),
    ("accuracy", [0.90, 0.91, 0.92], [0.80, 0.80, 0.81], "higher by 10.7 ± 1.4 points, which is better."),
    ("accuracy", [0.80, 0.81, 0.79], [0.80, 0.80, 0.80], "spread of 3 seeds (0.0 ± 2.5 points)."),
    ("micro_f1", [0.5, 0.51, 0.5], [0.4, 0.4, 0.41], "higher by 0.100 ± 0.025, which is better."),
    ("mse", [0.5, 0.51, 0.5], [0.4, 0.4, 0.41], "higher by 0.1 ± 0.02484, which is worse."),
    ("agreement", [0.9, 0.91], [0.5, 0.51], "higher by 40.0 ± 0.0 points, which is better."),
]  # fmt: skip


@pytest.mark.parametrize(("key", "student", "control", "said"), CASES)
def test_the_verdict_on_several_seeds(
    key: str, student: list[float], control: list[float], said: str
) -> None:
    found = several(key, student, control)
    assert said in report.verdict(found)
    seeds = "1 seed" if len(student) == 1 else f"{len(student)} seeds"
    assert report.verdict(found).startswith(f"Over {seeds}, the distilled student's ")
    assert said.rstrip(".") in report.outcomes(found)
    assert said in " ".join(Page(report.page(found)).text.split())


@pytest.mark.parametrize(
    ("group", "manner"), [("greedy", "greedy"), ("beam", "4 beams")], ids=["greedy", "beam"]
)
@pytest.mark.parametrize("key", ["bleu", "chrf", "rouge1", "rouge2", "rougeL"])
def test_every_metric_of_answers_has_a_verdict(key: str, group: str, manner: str) -> None:
    scale = 1.0 if key in ("bleu", "chrf") else 0.01
    student, control = [scale * v for v in (30.0, 30.4, 29.9)], [scale * v for v in (27.0, 27.3, 27.1)]
    found = several(key, student, control, group=group)
    (line,) = report.outcomes(found).split("\n")
    assert line.split(",")[0] == dict((k, h) for k, h, _ in report.WRITING)[key]
    assert f", {manner}" in line and line.endswith("which is better")
    swapped = several(key, control, student, group=group)
    assert report.outcomes(swapped).endswith("which is worse")
    if key == "bleu":
        assert f"distilled student's BLEU ({manner}) is" in report.verdict(found)
        assert "30.10 ± 0.26, without the teacher 27.13 ± 0.15: higher by 2.97 ± " in report.verdict(found)


def test_every_quality_of_the_tables_has_a_direction() -> None:
    costs = {"parameters", "seconds_per_step", "peak_memory_mb", "tokens_per_second"}
    costs |= {"median_ms", "rows_per_second"}
    derived = {"bleu_share", "perplexity_bound"}
    shown = {key for key, _, _ in (*report.COLUMNS, *report.WRITING)}
    assert shown - costs - derived <= BETTER.keys()


def test_entropy_is_neither_better_nor_worse() -> None:
    found = several("student_entropy", [3.0, 3.1, 3.0], [2.0, 2.1, 2.0])
    (difference,) = found["seeds"]["differences"]
    assert difference["verdict"] == "higher" and difference["name"] == "entropy"
    assert report.outcomes(found).endswith("higher by 1.000 ± 0.000")


@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
def test_a_seed_without_a_finite_number(bad: float | None) -> None:
    """That seed does not count, and the verdict names it; JSON has null in place of NaN."""
    found = several("perplexity", [8.0, bad, 8.1], [10.0, 10.1, 10.0], teacher=6.0)
    metric = found["seeds"]["metrics"]["student"]["eval"]["perplexity"]
    assert metric["n"] == 2 and metric["mean"] == pytest.approx(8.05)
    said = report.verdict(found)
    assert "student's perplexity is 8.05 ± 0.07, without the teacher 10.03 ± 0.06" in said
    assert "(the teacher's is 6.00)" in said
    assert said.endswith("Seed 2 has no finite student's perplexity.")
    assert set(found["seeds"]["differences"][0]["values"]) == {"1", "3"}
    Page(report.page(found))
    nowhere = several("perplexity", [bad, bad], [10.0, 10.1])
    assert report.verdict(nowhere) == "The student's perplexity is not a finite number with any seed."
    Page(report.page(nowhere))


def test_seeds_that_failed_or_are_to_come() -> None:
    reports = {1: {"model": part(perplexity=8.0)}, 2: {"model": part(perplexity=8.2)}}
    found = report.summary(reports, {3: "the run diverged <b>"})
    assert report.verdict(found) == (
        "Over 2 seeds, the model's perplexity is 8.10 ± 0.14. Seed 3 failed and does not count."
    )
    page = Page(report.page(found))
    assert "Seed 3 failed: the run diverged <b>" in page.text
    found["seeds"]["waiting"] = [4, 5]
    assert report.verdict(found).startswith("Not finished: seeds 4 and 5 to come. Over 2 seeds, ")
    nothing = report.summary({}, {3: "diverged", 4: "diverged"})
    assert report.verdict(nothing) == (
        "Failed: no seed's training ended well. Seeds 3 and 4 failed and do not count."
    )
    Page(report.page(nothing))
    assert report.verdict(report.summary({1: {"model": {"steps": 3, "eval": {}}}}, {})) == (
        "Trained with 1 seed; the quality is unknown without held-out data."
    )


def test_the_tables_have_means_and_spreads() -> None:
    found = several("accuracy", [0.9, 0.92, 0.94], [0.8, 0.8, 0.8], teacher=0.95)
    for summary in (found, json.loads(json.dumps(found))):
        lines = report.table(report.rows(report.shown(summary))).split("\n")
        assert "92.0% ± 2.0%" in lines[2] and "80.0% ± 0.0%" in lines[3]
        assert "95.0%" in lines[1] and "±" not in lines[1]  # the same teacher in every run
    assert "±" not in report.table(report.rows(report.shown(several("accuracy", [0.9], [0.8]))))
    assert f"{Measured(0.5, 0.25):.1f} {Measured(0.5, 0.25):.0%}" == "0.5 ± 0.2 50% ± 25%"
    alone = {"student": part(perplexity=8.0)}
    assert report.shown(alone) is alone


def test_the_page_shows_every_seed() -> None:
    found = several("bleu", [30.0, 31.0, 32.0], [20.0, 21.0, 23.0], teacher=35.0, group="greedy")
    found["seeds"]["folders"] = {str(seed): f"out/seed-{seed}" for seed in (1, 2, 3)}
    text = report.page(found)
    page = Page(text)
    assert "Seeds" in page.headings
    labels = [line[0] for table in page.tables for line in table]
    assert {f"{who}, seed {seed}, greedy" for who in ("student", "control") for seed in (1, 2, 3)} <= set(
        labels
    )
    circles = [a for tag, a in page.tags if tag == "circle" and "cy" in a]
    roles = [str(circle["class"]) for circle in circles]
    assert roles == ["student"] * 3 + ["control"] * 3
    heights = [float(str(circle["cy"])) for circle in circles]
    assert heights[0] > heights[1] > heights[2] and heights[2] < heights[3]  # up is more
    level = next(a for tag, a in page.tags if tag == "path" and "level teacher" in str(a["class"]))
    assert float(str(level["d"]).split()[1].split("H")[0]) < min(heights)
    assert "teacher 35.00" in page.text and "student 31.00 ± 1.00" in page.text
    assert "out/seed-2" in page.text


def test_pairs_are_those_that_both_models_have() -> None:
    found = paired({"1": 3.0, "2": 4.0, "3": 9.0}, {"2": 1.0, "1": 2.0, "4": 7.0})
    assert found is not None and found.values == {"1": 1.0, "2": 3.0} and found.mean == 2.0
    assert paired({"1": 3.0}, {"2": 3.0}) is None
    assert spread([3.0]) is None and spread([1.0, 3.0]) == pytest.approx(math.sqrt(2))


def test_a_headline_that_the_reports_name() -> None:
    found = several("rougeL", [0.5, 0.51], [0.4, 0.41], group="greedy")
    for name in ("student", "control"):
        found["seeds"]["metrics"][name]["eval"] = several("perplexity", [8.0, 8.1], [8.0, 8.0])["seeds"][
            "metrics"
        ][name]["eval"]
    assert "perplexity" in report.verdict(found)  # there is no BLEU
    assert "student's ROUGE-L (greedy) is 0.505 ±" in report.verdict({**found, "headline": "rougeL"})
    reports = {seed: {"model": part(perplexity=8.0), "headline": "perplexity", "n": seed} for seed in (1, 2)}
    made = report.summary(reports, {})
    assert made["headline"] == "perplexity" and "n" not in made
    made |= {"headline": "auto", "sequence_level": {"mode": "beam"}}
    assert "not compared with any reference" in report.verdict(made)
