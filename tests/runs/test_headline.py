"""Test the end of a run: each model is measured once, on its task's own figures, and the report leads with
the right one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from support import doctor, stored
from support.families import bert
from transformers import AutoModelForSequenceClassification

from fastkd import SparseTeacher
from fastkd.cli import main
from fastkd.corpora.decode import Question
from fastkd.runs import report
from fastkd.runs.answers import Asked
from fastkd.runs.refusals import refusals
from fastkd.trainer import DistillationConfig, student
from fastkd.trainer.objective import measure
from fastkd.trainer.teachers import live

NAMES = ["neg", "mid", "pos"]
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, rows: list[dict[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def configure(**fields: Any) -> None:
    settings = {
        "model": "student", "teacher": "teacher", "train_file": "train.jsonl", "eval_file": "eval.jsonl",
        "output_dir": "out", "max_steps": 2, "per_device_train_batch_size": 4, "num_beams": 2,
        "per_device_eval_batch_size": 4, "use_cpu": True, "disable_tqdm": True, "report_to": "none",
        "save_strategy": "no", "max_completion_length": 6, "learning_rate": 1e-3,
    }  # fmt: skip
    Path("run.yaml").write_text(yaml.safe_dump({**settings, **fields}))


def run(command: str, **fields: Any) -> int:
    configure(**fields)
    return main([command, "run.yaml"])


def found(folder: str = "out", name: str = "report") -> Any:
    return json.loads((Path(folder) / f"{name}.json").read_text())


def classifiers() -> None:
    """Two classifiers and their data; one held-out row has no text, and is left out."""
    for side, seed, hidden in (("student", 0, 16), ("teacher", 1, 24)):
        made = bert(seed, hidden, layers=1)
        made.config.id2label = dict(enumerate(NAMES))
        made.config.label2id = {name: i for i, name in enumerate(NAMES)}
        made.save_pretrained(side)
        doctor.tokenizer().save_pretrained(side)
    write("train.jsonl", [{"text": f"w{i} w7", "label": NAMES[i % 3]} for i in range(8)])
    held_out = [
        {"text": f"w{i} w{i + 1} " * (1 + i * 5 % 4) + HOSTILE, "label": NAMES[i * i % 3]} for i in range(9)
    ]
    write("eval.jsonl", [*held_out[:2], {"text": "", "label": "mid"}, *held_out[2:]])


def writers() -> None:
    """Two encoder-decoders and their data."""
    for side, seed, hidden in (("student", 0, 16), ("teacher", 1, 24)):
        stored.bart(seed, hidden).save_pretrained(side)
        stored.tokenizer().save_pretrained(side)
    write("train.jsonl", [{"source": f"ab {c}", "target": f"{c} ba"} for c in "cdefgh"])
    write(
        "eval.jsonl",
        [{"source": f"{c} ab {HOSTILE}", "target": f"ab {c} c de fg hij klm"} for c in "ijklmno"],
    )


class Passes:
    """Counts how often each side evaluates each row, by the width of the side's model."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: dict[int, Counter[tuple[int, ...]]] = {}
        for module in (student, live):
            monkeypatch.setattr(module, "forward", self._counted(module.forward))  # type: ignore[attr-defined]

    def _counted(self, forward: Any) -> Any:
        def wrapper(model: Any, head: Any, inputs: dict[str, Any], *rest: Any) -> Any:
            rows = self.seen.setdefault(model.config.hidden_size, Counter())
            for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
                rows[tuple(ids[mask.bool()].tolist())] += 1
            return forward(model, head, inputs, *rest)

        return wrapper

    def of(self, tokenizer: Any, field: str = "text") -> dict[int, set[int]]:
        texts = [json.loads(line)[field] for line in Path("eval.jsonl").read_text().splitlines()]
        rows = [tuple(tokenizer(text)["input_ids"]) for text in texts if text]
        ends = [(*row, 0) for row in rows]  # with the end of the text, where the task adds one
        return {
            width: {max(seen[row], seen[end]) for row, end in zip(rows, ends, strict=True)}
            for width, seen in self.seen.items()
        }


@pytest.mark.parametrize(
    "evaluations",
    [{}, {"eval_strategy": "steps", "eval_steps": 1}, {"train_sampling_strategy": "group_by_length"}],
)
def test_a_classifier_and_its_teacher(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], evaluations: dict[str, Any]
) -> None:
    classifiers()
    passes = Passes(monkeypatch)
    assert run("distill", task="classification", control=True, **evaluations) == 0
    made = found()
    # Student and control are evaluated as often as asked for, and the teacher's outputs are kept.
    times = 2 if "eval_steps" in evaluations else 1
    assert passes.of(doctor.tokenizer()) == {16: {2 * times}, 24: {1}}

    rows = [json.loads(line) for line in Path("eval.jsonl").read_text().splitlines()]
    logits = {}
    for who, folder in (("student", "out"), ("teacher", "teacher"), ("control", "out/control")):
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        matrix = [[0] * 3 for _ in NAMES]
        for number, row in enumerate(rows):
            if row["text"]:
                ids = torch.tensor([doctor.tokenizer()(row["text"])["input_ids"]])
                with torch.no_grad():
                    logits[who, number] = model(ids).logits[0]
                matrix[NAMES.index(row["label"])][int(logits[who, number].argmax())] += 1
        assert made[who]["classes"]["confusion"] == matrix
        assert made[who]["eval"]["accuracy"] == pytest.approx(sum(matrix[i][i] for i in range(3)) / 9)
        assert 0 <= made[who]["eval"]["macro_f1"] <= 1
        assert made[who]["latency"]["median_ms"] > 0 and made[who]["latency"]["rows"] == 9
    same = [logits["control", n].argmax() == logits["teacher", n].argmax() for n in range(10) if n != 2]
    assert made["control"]["eval"]["agreement"] == pytest.approx(float(np.mean(same)))

    wrong = [n for n, row in enumerate(rows) if row["text"]
             and NAMES[int(logits["student", n].argmax())] != row["label"]]  # fmt: skip
    assert {entry["row"] for entry in made["mistakes"]} == set(wrong) and wrong
    for entry in made["mistakes"]:
        probabilities = logits["student", entry["row"]].softmax(-1)
        assert entry["text"] == rows[entry["row"]]["text"] and entry["label"] == rows[entry["row"]]["label"]
        assert entry["prediction"] == NAMES[int(probabilities.argmax())]
        assert entry["probability"] == pytest.approx(float(probabilities.max()), rel=1e-4)
        assert entry["teacher"] == NAMES[int(logits["teacher", entry["row"]].argmax())]
    certain = [entry["probability"] for entry in made["mistakes"]]
    assert certain == sorted(certain, reverse=True)
    page = Path("out/report.html").read_text()
    assert HOSTILE not in page and "&lt;script&gt;alert(1)" in page and "Misclassified texts" in page
    assert page.count("Confusion matrix") == 3
    assert report.text(made) in capsys.readouterr().out


def test_a_cached_teachers_own_quality() -> None:
    classifiers()
    settings = {"task": "classification"}
    assert run("cache", **settings, output_dir="cache") == 0
    assert run("distill", **settings, teacher="cache:cache", output_dir="cached") == 0
    assert run("distill", **settings) == 0
    live, cached = (found(folder)["teacher"] for folder in ("out", "cached"))
    for key in ("accuracy", "macro_f1", "ce"):
        assert cached["eval"][key] == pytest.approx(live["eval"][key], rel=2e-3)
    assert cached["classes"] == live["classes"] and "latency" not in cached


@pytest.mark.parametrize("tail", ["renormalize", "bucket"])
def test_what_the_likeliest_tokens_tell_of_a_teacher(tail: str) -> None:
    """The bound is the cross-entropy itself where all labels are listed, and never above it."""
    torch.manual_seed(0)
    logits, labels = 2 * torch.randn(2, 40, 12), torch.randint(0, 12, (40,))
    options = {**DistillationConfig(kd_ratio=1.0).loss_options(), "vocab_size": None}
    labels[3] = -100
    logprobs = logits[1].log_softmax(-1)
    valid = labels != -100
    ce = float(torch.nn.functional.nll_loss(logprobs[valid], labels[valid]))
    bounds = []
    for k in (2, 6, 12):
        top = logprobs.topk(k)
        teacher = SparseTeacher(top.indices, top.values.half(), tail if k < 12 else "renormalize")
        sums = measure(logits[:1], teacher.__class__(teacher.indices[None], teacher.logprobs[None],
                       teacher.tail), labels[None], options)  # fmt: skip
        bounds.append(float(sums["teacher_ce_bound"] / sums["tokens"]))
        known = torch.tensor([label in row for label, row in zip(labels, top.indices, strict=True)])
        least = torch.minimum(top.values[:, -1], (1 - top.values.exp().sum(-1)).clamp(min=1e-9).log())
        plain = torch.where(known, logprobs.gather(1, labels.clamp(min=0)[:, None])[:, 0], least)
        assert bounds[-1] == pytest.approx(-float(plain[valid].mean()), rel=5e-3)
    assert bounds[0] < bounds[1] < bounds[2] == pytest.approx(ce, rel=1e-3)


def test_answers_of_all_models(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """BLEU is sacrebleu's on the answers in the report, which are side by side on the page."""
    writers()
    passes = Passes(monkeypatch)
    assert run("distill", task="seq2seq", control=True, eval_answers=5) == 0
    made = found()
    assert passes.of(stored.tokenizer(), "source") == {16: {2}, 24: {1}}
    assert made["answers"] == {"rows": 5, "of": 7, "batch_size": 4} and made["headline"] == "bleu"
    assert [sample["row"] for sample in made["samples"]] == [0, 1, 2, 4, 5]
    references = [sample["reference"].strip() for sample in made["samples"]]
    for who in ("teacher", "student", "control"):
        assert "beam" not in made[who]
        said = [sample["answers"][who]["greedy"].strip() for sample in made["samples"]]
        expected = BLEU().corpus_score(said, [references]).score
        assert made[who]["greedy"]["bleu"] == pytest.approx(expected)
        assert made[who]["greedy"]["chrf"] == pytest.approx(CHRF().corpus_score(said, [references]).score)
        assert made[who]["greedy"]["rougeL"] >= 0 and made[who]["eval"]["perplexity"] > 1
    printed, page = capsys.readouterr().out, Path("out/report.html").read_text()
    assert report.text(made) in printed and "5 of the 7 held-out rows, evenly spread" in printed
    assert "the student reaches BLEU" in printed and "the student reaches BLEU" in page
    assert HOSTILE not in page and "&lt;script&gt;" in page
    first = page[page.index('<div class="answers">') :].partition("</article>")[0]
    assert [first.index(name) for name in ("reference", "teacher, greedy", "student, greedy")] == sorted(
        first.index(name) for name in ("reference", "teacher, greedy", "student, greedy")
    )
    assert "without teacher, greedy" in first

    assert run("train", task="seq2seq", eval_answers=0, output_dir="plain", kd_ratio=0.0) == 0
    assert not {"answers", "samples", "headline"} & set(found("plain"))
    assert run("distill", task="seq2seq", eval_beam=True, headline="rougeL", output_dir="beams") == 0
    assert found("beams")["student"]["beam"]["num_beams"] == 2
    assert "the student reaches ROUGE-L" in report.verdict(found("beams"))


def test_a_student_of_its_teachers_answers(capsys: pytest.CaptureFixture[str]) -> None:
    """Perplexity on the references misleads, which the report says instead of leading with it."""
    writers()
    assert run("generate", task="seq2seq", output_dir="answers") == 0
    settings = {"task": "seq2seq", "train_file": "answers"}
    assert run("distill", **settings) == 0
    made = found()
    assert made["sequence_level"] == {"mode": "beam", "teacher": "teacher"}
    assert "the student reaches BLEU" in report.verdict(made)
    printed = capsys.readouterr().out
    assert "Kim & Rush 2016" in printed and "Kim &amp; Rush 2016" in Path("out/report.html").read_text()
    assert run("distill", **settings, eval_answers=0, output_dir="unasked") == 0
    assert "perplexity" not in report.verdict(found("unasked"))
    assert "were not compared with any reference" in report.verdict(found("unasked"))
    assert run("distill", **settings, headline="perplexity", output_dir="asked") == 0
    assert "perplexity on held-out data is" in report.verdict(found("asked"))


@pytest.mark.slow
def test_two_processes_write_the_same_answers() -> None:
    """The models hardly change, so that the numerics of the training do not matter."""
    writers()
    settings = {"task": "seq2seq", "control": True, "learning_rate": 1e-12, "eval_answers": 5}
    assert run("distill", **settings) == 0
    configure(**settings, output_dir="two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    root = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": root}
    done = subprocess.run(
        [*command, "-m", "fastkd.cli", "distill", "run.yaml"],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    alone, both = found(), found("two")
    assert both["machine"]["processes"] == 2 and done.stdout.count("wrote the model") == 1
    assert both["samples"] == alone["samples"] and both["answers"] == alone["answers"]
    for name in ("teacher", "student", "control"):
        for key in ("bleu", "chrf", "rougeL", "mean_length"):
            assert both[name]["greedy"][key] == pytest.approx(alone[name]["greedy"][key])
        assert both[name]["eval"]["perplexity"] == pytest.approx(alone[name]["eval"]["perplexity"], rel=1e-4)


def test_summaries_are_known_by_their_length() -> None:
    def asked(source: int) -> Asked:
        return Asked([Question([1] * source, "", "a b c d", i) for i in range(3)], 3, {"greedy": 1})

    args = DistillationConfig(task="seq2seq")
    tokens = len(stored.tokenizer()("a b c d")["input_ids"])
    for source, expected in ((tokens, "bleu"), (3 * tokens - 1, "bleu"), (3 * tokens, "rougeL")):
        assert asked(source).headline(stored.tokenizer(), args) == expected
    args.headline = "chrf"
    assert asked(1).headline(stored.tokenizer(), args) == "chrf"


def test_summaries_stand_beside_their_lead(capsys: pytest.CaptureFixture[str]) -> None:
    """The baseline is the first words of the sources, as many as the references have in the median."""
    writers()
    sources = ["ab cd ef gh ij kl mn op qr", "b a b a b a b a b a b", "kl kl kl kl kl kl kl kl kl kl"]
    references = ["ab cd x", "a b", "kl"]
    write("eval.jsonl", [{"source": s, "target": r} for s, r in zip(sources, references, strict=True)])
    assert run("distill", task="seq2seq", max_length=64) == 0
    made = found()
    lead = made["lead"]
    assert lead["words"] == 2 and made["headline"] == "rougeL"
    # Unigrams: ab cd of ab cd x; b a of a b, in another order; kl kl of kl.
    expected = [2 * (2 / 2) * (2 / 3) / (2 / 2 + 2 / 3), 1.0, 2 * (1 / 2) * 1 / (1 / 2 + 1)]
    assert lead["greedy"]["rouge1"] == pytest.approx(sum(expected) / 3)
    said = f"the first 2 words of each source, which reach ROUGE-1 {lead['greedy']['rouge1']:.3f}"
    assert said in " ".join(capsys.readouterr().out.split())
    assert said in Path("out/report.html").read_text()

    writers()
    assert run("distill", task="seq2seq", output_dir="translations") == 0
    assert "lead" not in found("translations")


def test_a_headline_of_answers_needs_answers() -> None:
    args = DistillationConfig(task="seq2seq", headline="bleu", eval_answers=0)
    assert "headline_without_answers" in {refusal.name for refusal in refusals(args)}
    args.eval_answers = 1
    assert "headline_without_answers" not in {refusal.name for refusal in refusals(args)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"headline": "bleu", "task": "classification"}, "headline: bleu is not a figure of classification"),
        ({"headline": "accuracy"}, "headline: accuracy is not a figure of causal_lm"),
        ({"headline": "loss"}, "headline must be auto or perplexity or accuracy"),
        ({"eval_answers": -1}, "eval_answers must be a number of rows from 0, not -1"),
    ],
)
def test_settings_that_do_not_fit(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillationConfig(**fields)
