"""Test the page of results, from reports whose numbers are known."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("matplotlib")
pytest.importorskip("transformers")

from bench.tasks.__main__ import main
from bench.tasks.description import read
from bench.tasks.measured import Measured, measured
from bench.tasks.records import gathered

ACCURACIES = (0.80, 0.82, 0.81)


def part(accuracy: float, parameters: int = 1000) -> dict[str, Any]:
    return {
        "eval": {"accuracy": accuracy, "macro_f1": accuracy - 0.01},
        "latency": {"rows_per_second": 1234.5},
        "parameters": parameters,
        "steps": 60,
        "seconds_per_step": 2.0,
        "peak_memory_mb": 1234.0,
        "history": [{"step": 1, "text": "a line of the training data"}],
    }


def write_report(folder: Path, **parts: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    head = {
        "repeat": f"fastkd distill {folder.name}.yaml",
        "machine": {"device": "cpu", "threads": 2},
        "versions": {"fastkd": "0.1.0"},
    }
    (folder / "report.json").write_text(json.dumps({**head, **parts}))


def over_rows(run: str) -> dict[str, Any]:
    return {"metric": "eval.accuracy", "over": "rows", "curves": [{"title": "t", "runs": [run]}]}


def description(**changes: Any) -> dict[str, Any]:
    runs = [
        {"name": "teacher", "title": "Teacher", "report": "out/all", "model": "teacher"},
        {"name": "control", "title": "Control", "report": "out/all", "model": "control"},
        {"name": "kd-all", "title": "Distilled", "report": "out/all", "model": "student", "rows": 6920},
        {
            "name": "kd-few",
            "title": "Distilled, few labels",
            "report": "out/few",
            "model": "student",
            "rows": 50,
        },
    ]
    return {
        "title": "Sentiment",
        "data": "Sentences of films (Someone 2013). " + "The licence allows research. " * 5,
        "metrics": ["eval.accuracy", "eval.macro_f1"],
        "runs": runs,
        "picture": {
            "metric": "eval.accuracy",
            "over": "rows",
            "curves": [{"title": "distilled", "runs": ["kd-few", "kd-all"]}],
            "lines": ["teacher", "control"],
        },
        "notes": "The control falls short because it is small.",
        **changes,
    }


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A task of which one run has three seeds, and one run is missing."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "examples" / "sentiment"
    folder.mkdir(parents=True)
    (folder / "example.yaml").write_text(yaml.safe_dump(description()))
    for seed, accuracy in enumerate(ACCURACIES):
        models = {"teacher": part(0.9 + 1e-9 * seed, 9000), "student": part(accuracy), "control": part(0.75)}
        write_report(folder / "out/all" / f"seed-{seed}", **models)
    write_report(folder / "out/all", student=part(0.1))  # the summary, which is not read beside the seeds
    return folder.parent


def runs_of(examples: Path, name: str = "sentiment") -> list[Measured]:
    task = read(examples / name / "example.yaml")
    return measured(task, gathered(task, Path("records")))


def lines_of(page: str) -> dict[str, list[str]]:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if "|" in line
    ]
    return {row[0]: row[1:] for row in rows}


def test_means_and_spreads_over_the_seeds(examples: Path) -> None:
    assert main(["examples", "--out", "docs"]) == 0
    page = Path("docs/results.md").read_text()
    rows = lines_of(page)
    mean, spread = statistics.fmean(ACCURACIES), statistics.stdev(ACCURACIES)
    assert rows["run"] == [
        "accuracy",
        "macro-F1",
        "seeds",
        "parameters",
        "texts/s",
        "training, minutes",
        "memory, MB",
    ]
    assert rows["Distilled"][0] == f"{mean:.1%} ± {spread:.1%}" == "81.0% ± 1.0%"
    assert rows["Distilled"][1:3] == ["0.800 ± 0.010", "3"]
    assert rows["Distilled"][3] == "1,000" and rows["Distilled"][5:] == ["2.0", "1,234"]
    assert rows["Teacher"][0] == "90.0%" and rows["Teacher"][3] == "9,000"  # equal but for the last digits
    assert rows["Distilled, few labels"][0] == "missing"
    assert (
        "Missing, because no finished report was found: Distilled, few labels (`sentiment/out/few`)." in page
    )
    for text in ("Sentences of films (Someone 2013).", "cd examples/sentiment\nSEEDS=3 bash run.sh",
                 "threads 2", "fastkd distill all.yaml", "falls short because",
                 "(results-sentiment.png)"):  # fmt: skip
        assert text in page


def test_the_page_and_its_pictures_are_equal_each_time(examples: Path) -> None:
    for out in ("one", "two"):
        assert main(["examples", "--out", out]) == 0
    for name in ("results-sentiment.png", "results.md"):
        first, second = (Path(out, name).read_bytes() for out in ("one", "two"))
        assert first.replace(b"--out one", b"--out two") == second
    assert Path("one/results-sentiment.png").stat().st_size > 5000


def test_a_picture_needs_a_point(examples: Path) -> None:
    given = description()
    given["picture"]["curves"] = [{"title": "distilled", "runs": ["kd-few"]}]
    (examples / "sentiment/example.yaml").write_text(yaml.safe_dump(given))
    assert main(["examples", "--out", "docs"]) == 0
    assert not list(Path("docs").glob("*.png")) and "![" not in Path("docs/results.md").read_text()


def test_a_task_without_any_report_says_so(examples: Path) -> None:
    shutil.rmtree(examples / "sentiment/out")
    assert main(["examples", "--out", "docs"]) == 0
    page = Path("docs/results.md").read_text()
    notes = "The control falls short because it is small."
    assert f"Not run yet.\n\n{notes}\n\n```sh\ncd examples/sentiment\nSEEDS=3 bash run.sh" in page
    assert "| run |" not in page


def test_runs_that_have_not_ended_are_missing(examples: Path) -> None:
    for change in ({"unfinished": {"step": 1}}, {"failed": {"reason": "nan"}}, {"student": None}):
        write_report(examples / "sentiment/out/few", **{"student": part(0.5), **change})
        few = runs_of(examples)[-1]
        assert few.reports == []
    write_report(examples / "sentiment/out/few", student={**part(0.5), "eval": {"accuracy": float("nan")}})
    few = runs_of(examples)[-1]
    assert few.value("eval.accuracy") is None and few.value("parameters") is not None


def test_answers_over_sizes(examples: Path) -> None:
    """A task of writing has scores for each way of decoding, and tokens per second; tasks are ordered."""
    folder = examples / "translation"
    written = {"bleu": 24.5, "tokens_per_second": 321.0}
    for name, size in (("small", 100_000), ("large", 1_000_000)):
        write_report(folder / "out" / name, student={**part(0.5, size), "greedy": written, "beam": written})
    given = description(title="Translation", order=-1, metrics=["greedy.bleu", "beam.bleu"])
    given["runs"] = [
        {"name": n, "title": n, "report": f"out/{n}", "model": "student"} for n in ("small", "large")
    ]
    given["picture"] = {
        "metric": "greedy.bleu",
        "over": "parameters",
        "curves": [{"title": "a", "runs": ["large", "small"]}],
    }
    (folder / "example.yaml").write_text(yaml.safe_dump(given))
    assert main(["examples", "--out", "docs"]) == 0
    page = Path("docs/results.md").read_text()
    assert page.index("## Translation") < page.index("## Sentiment")
    assert (
        "| run | BLEU, greedy | BLEU, beam | seeds | parameters | tokens/s | training, minutes | memory, MB |"
        in page
    )
    assert lines_of(page)["small"] == ["24.50", "24.50", "1", "100,000", "321", "2.0", "1,234"]


def test_the_page_needs_no_output_once_it_was_written(examples: Path) -> None:
    """The numbers are kept, and nothing else: the page can be written where the runs were not made."""
    assert main(["examples", "--out", "docs"]) == 0
    page = Path("docs/results.md").read_text()
    kept = Path("bench/results/tasks/sentiment.json")
    assert "training data" not in kept.read_text() and str(examples) not in kept.read_text()
    shutil.rmtree(examples / "sentiment/out")
    assert main(["examples", "--out", "docs"]) == 0
    assert Path("docs/results.md").read_text() == page

    # A run that is there again replaces what was kept of it, and the others stay.
    write_report(examples / "sentiment/out/few", student=part(0.5))
    assert main(["examples", "--out", "docs"]) == 0
    rows = lines_of(Path("docs/results.md").read_text())
    assert rows["Distilled, few labels"][0] == "50.0%" and rows["Distilled"][0] == "81.0% ± 1.0%"


def test_memory_beside_its_estimate(examples: Path) -> None:
    """The estimate is that of the run, so it stands beside the student and not beside its control."""
    estimates = examples / "sentiment/out/estimates"
    estimates.mkdir()
    step = {"peak_bytes": 3 * 2**20}
    for name, tried in (("all", 2000 * 2**20), ("few", None)):
        found = {"tried_bytes": tried, "step": step, "process_bytes": 2**20, "seconds_per_step": [1.0, 2.0]}
        (estimates / f"{name}.json").write_text(json.dumps(found))
    write_report(examples / "sentiment/out/few", student=part(0.5))
    assert main(["examples", "--out", "docs"]) == 0
    rows = lines_of(Path("docs/results.md").read_text())
    assert rows["Distilled"][-1] == "1,234 (2,000)" and rows["Control"][-1] == "1,234"
    assert rows["Distilled, few labels"][-1] == "1,234 (4)"


def test_curves_side_by_side(examples: Path) -> None:
    """Runs of one size stand side by side, with a second metric beside the first."""
    both = {"metric": "eval.accuracy", "beside": "eval.macro_f1", "over": "runs"}
    curves = [{"title": name, "runs": [name]} for name in ("control", "kd-all", "kd-few")]
    task = description(picture={**both, "curves": curves})
    (examples / "sentiment/example.yaml").write_text(yaml.safe_dump(task))
    assert main(["examples", "--out", "docs"]) == 0
    whole = Path("docs/results-sentiment.png").read_bytes()
    task["picture"].pop("beside")
    (examples / "sentiment/example.yaml").write_text(yaml.safe_dump(task))
    assert main(["examples", "--out", "docs"]) == 0
    assert len(whole) > 5_000 and Path("docs/results-sentiment.png").read_bytes() != whole


def test_caches_are_named_with_their_size(examples: Path) -> None:
    held = {"entries_per_token": 23.0, "mass": {"1": {"mean": 0.576, "p5": 0.2}}}
    made = {"kind": "topk", "bytes_per_token": 93.27, "notes": {"held": held}}
    folder = examples / "sentiment/out/topk/train"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(made))
    report = {"student": part(0.5), "configuration": {"teacher": "cache:out/topk"}}
    write_report(examples / "sentiment/out/few", **report)
    for _ in range(2):  # the second time from what was kept of the run
        assert main(["examples", "--out", "docs"]) == 0
        said = " ".join(Path("docs/results.md").read_text().split())
        assert (
            "Caches: `out/topk` (topk): 93.3 bytes per token, 23.0 entries that hold 57.6% of the "
            "probability."
        ) in said
        shutil.rmtree(examples / "sentiment/out", ignore_errors=True)


def claim(**changes: Any) -> dict[str, Any]:
    return {"title": "it is better", "run": "kd-all", "metric": "eval.accuracy", "against": "control",
            **changes}  # fmt: skip


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (claim(), "Holds**: it is better. 81.0% ± 1.0% against 75.0%, 6.0 points better "
         "(needed: more than the spread, 1.0 points)."),
        (claim(run="control", against="kd-all", note="It has no teacher."),
         "Does not hold**: it is better. 75.0% against 81.0% ± 1.0%, 6.0 points worse "
         "(needed: more than the spread, 1.0 points). It has no teacher."),
        (claim(against="teacher", at_least=-0.1),
         "Holds**: it is better. 81.0% ± 1.0% against 90.0%, 9.0 points worse "
         "(needed: at most 10.0 points worse)."),
        (claim(lower=True), "Does not hold**: it is better. 81.0% ± 1.0% against 75.0%, 6.0 points worse"),
        (claim(against_metric="eval.macro_f1"),
         "Holds**: it is better. 81.0% ± 1.0% against 74.0%, 7.0 points better"),
        (claim(towards="teacher", at_least=0.5),
         "Does not hold**: it is better. 81.0% ± 1.0% against 75.0%, on the way to 90.0%: 40% of it "
         "(needed: at least 50%)."),
        (claim(towards="teacher", at_least=0.3), "Holds**"),
        (claim(against="kd-few"), "Not measured**: it is better."),
        (claim(run="one", against="other"), "Not decided**: it is better. 60.0% against 50.0%, 10.0 points "
         "better; one run of each has no spread."),
        (claim(towards="control", against="teacher", at_least=0.5), "Not measured**: it is better."),
    ],
)  # fmt: skip
def test_claims_are_checked(examples: Path, given: dict[str, Any], said: str) -> None:
    task = description(claims=[given])
    for name, accuracy in (("one", 0.6), ("other", 0.5)):
        write_report(examples / "sentiment/out" / name, student=part(accuracy))
        task["runs"].append({"name": name, "title": name, "report": f"out/{name}", "model": "student"})
    (examples / "sentiment/example.yaml").write_text(yaml.safe_dump(task))
    assert main(["examples", "--out", "docs"]) == 0
    assert f"- **{said}" in " ".join(Path("docs/results.md").read_text().split())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"claims": [claim(run="kd-al")]}, "claims[0]: unknown name 'kd-al'; did you mean 'kd-all'?"),
        ({"claims": [claim(towards="teacher")]}, "claims[0]: a share needs at_least"),
        ({"titel": "x"}, "unknown field 'titel'; did you mean 'title'?"),
        ({"runs": [{"name": "a", "title": "a", "report": "out"}]}, "runs[0]: the field 'model' is missing"),
        ({"picture": over_rows("kd-al")},
         "a run of the picture: unknown name 'kd-al'; did you mean 'kd-all'?"),
        ({"picture": over_rows("control")},
         "the run control is drawn over its labelled rows: give it rows"),
        ({"runs": "out"}, "expected a list, not 'out'"),
    ],
)  # fmt: skip
def test_a_description_that_cannot_be_read_is_refused(
    examples: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], message: str
) -> None:
    (examples / "sentiment/example.yaml").write_text(yaml.safe_dump(description(**change)))
    assert main(["examples"]) == 1
    assert message in capsys.readouterr().err


def test_a_folder_without_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert "has no folder with an example.yaml" in capsys.readouterr().err


ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*/example.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.parent.name)
def test_the_examples_are_described(path: Path) -> None:
    task = read(path)
    assert task.runs and task.picture is not None


def test_the_page_is_that_of_the_numbers_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No number of ``docs/results.md`` is typed: it is what the command writes from the committed records."""
    shutil.copytree(ROOT / "bench/results/tasks", tmp_path / "bench/results/tasks")
    for path in EXAMPLES:
        (copy := tmp_path / "examples" / path.parent.name).mkdir(parents=True)
        shutil.copy(path, copy)
    monkeypatch.chdir(tmp_path)
    assert main(["examples", "--out", "docs"]) == 0
    made = Path("docs")
    assert (made / "results.md").read_text() == (ROOT / "docs/results.md").read_text()
    assert all((ROOT / "docs" / picture.name).is_file() for picture in made.glob("*.png"))
