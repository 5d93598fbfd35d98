"""Test ``fastkd doctor``: each finding appears where it should, and none in a healthy configuration."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from tiny import llama
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from fastkd.backends.native import NativeBackend
from fastkd.cli import main
from fastkd.corpora.tasks import TASKS
from fastkd.runs.doctor import Finding, examine
from fastkd.runs.doctor.findings import Case
from fastkd.runs.doctor.machine import free_disk, idle_gpu, memory
from fastkd.runs.sources import load_tokenizer
from fastkd.trainer import DistillationConfig

WORDS = ["<end>", "<unk>", "<pad>", *(f"w{i}" for i in range(45))]


def tokenizer(words: list[str] = WORDS, **specials: str) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    given = {"eos_token": "<end>", "unk_token": "<unk>", "pad_token": "<pad>", **specials}
    return PreTrainedTokenizerFast(tokenizer_object=made, **given)


def row(i: int) -> dict[str, str]:
    """A row whose answer repeats the prompt's words."""
    words = [f"w{(i * 7 + j) % 45}" for j in range(2 + i % 4)]
    return {"prompt": " ".join([*words, f"w{i % 45}"]), "completion": " ".join(words)}


def write_rows(name: str, rows: list[dict[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


SETTINGS = {
    "model": "student",
    "model_init": "scratch",
    "teacher": "teacher",
    "train_file": "train.jsonl",
    "eval_file": "eval.jsonl",
    "max_length": 32,
    "per_device_train_batch_size": 4,
    "output_dir": "out",
    "use_cpu": True,
}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two models without weights, their tokenizer, and data without faults."""
    folder = tmp_path_factory.mktemp("healthy")
    for name, hidden in (("student", 16), ("teacher", 24)):
        config = llama(hidden=hidden).config
        config.pad_token_id = 2
        config.save_pretrained(folder / name)
        tokenizer().save_pretrained(folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_rows("train.jsonl", [row(i) for i in range(40)])
        write_rows("eval.jsonl", [row(i) for i in range(40, 45)])
        Path("run.yaml").write_text(yaml.safe_dump(SETTINGS))
    return folder


@pytest.fixture
def place(healthy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the healthy folder, which the test may damage."""
    folder = shutil.copytree(healthy, tmp_path / "place")
    monkeypatch.chdir(folder)
    return folder


def look(fast: bool = True, **fields: Any) -> dict[str, Finding]:
    return {f.name: f for f in examine(DistillationConfig(**{**SETTINGS, **fields}), fast)}


def edit(path: str, **fields: Any) -> None:
    config = json.loads(Path(path).read_text())
    Path(path).write_text(json.dumps({**config, **fields}))


@pytest.fixture(scope="module")
def healthy_findings(healthy: Path) -> Iterator[dict[str, Finding]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(healthy)
        yield look()


def test_nothing_is_found_in_a_healthy_configuration(healthy_findings: dict[str, Finding]) -> None:
    # These appear on a machine with a GPU that is not used, or that torch cannot see.
    assert set(healthy_findings) <= {"gpu_unused", "gpu_unseen"}


ADAPTER = {"peft_type": "LORA", "r": 4}
FEATURES = [{"student": -1, "teacher": -1, "kind": "hidden", "loss": "mse", "weight": 1.0}]


@pytest.mark.parametrize(
    ("fields", "name", "severity", "words"),
    [
        ({"teacher": None}, "no_teacher", "note", "kd_ratio: 0.5"),
        ({"kd_ratio": 0.0, "temperature": 2.0}, "teacher_unused", "warning", "temperature: 2.0 does nothing"),
        ({"teacher": None, "divergence": "reverse_kl"}, "idle_options", "warning", "reverse_kl"),
        ({"kd_ratio": 1.0, "label_smoothing_factor": 0.1}, "smoothing_unused", "warning", "0.1"),
        ({"temperature": 2.0, "teacher_temperature": 2.0}, "same_temperature", "note", "2.0"),
        ({"temperature": 64.0}, "hot", "warning", "4,096"),
        ({"divergence": "jsd", "beta": 0.0}, "beta_at_its_end", "note", "is forward_kl"),
        ({"divergence": "jsd", "beta": 1.0}, "beta_at_its_end", "note", "is reverse_kl"),
        ({"divergence": "skew_forward_kl", "beta": 0.0}, "beta_at_its_end", "note", "is forward_kl"),
        ({"lmbda": 0.5, "teacher": "cache:c"}, "lmbda_with_cache", "error", "lmbda: 0.5"),
        ({"lmbda": 0.5, "task": "classification"}, "lmbda_without_text", "error", "write text"),
        ({"lmbda": 0.5, "teacher": None}, "lmbda_without_teacher", "error", "teacher"),
        ({"lmbda": 0.5, "kd_ratio": 0.0}, "lmbda_without_kd", "warning", "50 %"),
        ({"lmbda": 0.5, "packing": True}, "lmbda_with_packing", "warning", "packing"),
        ({"feature_matches": FEATURES, "teacher": "cache:c"}, "insides_without_model", "error", "cache:c"),
        (
            {"gradient_match_weight": 1.0, "teacher": None, "kd_ratio": 0.0},
            "insides_without_model",
            "error",
            "no teacher",
        ),
        (
            {"model": "teacher", "model_init": "pretrained"},
            "teacher_is_student",
            "warning",
            "both teacher",
        ),
        ({"peft_config": ADAPTER}, "adapter_on_noise", "error", "random weights"),
        ({"teacher": "base"}, "base_without_adapter", "error", "base"),
        ({"task": "classification", "fused_head": "true"}, "fused_classifier", "error", "fused_head"),
        ({"control": True, "kd_ratio": 0.0}, "control_of_nothing", "warning", "control"),
        ({"learning_rate": 0.0}, "learning_rate", "error", "learning_rate: 0"),
        ({"warmup_steps": 50, "max_steps": 40}, "warmup", "warning", "40 steps"),
        ({"fp16": True}, "fp16_on_cpu", "error", "fp16"),
        ({"eval_strategy": "epoch", "eval_file": None}, "evaluation_without_data", "error", "eval_strategy"),
        ({"save_strategy": "no", "max_steps": 5000}, "nothing_to_resume", "warning", "5,000 steps"),
        ({"save_steps": 9000, "max_steps": 5000}, "nothing_to_resume", "warning", "save_steps: 9000"),
        ({"train_file": None}, "no_data", "error", "no training data"),
        ({"train_file": "nope.txt"}, "unreadable_train_file", "error", "nope.txt"),
        ({"teacher": "nowhere"}, "unreadable_teacher", "error", "nowhere"),
        ({"packing": True}, "packed_prompts", "note", "have labels"),
        ({"max_length": 4}, "prompts_fill_the_window", "warning", "max_length is 4"),
        ({"max_length": 100}, "student_window", "note", "32 positions"),
        ({"teacher": "cache:none"}, "cache", "error", "there is no cache in none"),
    ],
)
def test_settings(
    place: Path,
    healthy_findings: dict[str, Finding],
    fields: dict[str, Any],
    name: str,
    severity: str,
    words: str,
) -> None:
    (place / "nowhere").mkdir()
    found = look(**fields)
    assert name in found and name not in healthy_findings
    assert found[name].severity == severity
    assert words in found[name].found
    assert found[name].remedy or severity == "note" or name.startswith(("unreadable", "cache"))


def test_remedies_remove_their_finding(place: Path) -> None:
    """Each finding's remedy names a setting with which the finding disappears."""
    assert look(max_length=4)["prompts_fill_the_window"].remedy == "raise max_length to 12"
    assert "prompts_fill_the_window" not in look(max_length=12)
    assert look(max_length=100)["student_window"].remedy == "set max_length: 32"
    assert "student_window" not in look(max_length=32)
    assert look(warmup_steps=50, max_steps=40)["warmup"].remedy == "set warmup_steps to about 2"
    assert "warmup" not in look(warmup_steps=2, max_steps=40)


def test_padded_vocabularies_are_noted(place: Path) -> None:
    edit("teacher/config.json", vocab_size=64)
    finding = look()["vocabulary_padding"]
    assert finding.severity == "note"
    assert "48 output columns, the teacher 64" in finding.found and "first 48" in finding.found


def test_a_vocabulary_that_is_too_small(place: Path) -> None:
    edit("teacher/config.json", vocab_size=40)
    finding = look()["vocabulary_too_small"]
    assert finding.severity == "error"
    assert "48 tokens and the teacher 40 columns" in finding.found


def test_the_same_number_for_another_token(place: Path) -> None:
    """An error is reported if a token number stands for different tokens in the two vocabularies."""
    words = list(WORDS)
    words[10:14] = reversed(words[10:14])
    tokenizer(words).save_pretrained("teacher")
    finding = look()["vocabulary_contents"]
    assert finding.severity == "error"
    assert finding.found.startswith("4 of 48 token numbers")
    assert "10 is 'w7' and 'w10', 11 is 'w8' and 'w9', 12 is 'w9' and 'w8' and 1 more" in finding.found


def test_tokens_that_only_one_side_has(place: Path) -> None:
    tokenizer([*WORDS, "extra"]).save_pretrained("teacher")
    edit("teacher/config.json", vocab_size=49)
    found = look()
    assert found["tokens_of_teacher_only"].severity == "note"
    assert "extra" in found["tokens_of_teacher_only"].found


def test_the_same_vocabulary_split_otherwise(place: Path) -> None:
    """A warning is reported if equal vocabularies split texts differently."""
    made = tokenizer()
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    made.save_pretrained("teacher")
    finding = look()["tokenizers_splitting"]
    assert finding.severity == "warning" and finding.found.startswith("80 of 80 texts")


def test_a_beginning_that_only_the_teacher_writes(place: Path) -> None:
    """It is reported if only the teacher's tokenizer adds a token at the beginning of a text."""
    made = tokenizer(bos_token="w44")
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "w44 $A", special_tokens=[("w44", 47)]
    )
    made.save_pretrained("teacher")
    found = look()
    assert "w44" in found["tokenizers_opening"].found
    assert found["special_bos_token"].severity == "warning"


def test_special_tokens_that_differ(place: Path) -> None:
    tokenizer(eos_token="w1", pad_token="w2").save_pretrained("teacher")
    found = look()
    assert found["special_eos_token"].severity == "warning"
    assert "'<end>'" in found["special_eos_token"].found and "'w1'" in found["special_eos_token"].found
    assert found["special_pad_token"].severity == "note"


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_an_end_at_which_the_model_does_not_stop(place: Path, side: str) -> None:
    edit(f"{side}/config.json", eos_token_id=5)
    finding = look()[f"{side}_eos"]
    assert finding.severity == "warning" and "config.json stops at 5" in finding.found
    edit(f"{side}/config.json", eos_token_id=[5, 0])
    assert f"{side}_eos" not in look()
    transformers.GenerationConfig(eos_token_id=7).save_pretrained(side)
    assert "generation_config.json stops at 7" in look()[f"{side}_eos"].found


def test_another_padding_in_the_configuration(place: Path) -> None:
    edit("student/config.json", pad_token_id=9)
    assert look()["student_pad"].severity == "note"


def test_a_tokenizer_without_an_end(place: Path) -> None:
    for side in ("student", "teacher"):
        tokenizer(eos_token=None).save_pretrained(side)  # type: ignore[arg-type]
    assert look()["no_eos"].severity == "warning"


def test_ends_that_are_cut_off(place: Path) -> None:
    finding = look(max_length=3)["eos_missing"]
    assert finding.severity == "warning" and "of 40 rows" not in finding.found.split("(")[1]
    assert "are cut" in finding.found


def test_empty_and_masked_rows(place: Path) -> None:
    rows = [row(i) for i in range(40)]
    rows[3] = {"prompt": "w1", "completion": ""}
    write_rows("train.jsonl", rows)
    assert look()["empty_rows"].found.startswith("1 of 40 rows (2.5 %)")
    talk = [{"messages": [{"role": "user", "content": "w1"}]}] * 4
    write_rows("train.jsonl", talk)
    finding = look(eval_file=None)["labels_masked"]
    assert finding.severity == "error" and finding.found.startswith("4 of 4 rows")


def test_prompts_and_answers_that_are_cut(place: Path) -> None:
    long = {"prompt": " ".join(["w1"] * 30), "completion": "w2 w3"}
    write_rows("train.jsonl", [*(row(i) for i in range(38)), long, long])
    finding = look()["prompts_fill_the_window"]
    assert "2 of 40 rows (5 %) lose the beginning of their prompt" in finding.found
    assert "end of their answer" not in finding.found
    write_rows("train.jsonl", [*(row(i) for i in range(39)), {"prompt": "w1", "completion": " w2" * 50}])
    finding = look()["prompts_fill_the_window"]
    assert "1 of 40 rows (2.5 %) lose the end of their answer" in finding.found
    assert finding.severity == "warning"


def test_whole_texts_that_are_cut(place: Path) -> None:
    write_rows("train.jsonl", [{"text": " ".join(["w1"] * (i + 1))} for i in range(40)])
    finding = look(eval_file=None)["rows_cut"]
    assert "9 of 40 rows" in finding.found and "the longest has 41 tokens" in finding.found
    assert "packing: true" in finding.remedy


def test_positions_that_run_out(place: Path) -> None:
    write_rows("train.jsonl", [{"text": " ".join(["w1"] * 40)}] + [{"text": "w1 w2"}] * 2)
    assert look(eval_file=None, max_length=64)["student_positions"].severity == "warning"  # rotary
    config = transformers.GPT2Config(
        vocab_size=48, n_embd=16, n_layer=1, n_head=2, n_positions=32, eos_token_id=0, bos_token_id=0
    )
    config.save_pretrained("student")
    finding = look(eval_file=None, max_length=64)["student_positions"]
    assert finding.severity == "error" and "41 tokens" in finding.found and "32 positions" in finding.found


def test_duplicates_and_leaks(place: Path) -> None:
    rows = [row(i) for i in range(40)]
    write_rows("train.jsonl", [*rows, *rows[:5]])
    write_rows("eval.jsonl", [row(41), rows[0]])
    found = look()
    assert found["duplicates"].found.startswith("5 of 45 rows")
    assert found["leak"].severity == "warning" and found["leak"].found.startswith("1 of 2 rows (50 %)")
    assert repr(rows[0]["prompt"])[1:-1] in found["leak"].found


def test_a_language_that_the_tokenizer_does_not_know(place: Path) -> None:
    write_rows("train.jsonl", [{"prompt": "w1 hello", "completion": "w2 world"}] * 3)
    assert look()["unknown_tokens"].severity == "warning"


@pytest.fixture
def classified(place: Path) -> Path:
    rows = [{"text": f"w{i} w{i + 1}", "label": ("bad", "fair", "good")[i % 3]} for i in range(30)]
    write_rows("train.jsonl", rows)
    for side in ("student", "teacher"):
        transformers.BertConfig(
            vocab_size=48,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=32,
            id2label={0: "bad", 1: "fair", 2: "good"},
        ).save_pretrained(side)
    return place


def test_classes(classified: Path) -> None:
    task = {"task": "classification", "eval_file": None}
    assert not set(look(**task)) - {"gpu_unused", "gpu_unseen"}
    assert look(**task, kd_ratio=1.0)["labels_unused"].severity == "note"
    finding = look(**task, class_names=["good", "fair", "bad"])["class_order"]
    assert finding.severity == "error" and finding.remedy == "set class_names: [bad, fair, good]"
    finding = look(**task, class_names=["bad", "fair", "good", "great"])
    assert finding["teacher_classes"].found == "the data has 4 classes and the teacher 3"
    assert "great" in finding["absent_classes"].found
    assert (
        "'fair' is not one of the classes" in look(**task, class_names=["bad", "good"])["row_refused"].found
    )

    write_rows("train.jsonl", [{"text": f"w{i}", "label": i % 5} for i in range(30)])
    assert "class number 4 and the teacher 3 classes" in look(**task)["teacher_classes"].found
    write_rows("train.jsonl", [{"text": f"w{i}", "label": "bad"} for i in range(30)])
    assert look(**task)["one_class"].severity == "error"
    write_rows("train.jsonl", [{"text": f"w{i}", "label": [0, 1, 2, None][i % 4]} for i in range(32)])
    assert look(**task)["labels_masked"].found.startswith("8 of 32 rows (25 %)")


def test_a_target_without_its_first_token(place: Path) -> None:
    """An error is reported if a seq2seq model has no decoder start token."""
    for side in ("student", "teacher"):
        transformers.T5Config(
            vocab_size=48,
            d_model=16,
            d_kv=8,
            d_ff=16,
            num_layers=1,
            num_heads=2,
            eos_token_id=0,
            pad_token_id=2,
        ).save_pretrained(side)
        edit(f"{side}/config.json", decoder_start_token_id=None)
    assert look(task="seq2seq")["student_decoder_start"].severity == "error"
    for side in ("student", "teacher"):
        edit(f"{side}/config.json", decoder_start_token_id=2)
    assert not [f for f in look(task="seq2seq").values() if f.severity == "error"]
    cut = look(task="seq2seq", eval_file=None, max_target_length=3)["rows_cut"].found
    assert "30 of 40 rows" in cut and "the longest target 6, max_target_length 3" in cut


def test_a_backend_that_falls_back(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NativeBackend, "missing", lambda *_: "it was not built: install a compiler")
    finding = look()["reference_backend"]
    assert finding.severity == "warning" and "install a compiler" in finding.found


def test_a_driver_without_a_gpu(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    case = Case(DistillationConfig(**SETTINGS), fast=True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("fastkd.runs.doctor.machine.NVIDIA_DRIVER", tmp_path)
    assert [finding.name for finding in idle_gpu(case)] == ["gpu_unseen"]
    monkeypatch.setattr("fastkd.runs.doctor.machine.NVIDIA_DRIVER", tmp_path / "none")
    assert not list(idle_gpu(case))


def test_a_head_that_is_not_linear(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "the output head of Some is Other, not nn.Linear"
    monkeypatch.setattr("fastkd.runs.doctor.machine.declared_head", lambda _: reason)
    assert look()["fused_head"].severity == "note" and reason in look()["fused_head"].found
    assert look(fused_head="true")["fused_head"].severity == "error"
    assert "fused_head" not in look(fused_head="false")


def test_room_on_the_disk(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = sum(p.numel() for p in llama().parameters())
    run = {"max_steps": 100, "save_steps": 10}
    needed = 4 * parameters + 10 * 12 * parameters
    for free, severity in ((needed - 1, "error"), (needed + 1, "warning"), (2 * needed, None)):
        monkeypatch.setattr("fastkd.runs.doctor.machine.free_disk", lambda _, free=free: free)
        found = look(**run).get("disk")
        assert (found and found.severity) == severity
    monkeypatch.setattr("fastkd.runs.doctor.machine.free_disk", lambda _: needed - 1)
    assert "disk" not in look(**run, save_total_limit=2)
    assert "disk" not in look(**run, save_strategy="no")


def test_a_step_that_needs_more_memory_than_there_is(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(DistillationConfig(**SETTINGS), fast=False)
    assert not list(memory(case))
    monkeypatch.setattr("fastkd.runs.doctor.machine.free_bytes", lambda _: 100_000)
    assert [finding.severity for finding in memory(case)] == ["error"]
    assert not list(memory(Case(case.args, fast=True)))


def test_free_disk_looks_where_the_folder_would_be(tmp_path: Path) -> None:
    assert free_disk(tmp_path / "a" / "b") == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)


def learned(hidden: int, steps: int) -> Any:
    """A model that was trained on the rows for some steps."""
    model = llama(hidden=hidden)
    args = DistillationConfig(**SETTINGS)
    task, words = TASKS["causal_lm"], load_tokenizer(args)
    encoded = [task.encode(row(i), ("prompt", "completion"), words, args) for i in range(45)]
    batch = task.collate([made for made in encoded if made is not None], 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for _ in range(steps):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def test_a_teacher_that_has_nothing_to_teach(place: Path) -> None:
    torch.manual_seed(0)
    learned(24, 0).save_pretrained("teacher")
    assert look(fast=False)["teacher_guesses"].severity == "warning"
    assert "teacher_guesses" not in look(fast=True)

    learned(24, 60).save_pretrained("teacher")
    better = look(fast=False)["teacher_better"]
    assert better.severity == "note" and "on 5 rows of eval_file, perplexity is" in better.found

    learned(16, 200).save_pretrained("student")
    learned(24, 12).save_pretrained("teacher")
    finding = look(fast=False, model_init="pretrained", kd_ratio=0.9)["teacher_no_better"]
    assert finding.severity == "warning" and "kd_ratio: 0.9" in finding.found
    assert "set kd_ratio: 0" in finding.remedy


def test_a_head_that_only_its_weights_give_away(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that is not linear is found only by the slow checks, which load weights."""
    learned(24, 60).save_pretrained("teacher")
    monkeypatch.setattr("fastkd.trainer.heads._reproduces", lambda *_: False)
    assert "not those of its linear head alone" in look(fast=False)["fused_head"].found
    assert "fused_head" not in look(fast=True)


@pytest.fixture
def cached(place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Finding]]:
    """Make a cache of the healthy data; return a function that checks a configuration which reads it."""
    from fastkd.runs.cache import make_caches

    llama(hidden=24).save_pretrained("teacher")
    make_caches(DistillationConfig(**{**SETTINGS, "output_dir": "stored", "disable_tqdm": True}))
    return lambda **fields: look(**{"teacher": "cache:stored", "fast": False, **fields})


def test_a_cache_that_fits(cached: Callable[..., dict[str, Finding]]) -> None:
    assert not set(cached()) - {"gpu_unused", "gpu_unseen"}


@pytest.mark.parametrize(
    ("fields", "name", "words"),
    [
        ({"divergence": "decoupled"}, "cache", "divergence: decoupled does not work with a topk cache"),
        ({"task": "seq2seq"}, "cache", "was made for the task causal_lm"),
        ({"max_length": 6}, "cache_order", "length limits have changed"),
    ],
)
def test_a_cache_of_other_settings(
    cached: Callable[..., dict[str, Finding]], fields: dict[str, Any], name: str, words: str
) -> None:
    finding = cached(**fields)[name]
    assert finding.severity == "error" and words in finding.found


def test_a_cache_of_other_data(cached: Callable[..., dict[str, Finding]]) -> None:
    rows = [row(i) for i in range(40)]
    write_rows("train.jsonl", rows[:-1])
    assert "holds 40 rows and train_file 39" in cached()["cache_rows"].found
    write_rows("train.jsonl", [*rows[:7], rows[8], rows[7], *rows[9:]])
    assert cached()["cache_order"].found.startswith("row 7 (counted from 0) of train_file")


def test_a_cache_of_another_tokenizer(cached: Callable[..., dict[str, Finding]]) -> None:
    words = list(WORDS)
    words[10:12] = reversed(words[10:12])
    tokenizer(words).save_pretrained("student")
    assert "another tokenizer" in cached()["cache"].found


def test_a_damaged_cache(cached: Callable[..., dict[str, Finding]]) -> None:
    shard = next(Path("stored/train").glob("0*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    assert "missing, cut or altered" in cached()["cache_damaged"].found
    assert "cache_damaged" not in cached(fast=True)


def test_a_cache_without_its_evaluation_part(cached: Callable[..., dict[str, Finding]]) -> None:
    shutil.rmtree("stored/eval")
    assert cached()["cache_without_eval"].severity == "note"


def test_an_unquoted_no_is_not_false(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unquoted `no` in YAML, which is parsed as False, is understood as save_strategy 'no'."""
    with Path("run.yaml").open("a") as file:
        file.write("save_strategy: no\n")
    assert main(["doctor", "run.yaml", "--fast", "--max_steps", "5000"]) == 0
    assert "save_strategy: no leaves nothing to go on from" in capsys.readouterr().out


def test_only_some_rows_are_read(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastkd.corpora.sample.MOST", 10)
    from fastkd.runs.doctor import examined

    assert "10 of 40 rows of train_file" in examined(DistillationConfig(**SETTINGS), fast=True)[1]


def test_the_command(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "run.yaml", "--fast"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("looked at all 40 rows of train_file, all 5 rows of eval_file")
    assert main(["doctor", "run.yaml", "--fast", "--learning_rate", "0", "--temperature", "64"]) == 1
    said = capsys.readouterr().out
    assert said.index("error    learning_rate: 0") < said.index("warning  temperature: 64")
    assert "         -> set it, for example 5e-5" in said
    assert said.strip().split("\n")[-1].startswith("1 error, 1 warning")
    assert max(map(len, said.split("\n"))) <= 100
    assert main(["doctor", "run.yaml", "--fast", "--json", "--learning_rate", "0"]) == 1
    found = json.loads(capsys.readouterr().out)["findings"]
    assert found[0]["severity"] == "error" and found[0]["name"] == "learning_rate"
