"""Test ``fastkd estimate``: its counts, the settings it suggests that need less, and its text."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from support.families import bert
from support.tensor_bytes import bytes_of
from support.tiny import llama
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.trainer_pt_utils import LengthGroupedSampler

from fastkd.cli import main
from fastkd.runs.estimate import Shape, estimate, run_step, trial
from fastkd.runs.estimate.caches import cache_sizes
from fastkd.runs.estimate.lengths import lengths
from fastkd.runs.estimate.optimizers import optimizer_bytes
from fastkd.runs.estimate.speed import Machine, seconds_per_step
from fastkd.runs.estimate.text import duration, size, text
from fastkd.trainer import DistillationConfig

Configuration = Callable[..., DistillationConfig]


def test_copies_of_layers_touch_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`peft` deep-copies a classifier's head. Fake tensors have no bytes, so none must be copied."""
    pytest.importorskip("peft")
    bert(0).save_pretrained(tmp_path / "student")

    def copied(storage: Any, memo: Any) -> Any:
        raise AssertionError("the bytes of a storage were copied")

    monkeypatch.setattr(torch.UntypedStorage, "__deepcopy__", copied)
    monkeypatch.setattr(torch.TypedStorage, "_deepcopy", copied)
    args = DistillationConfig(
        output_dir=str(tmp_path),
        task="classification",
        model=str(tmp_path / "student"),
        kd_ratio=0.0,
        peft_config={"peft_type": "LORA", "r": 8},
        use_cpu=True,
    )
    args.class_names = ["a", "b", "c"]
    step = run_step(args, Shape(8, 4))
    assert step.reason is None
    assert step.trained < step.parameters


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two models without weights, a tokenizer of words, 30 rows of 3 to 8 words, and a
    configuration."""
    monkeypatch.chdir(tmp_path)
    words = {word: i for i, word in enumerate(["<end>", "<unk>", *(f"w{i}" for i in range(46))])}
    made = Tokenizer(models.WordLevel(words, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    for name, hidden in (("student", 16), ("teacher", 32)):
        llama(hidden=hidden).config.save_pretrained(name)
        PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", unk_token="<unk>").save_pretrained(
            name
        )
    lines = [" ".join(f"w{(i + j) % 46}" for j in range(3 + i % 6)) for i in range(30)]
    Path("text.txt").write_text("\n".join(lines))
    settings = {
        "model": "student",
        "model_init": "scratch",
        "teacher": "teacher",
        "train_file": "text.txt",
        "max_length": 32,
        "per_device_train_batch_size": 4,
        "output_dir": "out",
        "use_cpu": True,
    }
    Path("run.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path


@pytest.fixture
def no_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the remedies, because each of them takes a simulated step."""
    monkeypatch.setattr("fastkd.runs.estimate.remedies", lambda *_: [])


def settings_of(folder: Path, **fields: Any) -> DistillationConfig:
    return DistillationConfig(**{**yaml.safe_load((folder / "run.yaml").read_text()), **fields})


@pytest.mark.usefixtures("no_remedies")
def test_no_weights_are_needed(workplace: Path) -> None:
    assert not list(workplace.rglob("*.safetensors"))
    found = estimate(settings_of(workplace), timed=False)
    assert found.train.rows == 30 and found.train.longest == Shape(4, 9)  # eight words and the end token
    assert found.train.targets == pytest.approx(6.5)
    assert found.steps == 24  # 3 epochs of 8 batches
    assert found.machine is None and found.seconds_per_step is None
    assert found.generated_tokens == 30 * 256
    parts = found.step.phases[found.step.phase]
    assert parts["student weights"] == bytes_of([*(model := llama(hidden=16)).parameters(), *model.buffers()])
    assert parts["optimizer state"] == 8 * found.step.trained


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_the_usual_batch_is_that_of_an_epoch(workplace: Path, strategy: str) -> None:
    """Batches that are grouped by length need less padding, and so less time."""
    lines = [" ".join(["w1"] * (1 + i * 7 % 31)) for i in range(400)]
    Path("text.txt").write_text("\n".join(lines))
    args = settings_of(workplace, train_sampling_strategy=strategy)
    found = lengths("train_file", args, args.per_device_train_batch_size)
    encoded = [{"input_ids": list(range(len(line.split()) + 1))} for line in lines]
    torch.manual_seed(0)
    order = (
        list(LengthGroupedSampler(4, dataset=encoded))
        if strategy == "group_by_length"
        else torch.randperm(len(encoded)).tolist()
    )
    longest = [max(len(encoded[i]["input_ids"]) for i in order[n : n + 4]) for n in range(0, len(order), 4)]
    assert found is not None
    assert found.usual.length == pytest.approx(sum(longest) / len(longest), abs=1)
    drawn = [shape.length for shape in found.drawn]
    assert drawn[0] == pytest.approx(statistics.median(longest), abs=2)
    assert sorted(drawn[-2:]) == [min(drawn), max(drawn)] and min(drawn) < max(drawn) <= max(longest)


@pytest.mark.usefixtures("no_remedies")
@pytest.mark.parametrize("packing", [True, False])
def test_batches_of_many_lengths_break_up_the_heap(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, packing: bool
) -> None:
    monkeypatch.setattr(trial, "tried", lambda args, *_: trial.Trial((1.0, 2.0), 1000))
    monkeypatch.setattr("fastkd.runs.estimate.measure", lambda *_: Machine(1e9, 1e9, 1e-6))
    found = estimate(settings_of(workplace, packing=packing, max_length=16))
    activations = found.step.phases[found.step.phase]["activations"]
    assert found.tried_bytes == 1000 + (0 if packing else round(trial.SCATTERED * activations))
    assert "drawn" not in json.dumps(found.to_dict())


@pytest.mark.usefixtures("no_remedies")
def test_packed_rows_are_as_long_as_max_length(workplace: Path) -> None:
    found = estimate(settings_of(workplace, packing=True, max_length=16), timed=False)
    assert found.train.longest == Shape(4, 16)
    # A packed txt file is one text: 30 lines of 5.5 words on average, and one end token.
    assert found.train.rows == 11


@pytest.mark.usefixtures("no_remedies")
def test_longer_rows_that_were_not_seen_are_mentioned(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert estimate(settings_of(workplace), timed=False).at_full_length is None
    monkeypatch.setattr("fastkd.corpora.sample.MOST", 10)
    found = estimate(settings_of(workplace), timed=False)
    assert found.train.source == "the longest of 10 of 30 rows"
    assert found.at_full_length is not None and found.at_full_length > found.step.peak


def test_remedies_lower_the_peak_as_stated(workplace: Path) -> None:
    args = settings_of(workplace, per_device_train_batch_size=16, max_length=32)
    found = estimate(args, timed=False)
    assert found.remedies
    by_name = {next(iter(r.settings)): r for r in found.remedies}
    for remedy in found.remedies:
        assert remedy.peak < 0.95 * found.step.peak
    halved = by_name["per_device_train_batch_size"]
    assert halved.settings == {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    # An estimate with the remedy's settings gives the bytes that the remedy promises.
    for name, value in halved.settings.items():
        setattr(args, name, value)
    assert estimate(args, timed=False).step.peak == halved.peak


@pytest.mark.slow
def test_the_evaluation_may_need_most(workplace: Path) -> None:
    """If evaluation has the peak, the estimate says so and suggests a smaller evaluation batch."""
    args = settings_of(workplace, eval_file="text.txt", per_device_train_batch_size=1)
    args.per_device_eval_batch_size = 64
    found = estimate(args, timed=False)
    assert found.step.phase == "evaluation"
    assert found.remedies[0].settings == {"per_device_eval_batch_size": 32}


def test_fsdp_shares_and_ddp_adds_buckets(workplace: Path, configuration: Configuration) -> None:
    """FSDP shards the student's memory over the processes; DDP adds buckets as large as the gradients."""
    args, shape = settings_of(workplace), Shape(2, 8)
    alone = run_step(args, shape).phases["optimizer step"]
    ddp = run_step(args, shape, processes=4).phases["optimizer step"]
    assert ddp["gradients"] == 2 * alone["gradients"]
    args.fsdp = [transformers.training_args.FSDPOption.FULL_SHARD]
    shared = run_step(args, shape, processes=4).phases["optimizer step"]
    assert shared["optimizer state"] == alone["optimizer state"] // 4
    assert shared["gradients"] == pytest.approx(alone["gradients"] / 4, abs=64)
    assert shared["student weights"] < alone["student weights"]
    assert shared["teacher weights"] == alone["teacher weights"]


def test_quantised_teachers_are_smaller(workplace: Path) -> None:
    args, shape = settings_of(workplace), Shape(2, 8)
    plain = run_step(args, shape).phases["optimizer step"]["teacher weights"]
    args.teacher_model_init_kwargs = {"quantization_config": {"load_in_4bit": True}}
    small = run_step(args, shape).phases["optimizer step"]["teacher weights"]
    assert small < plain / 2


def test_quantised_students_are_smaller(workplace: Path) -> None:
    pytest.importorskip("peft")
    args, shape = settings_of(workplace), Shape(2, 8)
    args.peft_config = {"r": 2, "target_modules": ["q_proj"]}
    plain = run_step(args, shape).phases["optimizer step"]["student weights"]
    args.model_init_kwargs = {"dtype": "bfloat16"}
    half = run_step(args, shape).phases["optimizer step"]["student weights"]
    args.model_init_kwargs = {"quantization_config": {"load_in_4bit": True}}
    small = run_step(args, shape).phases["optimizer step"]["student weights"]
    assert small < half < plain


@pytest.mark.usefixtures("no_remedies")
def test_on_policy_keeps_keys_and_values(workplace: Path) -> None:
    args = settings_of(workplace, lmbda=0.5, max_completion_length=20)
    found = estimate(args, timed=False)
    # 1 layer, keys and values of 16 float32 numbers each, 4 rows of 20 tokens
    assert found.step.phases["sampling"]["keys and values"] == 2 * 16 * 4 * 4 * 20
    args.sampling_steps, args.gradient_accumulation_steps = 3, 2
    shape = Shape(4, 20)
    assert run_step(args, shape).phases["sampling"]["keys and values"] == 2 * 16 * 4 * 4 * 20 * 3 * 2


@pytest.mark.usefixtures("no_remedies")
def test_an_engine_has_the_weights_once_more(workplace: Path) -> None:
    """In the precision of training, and with its keys and values if their size is set; else a note says what
    it takes of the device.
    """
    args = settings_of(workplace, lmbda=0.5, sampler="vllm")
    found = estimate(args, timed=False)
    weights = found.step.phases["optimizer step"]["student weights"]
    assert all(parts["sampling engine"] == weights for parts in found.step.phases.values())
    assert "sampling" not in found.step.phases
    assert "takes 30% of the device" in text(found, args)
    args = settings_of(workplace, lmbda=0.5, sampler="vllm", bf16=True)
    args.sampler_kwargs = {"kv_cache_memory_bytes": 1000}
    found = estimate(args, timed=False)
    assert found.step.phases["optimizer step"]["sampling engine"] == weights // 2 + 1000
    assert "of the device" not in text(found, args)


def test_a_cached_teacher_has_no_weights(workplace: Path) -> None:
    found = run_step(settings_of(workplace, teacher="cache:none"), Shape(2, 8))
    assert found.reason is None and found.flops > 0  # the step has run without data
    assert found.teacher_parameters == 0 and not found.phases[found.phase]["teacher weights"]
    with_head = run_step(settings_of(workplace, teacher="cache:none", cache_kind="hidden"), Shape(2, 8))
    assert with_head.phases["forward"]["teacher weights"] == 48 * 16 * 4


def test_only_weights_are_counted_if_the_model_branches_on_values(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model whose forward reads its data cannot be simulated, so no activations are counted."""
    forward = transformers.LlamaForCausalLM.forward

    def peeking(self: Any, input_ids: Any, **kwargs: Any) -> Any:
        assert int(input_ids.sum()) > 0
        return forward(self, input_ids, **kwargs)

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", peeking)
    found = estimate(settings_of(workplace), timed=False)
    assert found.step.reason and found.remedies == []
    assert found.step.phase == "optimizer step"
    assert found.step.phases["optimizer step"]["gradients"] == 4 * found.step.trained


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("adamw_torch", torch.optim.AdamW),
        ("sgd", torch.optim.SGD),
        ("rmsprop", torch.optim.RMSprop),
        ("adagrad", torch.optim.Adagrad),
        ("adafactor", transformers.Adafactor),
    ],
)
def test_optimizer_bytes_are_those_of_the_optimizer(name: str, make: Any) -> None:
    model = llama(vocab=300)
    made = make(model.parameters(), lr=0.1) if name != "adafactor" else make(model.parameters())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    made.step()
    kept = bytes_of(v for s in made.state.values() for v in s.values() if torch.is_tensor(v) and v.dim())
    assert optimizer_bytes(name, None, model.parameters()) == pytest.approx(kept, rel=0.01, abs=64)


def test_cache_sizes(configuration: Configuration) -> None:
    found = cache_sizes(configuration(), 151_936, 1024, 2, 1000.0)
    assert found["topk"].per_token < 140 and found["sampled"].per_token < 45
    assert found["hidden"].per_token == 2048 and found["hidden"].head == 151_936 * 2048
    assert found["hidden"].total == 2_048_000 + found["hidden"].head
    assert "hidden" not in cache_sizes(configuration(), 3, 0, 4, None)


def test_time_is_a_range_around_the_sum_of_its_parts(workplace: Path) -> None:
    step = run_step(settings_of(workplace), Shape(2, 8))
    slow = Machine(flops=1.0, bandwidth=1e30, call=0.0)
    low, high = seconds_per_step(step, 2, slow)
    assert low < 2 * step.flops < high
    assert seconds_per_step(replace(step, flops=2 * step.flops), 2, slow)[0] == pytest.approx(2 * low)


def test_arithmetic_is_counted(workplace: Path) -> None:
    """The operations of a linear model of known size: 6 per weight and token for the student, 2 for the
    teacher, and 8 for the student's tied head, whose logits the log's metrics compute again.
    """
    args = settings_of(workplace)
    one, two = run_step(args, Shape(2, 8)), run_step(args, Shape(4, 8))
    assert two.flops == pytest.approx(2 * one.flops, rel=0.01)
    inside = sum(p.numel() for n, p in llama(hidden=16).named_parameters() if "layers" in n and p.dim() > 1)
    teacher = sum(p.numel() for n, p in llama(hidden=32).named_parameters() if "layers" in n and p.dim() > 1)
    heads = 48 * (6 * 16 + 2 * 32) + 48 * (2 * 16 + 2 * 32)  # the loss, and the metrics of the log
    assert one.flops == pytest.approx(16 * (6 * inside + 2 * teacher + heads), rel=0.25)


@pytest.mark.usefixtures("no_remedies")
def test_the_command(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "run.yaml", "--processes", "2"]) == 0
    said = capsys.readouterr().out
    for line in (
        "memory at the peak",
        "each of 2 processes",
        "The largest part is",
        "per step",
        "cache topk",
    ):
        assert line in said
    assert main(["estimate", "run.yaml", "--json", "--no-time", "--processes=1"]) == 0
    found = json.loads(capsys.readouterr().out)
    step = found["step"]
    assert step["peak_bytes"] == sum(step["phases"][step["peak_phase"]].values())
    assert found["seconds_per_step"] is None and found["caches"]["topk"]["total"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere"], "model 'nowhere' could not be loaded"),
        (["--teacher", "nowhere"], "teacher 'nowhere' could not be loaded"),
        (["--processes", "0"], "--processes must be a whole number from 1"),
    ],
)
def test_errors(
    workplace: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    for name in ("nowhere",):
        Path(name).mkdir()
    assert main(["estimate", "run.yaml", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_units() -> None:
    assert [size(x) for x in (3, 2048, 5 * 2**20, 2**40)] == ["3 B", "2.0 KiB", "5.0 MiB", "1.0 TiB"]
    assert [duration(x) for x in (0.004, 0.5, 12, 600, 7200, 1e6)] == [
        "4 ms",
        "0.5 s",
        "12 s",
        "10 min",
        "2 h",
        "12 d",
    ]
