"""Test fastkd generate for classifiers: the teacher's labels as a data set, and runs on unlabelled files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from support.doctor import tokenizer
from support.families import bert
from support.stored import Crash, crash_at, files
from torch import nn
from transformers import AutoModelForSequenceClassification

from fastkd.cli import main
from fastkd.corpora.rows import load_rows
from fastkd.corpora.store import Manifest, open_generated
from fastkd.runs.doctor import examine
from fastkd.runs.pseudo_labels import label_rows, settled
from fastkd.trainer import DistillationConfig

NAMES = ["neg", "mid", "pos"]
MULTI_LABEL, REGRESSION = "multi_label_classification", "regression"


def save(folder: str, seed: int, names: list[str] | None, problem: str | None = None) -> None:
    made = bert(seed, layers=1)
    if problem == REGRESSION:
        made.classifier = nn.Linear(16, 1)
        made.config.id2label = {0: "LABEL_0"}
    elif names is not None:
        made.config.id2label = dict(enumerate(names))
        made.config.label2id = {name: i for i, name in enumerate(names)}
    made.config.problem_type = problem
    made.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save("student", 0, NAMES)
    save("teacher", 1, NAMES)


def rows(labels: list[Any]) -> list[dict[str, Any]]:
    """Texts of one to four words; a label of ... is no label at all."""
    return [
        {"text": " ".join(f"w{(i * 7 + j) % 45}" for j in range(1 + i % 4)), "tag": i}
        | ({} if label is ... else {"label": label})
        for i, label in enumerate(labels)
    ]


def write(name: str, labels: list[Any]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows(labels)))


SETTINGS = {
    "task": "classification", "model": "student", "teacher": "teacher", "train_file": "data.jsonl",
    "output_dir": "out", "max_steps": 3, "per_device_train_batch_size": 4, "use_cpu": True,
    "disable_tqdm": True, "report_to": "none", "save_strategy": "no",
}  # fmt: skip


def run(command: str, **fields: Any) -> int:
    chosen = {name: value for name, value in {**SETTINGS, **fields}.items() if value is not None}
    Path("run.yaml").write_text(yaml.safe_dump(chosen))
    return main([command, "run.yaml"])


def logits(folder: str, texts: list[str]) -> torch.Tensor:
    """The logits of each text, in a batch of its own."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    words = tokenizer()
    with torch.no_grad():
        made = [model(torch.tensor([words(text)["input_ids"]])).logits for text in texts]
    return torch.cat(made).double()


def test_own_labels_are_kept_and_the_teacher_gives_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    write("data.jsonl", ["neg", None, "POS", None, None, "", "mid", None, None, None])
    assert run("generate", output_dir="labels") == 0
    assert "7 labelled by the teacher; 3 with their own label, of which" in capsys.readouterr().out
    made = open_generated("train_file", Path("labels"))
    texts = [row["text"] for row in rows([...] * 10)]
    said = logits("teacher", texts)
    best = [NAMES[i] for i in said.argmax(-1)]
    own = {0: "neg", 2: "pos", 6: "mid"}
    assert made["label"][:] == [own.get(i, best[i]) for i in range(10)]
    assert made["reference"][:] == [own.get(i) for i in range(10)]
    assert made["tag"][:] == list(range(10))
    found = torch.tensor(made["teacher_probabilities"][:]).double()
    torch.testing.assert_close(found, said.softmax(-1), rtol=1e-4, atol=1e-6)
    notes = Manifest.read(Path("labels")).notes
    assert notes["agreed"] == sum(best[i] == name for i, name in own.items())
    # The set is training data as it is, for a student with a teacher and for one without.
    assert run("train", teacher=None, train_file="labels", output_dir="trained") == 0
    assert run("distill", train_file="labels") == 0
    assert "nobody reads" not in capsys.readouterr().err.replace("columns tag", "").replace("column tag", "")


def test_a_column_of_labels_is_not_needed() -> None:
    """The student numbers the classes in another order, which is the run's."""
    save("student", 0, NAMES[::-1])
    write("data.jsonl", [...] * 6)
    assert run("generate", output_dir="labels") == 0
    made = open_generated("train_file", Path("labels"))
    said = logits("teacher", [row["text"] for row in rows([...] * 6)])
    assert made["label"][:] == [NAMES[i] for i in said.argmax(-1)]
    assert "reference" not in made.column_names
    assert Manifest.read(Path("labels")).made_from["class_names"] == NAMES[::-1]
    found = torch.tensor(made["teacher_probabilities"][:]).double()
    torch.testing.assert_close(found, said.softmax(-1).flip(-1), rtol=1e-4, atol=1e-6)


def test_classes_without_names_are_numbers() -> None:
    for side, seed in (("student", 0), ("teacher", 1)):
        save(side, seed, None)
    write("data.jsonl", [2, None, None, 0])
    assert run("generate", output_dir="labels") == 0
    said = logits("teacher", [row["text"] for row in rows([...] * 4)]).argmax(-1).tolist()
    assert open_generated("train_file", Path("labels"))["label"][:] == [2, said[1], said[2], 0]


def test_unlikely_labels_are_left_empty() -> None:
    write("data.jsonl", ["neg", *[None] * 19])
    assert run("generate", output_dir="labels", min_probability=0.6) == 0
    made = open_generated("train_file", Path("labels"))
    sure = [max(found) >= 0.6 for found in made["teacher_probabilities"][:]]
    assert 0 < sum(sure) < 20
    assert [label is not None for label in made["label"][:]] == [True, *sure[1:]]
    assert run("train", teacher=None, train_file="labels", output_dir="trained") == 0


def test_samples_are_drawn_at_the_temperature() -> None:
    write("data.jsonl", [...] * 40)
    found = {}
    for name, fields in (
        ("best", {}),
        ("cold", {"generation_mode": "sample", "sampling_temperature": 1e-4}),
        ("warm", {"generation_mode": "sample"}),
        ("again", {"generation_mode": "sample"}),
        ("other", {"generation_mode": "sample", "seed": 7}),
    ):
        assert run("generate", output_dir=name, **fields) == 0
        found[name] = open_generated("train_file", Path(name))["label"][:]
    assert found["cold"] == found["best"] != found["warm"]
    assert found["again"] == found["warm"] != found["other"]


def test_several_labels_and_numbers() -> None:
    texts = [row["text"] for row in rows([...] * 6)]
    for side, seed in (("student", 0), ("teacher", 1)):
        save(side, seed, NAMES, MULTI_LABEL)
    write("data.jsonl", [["neg", "pos"], None, [], None, None, None])
    assert run("generate", output_dir="labels") == 0
    made = open_generated("train_file", Path("labels"))
    said = logits("teacher", texts)
    best = [[name for name, z in zip(NAMES, row, strict=True) if z > 0] for row in said.tolist()]
    assert made["label"][:] == [["neg", "pos"], best[1], [], *best[3:]]
    found = torch.tensor(made["teacher_probabilities"][:]).double()
    torch.testing.assert_close(found, said.sigmoid(), rtol=1e-4, atol=1e-6)
    assert run("distill", train_file="labels") == 0
    for side, seed in (("student", 0), ("teacher", 1)):
        save(side, seed, None, REGRESSION)
    write("data.jsonl", [0.5, None, None, 2.0, None, None])
    assert run("generate", output_dir="numbers") == 0
    made = open_generated("train_file", Path("numbers"))
    said = logits("teacher", texts)[:, 0].tolist()
    assert made["label"][:] == pytest.approx([0.5, *said[1:3], 2.0, *said[4:]], rel=1e-4)
    assert [x for (x,) in made["teacher_prediction"][:]] == pytest.approx(said, rel=1e-4)
    assert run("distill", train_file="numbers", output_dir="regressed") == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"generation_mode": "interpolate"}, "interpolate chooses among answers of text"),
        ({"teacher": None}, "teacher is not set"),
        ({"min_probability": 2.0}, "min_probability must be from 0 to 1"),
    ],
)
def test_settings_that_label_nothing(
    capsys: pytest.CaptureFixture[str], fields: dict[str, Any], message: str
) -> None:
    write("data.jsonl", [...] * 4)
    assert run("generate", **fields) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["beam", "sample"])
def test_resumes_after_a_crash_at_any_write(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write("data.jsonl", ["neg", *[None] * 19])
    args = DistillationConfig(**{**SETTINGS, "generation_mode": mode})
    raw = load_rows("train_file", args)
    args = settled(args, raw)

    def label(folder: Path) -> None:
        teacher = AutoModelForSequenceClassification.from_pretrained("teacher")
        assert isinstance(raw, Dataset)
        label_rows(teacher, tokenizer(), raw, folder, args, shard_rows=6)

    label(Path("whole"))
    expected, moment, crashed = files(Path("whole")), 2, 0
    while True:
        folder = Path(f"at{moment}")
        try:
            with crash_at(moment, monkeypatch):
                label(folder)
            break
        except Crash:
            crashed += 1
        label(folder)
        assert files(folder) == expected
        shutil.rmtree(folder)
        moment += 9
    assert crashed >= 4


def findings(**fields: Any) -> dict[str, Any]:
    return {f.name: f for f in examine(DistillationConfig(**{**SETTINGS, **fields}), fast=True)}


def report(name: str = "out/report.json") -> Any:
    return json.loads(Path(name).read_text())


@pytest.mark.parametrize("kind", ["absent", "null", "empty cells", "in one of two files"])
def test_ways_to_have_no_label(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The student learns from all texts, with the default kd_ratio; a control from those with a label."""
    own, given = ["neg", "mid", "pos", "neg"], "data.jsonl"
    write("data.jsonl", [...] * 12 if kind == "absent" else [*own, *[None] * 8])
    if kind == "empty cells":
        given = "data.csv"
        lines = [f"{row['text']},{row['label'] or ''}" for row in rows([*own, *[None] * 8])]
        Path(given).write_text("\n".join(["text,label", *lines]))
    elif kind == "in one of two files":
        write("data.jsonl", own)
        write("more.jsonl", [...] * 8)
        given = ["data.jsonl", "more.jsonl"]  # type: ignore[assignment]
    control = kind != "absent"
    found = findings(train_file=given, control=control)
    assert "error" not in {finding.severity for finding in found.values()}
    missing = 12 if kind == "absent" else 8
    assert f"{missing} of 12 rows" in found["unlabelled"].found
    assert run("distill", train_file=given, control=control) == 0
    assert report()["student"]["steps"] == 3
    if control:
        assert report()["control"]["steps"] == 3


def test_the_control_learns_from_the_labelled_texts_for_as_many_steps() -> None:
    write("data.jsonl", ["neg", "mid", "pos", "neg", *[None] * 12])
    write("alone.jsonl", ["neg", "mid", "pos", "neg"])
    assert run("distill", control=True, max_steps=None, num_train_epochs=2, logging_steps=1) == 0
    assert run("train", teacher=None, train_file="alone.jsonl", output_dir="alone", max_steps=8) == 0
    assert report()["student"]["steps"] == report()["control"]["steps"] == 8
    assert report()["control_rows"] == {"with_label": 4, "of": 16}
    sentence = "12 of the 16 training rows have no label: the student learns from them by its teacher, while"
    assert sentence in Path("out/report.html").read_text()
    assert "control_rows" not in report("alone/report.json")
    models = [AutoModelForSequenceClassification.from_pretrained(name) for name in ("out/control", "alone")]
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("labels", "fields", "message"),
    [
        ([None] * 8, {"kd_ratio": 0.0}, "kd_ratio: 0 learns from nothing else: fill in the column label"),
        ([None] * 8, {"control": True}, "control: true trains the student on the labels alone"),
        (["neg", *[None] * 7], {"divergence": "decoupled"}, "7 of 8 texts have no label, and divergence"),
        (
            ["neg", *[None] * 7],
            {"control": True, "dataloader_drop_last": True},
            "on the 1 rows with a label alone, and dataloader_drop_last: true leaves no batch",
        ),
    ],
)
def test_what_is_refused(
    capsys: pytest.CaptureFixture[str], labels: list[Any], fields: dict[str, Any], message: str
) -> None:
    """The doctor reports an error, and the run refuses."""
    write("data.jsonl", labels)
    errors = [f.found for f in findings(**fields).values() if f.severity == "error"]
    assert any(message in found for found in errors), errors
    assert run("distill", **fields) == 1
    assert message in capsys.readouterr().err


def test_a_hint_names_the_column_that_looks_like_labels(capsys: pytest.CaptureFixture[str]) -> None:
    Path("data.jsonl").write_text('{"text": "w1", "intent": "neg"}\n' * 4)
    assert run("train", teacher=None) == 1
    said = capsys.readouterr().err
    assert "name their column with column_mapping: {label: intent}" in said and "text: text" not in said
