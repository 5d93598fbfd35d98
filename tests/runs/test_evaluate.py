"""Test ``fastkd evaluate``: every figure equals one computed by hand or by the library that defines it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from sacrebleu.metrics.bleu import BLEU
from support.tiny import llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from fastkd.cli import main
from fastkd.corpora.decode import decode
from fastkd.corpora.tasks import TASKS
from fastkd.runs.answers import shares

END = "<|endoftext|>"
VOCAB = 258
PAIRS = [("ab c", " def"), ("x", " yz w"), ("hello there", " you"), ("q r s t", " uvw uvw"), ("one", " two")]
# Texts are tokenized by bytes, since a word-level vocabulary would hide the effect of a cut or a space.
LABELLED = [("good film", "pos"), ("bad film", "neg"), ("so so", "mid"), ("great", "pos"), ("poor", "neg")]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE({token: i for i, token in enumerate(["<pad>", END, *alphabet])}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, pad_token="<pad>")


def byte_llama(seed: int, hidden: int) -> Any:
    model = llama(seed, hidden, VOCAB)
    model.config.max_position_embeddings = 64
    model.config.eos_token_id = model.generation_config.eos_token_id = 1
    return model


def classifier(seed: int) -> Any:
    torch.manual_seed(seed)
    names = {0: "neg", 1: "mid", 2: "pos"}
    config = BertConfig(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64, id2label=names, label2id={name: i for i, name in names.items()},
        pad_token_id=0, initializer_range=0.4,
    )  # fmt: skip
    return BertForSequenceClassification(config)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A folder with saved models and held-out data."""
    place = tmp_path_factory.mktemp("evaluate")
    t5 = T5Config(
        vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0,
        eos_token_id=1, decoder_start_token_id=0, initializer_factor=3.0,
    )  # fmt: skip
    torch.manual_seed(0)
    saved = {
        "lm": byte_llama(1, 16), "lm/control": byte_llama(2, 16), "lm-teacher": byte_llama(3, 24),
        "cls": classifier(1), "cls-teacher": classifier(2), "t5": T5ForConditionalGeneration(t5),
    }  # fmt: skip
    for name, model in saved.items():
        model.save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
    data = {
        "pairs": [{"prompt": a, "completion": b} for a, b in PAIRS],
        "translation": [{"source": a, "target": b} for a, b in PAIRS],
        "labelled": [{"text": a, "label": b} for a, b in LABELLED],
        "text": [{"text": a + b} for a, b in PAIRS],
    }
    for name, rows in data.items():
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def evaluate(place: Path, monkeypatch: pytest.MonkeyPatch, *more: str, **fields: Any) -> dict[str, Any]:
    """Run ``fastkd evaluate``, and return the report that it writes."""
    monkeypatch.chdir(place)
    common = {
        "output_dir": "out", "use_cpu": True, "disable_tqdm": True, "per_device_eval_batch_size": 3,
        "max_completion_length": 8, "num_beams": 3,
    }  # fmt: skip
    Path("config.yaml").write_text(yaml.safe_dump({**common, **fields}))
    assert main(["evaluate", "config.yaml", *more]) == 0
    return json.loads((place / str(fields.get("output_dir", "out")) / "evaluate.json").read_text())


def parts_of_a_row(tokenizer: Any, prompt: str, completion: str) -> tuple[list[int], list[int]]:
    return tokenizer(prompt)["input_ids"], [*tokenizer(completion)["input_ids"], 1]


def test_language_model_with_prompts(
    place: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = evaluate(place, monkeypatch, model="lm", teacher="lm-teacher", eval_file="pairs.jsonl")
    assert list(report["student"]["eval"]) and "control" in report
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(place / name).eval() for name in ("lm", "lm-teacher")
    )
    nats, same, kl, entropy, count = 0.0, 0, 0.0, 0.0, 0
    for prompt, completion in PAIRS:
        before, after = parts_of_a_row(tokenizer, prompt, completion)
        with torch.no_grad():
            q, p = (
                model(torch.tensor([before + after])).logits[0, len(before) - 1 : -1].log_softmax(-1)
                for model in (student, teacher)
            )
        nats += float(F.nll_loss(q, torch.tensor(after), reduction="sum"))
        same += int((q.argmax(-1) == p.argmax(-1)).sum())
        kl += float((p.exp() * (p - q)).sum())
        entropy -= float((p.exp() * p).sum())
        count += len(after)
    found = report["student"]["eval"]
    assert found["perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-4)
    assert found["agreement"] == pytest.approx(same / count, abs=1e-6)
    assert found["kd"] == pytest.approx(kl / count, rel=1e-4)
    assert report["teacher"]["eval"]["entropy"] == pytest.approx(entropy / count, rel=1e-4)
    assert report["teacher"]["parameters"] == teacher.num_parameters()

    prompts = [tokenizer(prompt)["input_ids"] for prompt, _ in PAIRS]
    references = [completion.strip() for _, completion in PAIRS]
    for name, model in (("student", student), ("teacher", teacher)):
        for how, beams in (("greedy", 1), ("beam", 3)):
            answers = dict(
                decode(model, TASKS["causal_lm"], tokenizer, prompts, num_beams=beams, max_new_tokens=8)
            )
            said = [answers[i][0] for i in range(len(prompts))]
            part = report[name][how]
            expected = BLEU().corpus_score([answer.text.strip() for answer in said], [references]).score
            assert part["bleu"] == pytest.approx(expected) and part["num_beams"] == beams
            assert part["mean_length"] == sum(len(answer.tokens) for answer in said) / len(said)
            assert part["hit_limit"] == sum(not answer.complete for answer in said) / len(said)
            assert part["tokens_per_second"] > 0
            for sample in report["samples"]:
                assert sample["answers"][name][how] == said[sample["row"]].text
    assert [sample["reference"] for sample in report["samples"]] == [completion for _, completion in PAIRS]
    assert set(report["samples"][0]["answers"]) == {"teacher", "student", "control"}
    assert "tok:13a" in report["signatures"]["bleu"]
    assert "bits_per_byte" not in found
    printed = capsys.readouterr().out
    for line in ("teacher, greedy", "student, 3 beams", "control, greedy", "wrote out/evaluate.json"):
        assert line in printed
    assert "Sample answers" in (place / "out" / "evaluate.html").read_text()


def test_plain_text(place: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bits per byte are the total negative log-likelihood in bits, divided by the bytes predicted."""
    report = evaluate(place, monkeypatch, model="lm-teacher", eval_file="text.jsonl")
    model = AutoModelForCausalLM.from_pretrained(place / "lm-teacher").eval()
    nats, count, size = 0.0, 0, 0
    for a, b in PAIRS:
        ids = torch.tensor([[*tokenizer(a + b)["input_ids"], 1]])
        with torch.no_grad():
            nats += float(F.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="sum"))
        count += ids.shape[1] - 1
        size += len((a + b).encode()) - 1  # the first byte is not predicted
    found = report["model"]["eval"]
    assert found["ce"] == pytest.approx(nats / count, rel=1e-4)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-4)
    assert not {"greedy", "beam"} & set(report["model"])
    assert not {"teacher", "student", "samples"} & set(report)


def test_classification(place: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    report = evaluate(
        place, monkeypatch, task="classification", model="cls", teacher="cls-teacher",
        eval_file="labelled.jsonl", output_dir="cls-out",
    )  # fmt: skip
    names = ["neg", "mid", "pos"]
    for who, folder in (("student", "cls"), ("teacher", "cls-teacher")):
        model = AutoModelForSequenceClassification.from_pretrained(place / folder).eval()
        matrix = [[0] * 3 for _ in names]
        for text, label in LABELLED:
            with torch.no_grad():
                guess = int(model(torch.tensor([tokenizer(text)["input_ids"]])).logits.argmax())
            matrix[names.index(label)][guess] += 1
        assert report[who]["classes"]["confusion"] == matrix
        assert report[who]["eval"]["accuracy"] == sum(matrix[i][i] for i in range(3)) / len(LABELLED)
        occurring = [i for i in range(3) if sum(matrix[i]) + sum(row[i] for row in matrix)]
        f1 = [2 * matrix[i][i] / (sum(matrix[i]) + sum(row[i] for row in matrix)) for i in occurring]
        assert report[who]["eval"]["macro_f1"] == pytest.approx(sum(f1) / len(f1))
        assert list(report[who]["classes"]["f1"]) == names
    # The trainer's own metric of the teacher agrees.
    assert report["student"]["eval"]["teacher_accuracy"] == pytest.approx(
        report["teacher"]["eval"]["accuracy"], abs=1e-6
    )
    assert "perplexity" not in report["student"]["eval"]


def test_seq2seq_without_a_teacher(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a teacher the model is evaluated alone, and without an output_dir the report goes to its
    directory."""
    monkeypatch.chdir(place)
    Path("t5.yaml").write_text(
        "task: seq2seq\nmodel: nowhere\neval_file: translation.jsonl\nnum_beams: 1\nuse_cpu: true\n"
        "disable_tqdm: true\nmax_completion_length: 5\n"
    )
    assert main(["evaluate", "t5.yaml", "--model", "t5"]) == 0
    report = json.loads((place / "t5" / "evaluate.json").read_text())
    assert report["model"]["greedy"]["num_beams"] == 1 and "beam" not in report["model"]
    assert report["model"]["eval"]["perplexity"] > 1 and report["model"]["greedy"]["mean_length"] <= 5
    assert report["rows"] == len(PAIRS) and report["command"] == "evaluate"


def test_which_model_is_evaluated(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a run's configuration, the trained model is evaluated, not the student that the run began with."""
    fields = {"eval_file": "text.jsonl", "output_dir": "lm"}
    report = evaluate(place, monkeypatch, model="lm-teacher", model_init="scratch", **fields)
    assert "evaluating lm\n" in capsys.readouterr().out
    assert report["model"]["eval"]["ce"] != report["control"]["eval"]["ce"]
    named = evaluate(place, monkeypatch, "--model=lm-teacher", model="lm", **fields)
    assert "evaluating lm-teacher\n" in capsys.readouterr().out
    assert "control" not in named
    assert named["model"]["parameters"] > report["model"]["parameters"]


def test_before_training(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a trained model the student is evaluated, and said to be untrained; it needs weights."""
    evaluate(place, monkeypatch, model="lm-teacher", eval_file="text.jsonl", output_dir="later")
    assert "evaluating lm-teacher as it is before training" in capsys.readouterr().out
    (place / "fresh.yaml").write_text(
        "model: lm-teacher\nmodel_init: scratch\neval_file: text.jsonl\noutput_dir: never\nuse_cpu: true\n"
    )
    assert main(["evaluate", "fresh.yaml"]) == 1
    assert "run fastkd train or distill first, or give --model DIR" in capsys.readouterr().err


def test_an_adapter_beside_its_own_base(
    place: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    peft = pytest.importorskip("peft")
    base = AutoModelForCausalLM.from_pretrained(place / "lm-teacher")
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(base, lora)
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    monkeypatch.chdir(place)
    adapted.peft_config["default"].base_model_name_or_path = "lm-teacher"
    adapted.save_pretrained("adapter")
    tokenizer.save_pretrained("adapter")
    report = evaluate(
        place, monkeypatch, model="adapter", teacher="base", eval_file="pairs.jsonl", num_beams=1
    )
    plain = evaluate(place, monkeypatch, model="lm-teacher", eval_file="pairs.jsonl", num_beams=1)
    assert report["teacher"]["eval"]["ce"] == pytest.approx(plain["model"]["eval"]["ce"], rel=1e-5)
    assert report["student"]["eval"]["kd"] > 1e-4
    for key in ("chrf", "mean_length"):
        assert report["teacher"]["greedy"][key] == plain["model"]["greedy"][key]
    (place / "adapter" / "adapter_model.safetensors").rename(place / "adapter" / "adapter_model.bin")
    assert main(["evaluate", "config.yaml", "--model", "adapter"]) == 1
    assert "pickled weights are not read" in capsys.readouterr().err


def test_bleu_relative_to_the_teachers() -> None:
    """A student's score is also given as a fraction of the teacher's, unless that is 0."""
    found: dict[str, Any] = {
        "teacher": {"greedy": {"bleu": 40.0}, "beam": {"bleu": 0.0}},
        "student": {"greedy": {"bleu": 30.0}, "beam": {"bleu": 5.0}},
    }
    shares(found)
    assert found["student"]["greedy"]["bleu_share"] == 0.75
    assert "bleu_share" not in found["student"]["beam"] and "bleu_share" not in found["teacher"]["greedy"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "batch", [2, 8]
)  # 5 rows in rounds of 4 (one row remains), and of 16 (one process has no rows)
def test_two_processes_measure_the_same(place: Path, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    """`accelerate` repeats rows so that both processes have full batches; repeated rows count only once."""
    fields = {"teacher": "lm-teacher", "eval_file": "pairs.jsonl", "output_dir": "two", "num_beams": 1}
    fields["per_device_eval_batch_size"] = batch
    alone = evaluate(place, monkeypatch, model="lm", **fields)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    root = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": root}
    done = subprocess.run(
        [*command, "-m", "fastkd.cli", "evaluate", "config.yaml"],
        cwd=place, env=environment, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    both = json.loads((place / "two" / "evaluate.json").read_text())
    assert both["machine"]["processes"] == 2 and done.stdout.count("wrote two/evaluate.json") == 1
    assert both["repeat"].startswith("torchrun --nproc_per_node 2 ")
    timings = ("runtime", "steps_per_second", "samples_per_second", "tokens_per_second")
    for name in ("student", "teacher", "control"):
        for part in ("eval", "greedy"):
            expected, found = (
                {k: v for k, v in r[name][part].items() if k not in timings} for r in (alone, both)
            )
            assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert both["samples"] == alone["samples"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "lm"}, "eval_file is not set: give held-out data"),
        ({"model": "./nowhere", "eval_file": "text.jsonl"}, "model './nowhere' could not be loaded"),
        ({"eval_file": "text.jsonl"}, "model is not set"),
        ({"model": "lm", "eval_file": "labelled.jsonl", "task": "seq2seq"}, "but seq2seq reads"),
    ],
)
def test_errors(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fields: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.chdir(place)
    Path("wrong.yaml").write_text(yaml.safe_dump({"use_cpu": True, "output_dir": "none", **fields}))
    assert main(["evaluate", "wrong.yaml"]) == 1
    assert message in capsys.readouterr().err.strip().split("\n")[-1]
    assert not (place / "none").exists()
