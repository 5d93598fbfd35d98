"""Test the report: its contents, that hostile text in it is harmless, and that it loads no other file."""

from __future__ import annotations

import base64
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate import PartialState
from support.pages import Page
from support.tiny import llama, rows

from fastkd.cli.settings import read_settings
from fastkd.runs import report
from fastkd.runs.report.charts import DRAWN, Chart, Line, downsample, figure
from fastkd.runs.report.curves import charts
from fastkd.runs.report.texts import LONGEST_MISTAKE
from fastkd.runs.train import control_of, train_one
from fastkd.trainer import DistillationConfig

HOSTILE = "</script><script>alert('1')</script>\"><img src=x onerror=alert(2)>&amp;"


def history(count: int, shift: float = 0.0) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for step in range(1, count + 1):
        value = 2 + shift + math.exp(-step / count)
        made.append(
            {
                "step": step, "epoch": step / count, "loss": value, "kd": value / 3, "ce": 1.1 * value,
                "agreement": step / count / 2, "student_entropy": 3.0, "teacher_entropy": 2.5,
                "learning_rate": 1e-3 * (1 - step / count), "grad_norm": 1.0, "hidden_0": value / 5,
            }
        )  # fmt: skip
        if step == count:
            made.append({"step": step, "eval_perplexity": 10 + shift, "eval_agreement": 0.5})
    return [*made, {"step": count, "train_runtime": 75.0, "train_loss": 1.0, "total_flos": 0.0}]


@pytest.fixture
def found(tmp_path: Path) -> dict[str, Any]:
    """A report with every section."""
    args = DistillationConfig(output_dir=str(tmp_path), use_cpu=True, temperature=2.0, run_name=HOSTILE)

    def part(shift: float) -> dict[str, Any]:
        scores = {"perplexity": 10 + shift, "ce": 2.3, "agreement": 0.5123, "kd": 0.2, "student_entropy": 3.3}
        written = {
            "num_beams": 1, "bleu": 30 - shift, "chrf": 50.0, "rouge1": 0.5, "rouge2": 0.25, "rougeL": 0.4,
            "exact_match": 0.1, "mean_length": 7.0, "hit_limit": 0.0, "tokens_per_second": 1234.5,
        }  # fmt: skip
        return {
            "parameters": 12345, "fused_head": True, "steps": 40, "seconds_per_step": 0.25,
            "peak_memory_mb": 512.4, "eval": scores, "history": history(40, shift),
            "greedy": written, "beam": {**written, "num_beams": 4},
            "classes": {
                "f1": {HOSTILE: 0.5, "other": None}, "classes": [HOSTILE, "other"],
                "confusion": [[3, 1], [0, 0]],
            },
        }  # fmt: skip

    return {
        **report.about(args, "distill"),
        "teacher": {"parameters": 99999, "eval": {"perplexity": 8.0, "entropy": 2.5}},
        "student": part(0.0),
        "control": part(1.5),
        "signatures": {"bleu": "tok:13a"},
        "samples": [
            {"row": 3, "source": HOSTILE, "reference": "ok", "answers": {"student": {"greedy": HOSTILE}}}
        ],
        "mistakes": [
            {
                "row": 4,
                "text": HOSTILE * 9,
                "label": HOSTILE,
                "prediction": HOSTILE,
                "probability": 0.93,
                "teacher": HOSTILE,
            }
        ],
    }


SECTIONS = [
    "Results", "Written answers", "Classes", "Curves", "Misclassified texts", "Sample answers",
    "Time and memory",
    "Settings that differ from the defaults", "Versions and machine", "Repeat this run",
]  # fmt: skip


def test_the_page_has_every_section_and_loads_nothing(found: dict[str, Any]) -> None:
    text = report.page(found)
    page = Page(text)
    assert page.headings == SECTIONS
    for tag, attributes in page.tags:
        assert tag not in ("img", "link", "iframe", "object", "embed", "base", "form")
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            assert str(attributes.get(name, "data:")).startswith("data:")
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", text)
    assert [tag for tag, _ in page.tags].count("script") == 1
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy is not None and policy.startswith("default-src 'none'")


def test_hostile_text_stays_text(found: dict[str, Any]) -> None:
    text = report.page(found)
    assert "<script>alert" not in text and "<img" not in text
    page = Page(text)
    assert page.text.count(HOSTILE) >= 4  # setting, class, source, answer; all unchanged
    shown = next(cell for table in page.tables for line in table for cell in line if HOSTILE * 2 in cell)
    assert shown == f"{HOSTILE * 9}"[:LONGEST_MISTAKE] + " ..."
    bare = Page(report.page({**found, "command": HOSTILE, "repeat": HOSTILE, "versions": {HOSTILE: HOSTILE}}))
    assert bare.headings == SECTIONS
    named = dict(found["student"]["history"][0])
    named[HOSTILE] = 1.0
    found["student"]["history"].insert(1, {**named, "step": 1.5})
    assert f"Matching loss: {HOSTILE}" in Page(report.page(found)).text


def test_the_tables_match_the_json(found: dict[str, Any]) -> None:
    page = Page(report.page(found))
    for drawn, table, columns in (
        (page.tables[0], report.rows(found), report.COLUMNS),
        (page.tables[1], report.writing_rows(found), report.WRITING),
    ):
        headings = {heading: (key, form) for key, heading, form in columns}
        head, *body = drawn
        assert [line[0] for line in body] == list(table) and len(head) > 8
        for name, *cells in body:
            for heading, cell in zip(head[1:], cells, strict=True):
                key, form = headings[heading]
                value = table[name].get(key)
                assert cell == ("-" if value is None else form.format(value))
        terminal = report.table(table, columns)
        assert [line.split()[-1] for line in terminal.split("\n")] == [line[-1].split()[-1] for line in drawn]
    assert page.tables[0][1][:2] == ["teacher", "8.00"] and "control, 4 beams" in str(page.tables[1])


@pytest.mark.parametrize("count", [1, 3, 30_000])
def test_the_page_stays_small_for_a_run_of_any_length(found: dict[str, Any], count: int) -> None:
    for name, shift in (("student", 0.0), ("control", 1.0)):
        found[name]["history"] = history(count, shift)
    text = report.page(found)
    assert len(text) < 300_000
    page = Page(text)
    lines = [a for tag, a in page.tags if tag == "polyline"]
    assert len(lines) >= 14
    assert all(len(str(line["points"]).split()) <= DRAWN for line in lines)
    # One figure has both models, the teacher's level and a legend.
    assert text.count("<figure") >= 9 and "without teacher" in page.text


def test_the_points_of_a_line_are_the_values(found: dict[str, Any]) -> None:
    text = report.page(found)
    first = next(a for tag, a in Page(text).tags if tag == "polyline" and "student" in str(a["class"]))
    assert str(first["data-points"]) == "40,10"
    losses = next(a for tag, a in Page(text).tags if tag == "polyline" and "1,2.97" in str(a["data-points"]))
    pairs = [tuple(map(float, pair.split(","))) for pair in str(losses["data-points"]).split()]
    expected = [(e["step"], e["loss"]) for e in found["student"]["history"] if "loss" in e]
    assert pairs == [(step, pytest.approx(loss, rel=1e-4)) for step, loss in expected]


def test_downsampling_keeps_means_and_spikes() -> None:
    points = [(float(i), float(i % 7)) for i in range(20_000)]
    points[12_345] = (12_345.0, 99.0)
    drawn = downsample(points)
    assert len(drawn.points) == len(drawn.band) == DRAWN
    assert drawn.points[-1][0] == points[-1][0]
    mean = sum(y for _, y in points) / len(points)
    assert sum(y for _, y in drawn.points) / DRAWN == pytest.approx(mean)
    assert [high for _, _, high in drawn.band].count(99.0) == 1
    assert downsample(points[:DRAWN]).points == points[:DRAWN]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_no_numbers_are_left_out(bad: float) -> None:
    chart = Chart("x", "y", [Line("a", "student", [(1, bad), (2, 5.0), (3, bad), (4, 6.0)])])
    drawn = figure(chart)
    assert 'data-points="2,5 4,6"' in drawn and "nan" not in drawn and "inf" not in drawn
    assert figure(Chart("x", "y", [Line("a", "student", [(1, bad)])])) == ""


def test_flat_lines_and_wide_ranges_have_ticks() -> None:
    for values in ([3.0, 3.0], [0.0, 0.0], [1e-7, 2e-7], [2.0, 2e6], [-4.0, 4.0]):
        points = [(float(i), value) for i, value in enumerate(values)]
        drawn = figure(Chart("x", "y", [Line("a", "student", points)], may_be_log=True))
        assert drawn.count('class="grid"') >= 2, values
        places = re.findall(r'points="([\d., -]+)"/', drawn)[0]
        assert all(0 <= float(p.split(",")[1]) <= 208 for p in places.split())


def test_the_configuration_can_be_saved_and_run_again(tmp_path: Path) -> None:
    args = DistillationConfig(
        output_dir=str(tmp_path / "out"), use_cpu=True, temperature=3.0, learning_rate=3e-4, beta=0.2,
        divergence="jsd", class_names=["a: b", "no"], column_mapping={"text": "böse"}, eval_steps=7,
        eval_strategy="steps", hub_token="hf_secret", logging_steps=3, warmup_steps=5,
    )  # fmt: skip
    found = {**report.about(args, "distill"), "student": {"steps": 1, "eval": {}}}
    report.write(tmp_path / "out", found)
    for name in ("report.json", "report.html", "config.yaml"):
        assert "hf_secret" not in (tmp_path / "out" / name).read_text("utf-8")
    again = read_settings([str(tmp_path / "out" / "config.yaml")])
    assert report.settings(again) == report.settings(args) == found["settings"]
    link = re.search(r'href="data:text/yaml;base64,([^"]+)"', (tmp_path / "out" / "report.html").read_text())
    assert link is not None
    saved = base64.b64decode(link.group(1)).decode()
    assert saved == (tmp_path / "out" / "config.yaml").read_text("utf-8")
    assert yaml.safe_load(saved)["temperature"] == 3.0 and "dataset" not in yaml.safe_load(saved)
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_settings_do_not_start_a_process_group(tmp_path: Path) -> None:
    """Writing the settings must not create a second configuration. That would set up the process group again,
    and each process would then train separately."""
    args = DistillationConfig(output_dir=str(tmp_path), use_cpu=True, temperature=2.0)
    before = dict(PartialState._shared_state)
    assert {"output_dir", "use_cpu", "temperature"} <= set(report.settings(args))
    assert PartialState._shared_state == before and before["_cpu"]
    assert report.untouched(DistillationConfig) == DistillationConfig().to_dict()


def test_the_command_to_repeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = DistillationConfig(output_dir=str(tmp_path), use_cpu=True)
    monkeypatch.setattr(sys, "argv", ["x"])
    assert report.about(args, "distill")["repeat"] == f"fastkd distill {tmp_path}/config.yaml"
    typed = ["fastkd", "distill", "my file.yaml", "--hub-token", "hf_secret", "--push_to_hub_token=hf_x"]
    monkeypatch.setattr(sys, "argv", typed)
    repeat = report.about(args, "distill")["repeat"]
    assert repeat == "fastkd distill 'my file.yaml' --hub-token ... --push_to_hub_token=..."
    monkeypatch.setattr(DistillationConfig, "world_size", 4)
    repeat = report.about(args, "distill")["repeat"]
    assert repeat.startswith("torchrun --nproc_per_node 4 -m fastkd.cli distill 'my file.yaml'")


def entry(perplexity: float | None = None, accuracy: float | None = None, texts: int = 0) -> dict[str, Any]:
    scores = {"perplexity": perplexity, "accuracy": accuracy}
    made: dict[str, Any] = {"steps": 7, "eval": {k: v for k, v in scores.items() if v is not None}}
    return (
        {**made, "classes": {"confusion": [[texts]], "classes": ["a"], "f1": {"a": 1.0}}} if texts else made
    )


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"student": entry(8.0), "control": entry(10.0), "teacher": entry(6.0)},
         "perplexity is 20% lower than without the teacher: 8.00 against 10.00 (the teacher's is 6.00)"),
        ({"student": entry(11.0), "control": entry(10.0)}, "10% higher than without the teacher"),
        ({"student": entry(10.01), "control": entry(10.0)}, "is within 0.5% of that of the same student"),
        ({"student": entry(8.0), "teacher": entry(6.0)}, "The student's perplexity on held-out data is 8.00"),
        ({"model": entry(8.0)}, "The model's perplexity on held-out data is 8.00."),
        ({"model": entry()}, "Trained for 7 steps; its quality is unknown"),
        ({"student": entry(accuracy=0.9), "control": entry(accuracy=0.8)}, "10.0 points more of"),
        ({"student": entry(accuracy=0.7), "control": entry(accuracy=0.8)}, "10.0 points fewer"),
        ({"student": entry(accuracy=0.8, texts=50), "control": entry(accuracy=0.82, texts=50)},
         "the difference is within chance for 50 texts"),
        ({"model": entry(accuracy=0.5)}, "The model gets 50.0% of the held-out texts right."),
        ({}, "nothing to report yet"),
    ],
)  # fmt: skip
def test_the_verdict(parts: dict[str, Any], said: str) -> None:
    assert said in report.verdict(parts)
    assert said in " ".join(Page(report.page(parts)).text.split())


def test_the_verdict_on_answers(found: dict[str, Any]) -> None:
    said = "Decoding with 4 beams, the student reaches BLEU 30.0 (greedily 30.0); without the teacher it is"
    one_run = "One run cannot tell whether another seed would say the same: --seeds repeats it."
    assert report.verdict(found) == f"{said} 28.5. {one_run}"


def test_a_run_leaves_a_report_while_it_runs(tmp_path: Path) -> None:
    """A stopped run has a report with its curves so far; a finished one has all curves, the control's too."""
    args = DistillationConfig(
        output_dir=str(tmp_path), use_cpu=True, max_steps=6, eval_strategy="steps", eval_steps=2,
        logging_steps=1, save_steps=2, disable_tqdm=True, per_device_train_batch_size=2,
    )  # fmt: skip
    found = report.about(args, "distill")

    class Stop(Exception):
        pass

    class Stopper(report.Live):
        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            super().on_evaluate(args, state, control)
            if state.global_step == 4 and self.name == "student":
                raise Stop

    def one(args: Any, name: str, watch: Any) -> Any:
        data = rows(8), rows(4, seed=1)
        return train_one(args, name, llama(1), llama(2), *data, None, [watch(tmp_path, found, name)])[0]

    with pytest.raises(Stop):
        one(args, "student", Stopper)
    saved = json.loads((tmp_path / "report.json").read_text())
    assert [e["step"] for e in saved["student"]["history"] if "loss" in e] == [1, 2, 3, 4]
    assert report.verdict(saved) == "Not finished: the student is at step 4 of 6."
    assert "Not finished" in (tmp_path / "report.html").read_text() and "student" not in found

    args.resume_from_checkpoint = "true"  # from step 2; the run stopped before it saved step 4
    found["student"] = one(args, "student", report.Live)
    assert [e["step"] for e in found["student"]["history"] if "loss" in e] == [1, 2, 3, 4, 5, 6]
    found["control"] = one(control_of(args), "control", report.Live)
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["unfinished"] == {"title": "control", "step": 4, "of": 6}
    found["teacher"] = report.teacher_part(found["student"]["eval"], 5)
    path = report.write(tmp_path, found)
    assert json.loads(path.read_text())["student"]["steps"] == 6
    assert report.rows(found)["teacher"]["perplexity"] == found["student"]["eval"]["teacher_perplexity"]
    titles = {chart.title: [line.label for line in chart.lines] for chart in charts(found)}
    both = ["student", "without teacher"]
    assert titles["Held-out perplexity"] == titles["Divergence from the teacher"] == both
    assert titles["Entropy of the predictions"] == [*both, "teacher"]
    assert titles["Learning rate"] == ["student"]
    assert "unfinished" not in json.loads(path.read_text())
