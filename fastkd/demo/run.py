"""Runs the demo: trains a teacher, a student that learns from it, and the same student without it."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from transformers.utils import logging as transformers_logging

from fastkd import available_backends
from fastkd.corpora.tasks import TASKS
from fastkd.demo import loss_share, picture, text
from fastkd.directories import claimed
from fastkd.runs import report
from fastkd.runs.measuring import Measuring, TeacherSeen
from fastkd.runs.output_directory import refuse_other_commands
from fastkd.runs.train import control_of, train_one
from fastkd.trainer import DistillationConfig


@dataclass(frozen=True)
class Size:
    """Width, depth and heads of a Llama."""

    hidden: int
    layers: int
    heads: int


@dataclass(frozen=True)
class Plan:
    """Sizes of a demo. The number of steps is fixed, so a run can be repeated on a machine of any speed."""

    files: int | None = None  # None: all
    held_out_share: float = 0.05
    vocabulary: int = 16384
    length: int = 128
    batch: int = 4  # small, for many steps, which small models on little text need
    teacher: Size = Size(192, 4, 3)
    teacher_steps: int = 800
    student: Size = Size(96, 2, 2)
    student_steps: int = 400
    transfer_pieces: int = 1000  # pieces that the students see; the teacher sees all that is not held out
    held_out_pieces: int = 160
    evaluations: int = 5
    kd_ratio: float = 0.5
    temperature: float = 1.0
    repeats: int = 5


QUICK = Plan(
    files=60,
    vocabulary=2048,
    length=64,
    teacher=Size(64, 2, 2),
    teacher_steps=30,
    student=Size(32, 1, 2),
    student_steps=20,
    transfer_pieces=100,
    held_out_pieces=24,
    evaluations=2,
    repeats=2,
)
STAGES = 7


def run(output_dir: Path, seed: int = 0, quick: bool = False) -> dict[str, Any]:
    """Run the demo with progress, and write three models, ``curves.png``, ``report.json`` and ``report.html``
    into ``output_dir``.

    Returns:
        The report.

    Raises:
        ValueError: the directory holds the files of another command, or another run writes into it.
    """
    refuse_other_commands(output_dir, "demo")
    with claimed(output_dir):
        return _run(output_dir, seed, quick)


def _run(output_dir: Path, seed: int, quick: bool) -> dict[str, Any]:
    plan = QUICK if quick else Plan()
    began = time.perf_counter()
    transformers_logging.disable_progress_bar()
    _say(f"fastkd demo: torch {torch.__version__}, {torch.get_num_threads()} threads, backend {_backend()}")

    texts = text.documents()
    if plan.files is not None:
        texts = dict(list(texts.items())[: plan.files])
    seen, held_out = text.split(texts, plan.held_out_share, seed)
    characters = sum(map(len, texts.values())) / 1e6
    _stage(1, f"text: {len(texts)} files of Python's own library and help, {characters:.1f} M characters")
    _say(f"  {len(held_out)} whole files are held out for evaluation")

    _stage(2, f"vocabulary: byte-level BPE of {plan.vocabulary} entries, and the text in tokens")
    tokenizer = text.train_tokenizer(seen, plan.vocabulary)
    args = _settings(plan, output_dir / "teacher", seed, plan.teacher_steps, learning_rate=1.5e-3)
    encode = TASKS["causal_lm"].tokenize
    train = encode(Dataset.from_dict({"text": seen}), tokenizer, args, "training text")
    dev = encode(Dataset.from_dict({"text": held_out}), tokenizer, args, "held-out text")
    dev = dev.shuffle(seed=seed).select(range(min(plan.held_out_pieces, len(dev))))
    transfer = train.shuffle(seed=seed).select(range(min(plan.transfer_pieces, len(train))))
    tokens = sum(map(len, train["input_ids"]))
    _say(f"  {tokens:,} tokens for the teacher, {sum(map(len, transfer['input_ids'])):,} for the students")

    found: dict[str, Any] = {"command": "demo", "seed": seed, "quick": quick}
    _stage(3, "teacher: plain training on all of the text (what `fastkd train` does)")
    set_seed(seed)
    teacher = _llama(plan.teacher, tokenizer, plan.length)
    args.kd_ratio = 0.0
    found["teacher"], _ = train_one(args, "  teacher", teacher, None, train, None, tokenizer)

    args = _settings(plan, output_dir / "student", seed, plan.student_steps, learning_rate=2e-3)
    args.eval_steps = max(1, plan.student_steps // plan.evaluations)
    of_teacher = TeacherSeen()  # the teacher is evaluated once, and both models are compared with it
    for number, name in ((4, "student"), (5, "control")):
        what = "on a small part of the text, with the teacher (what `fastkd distill` does)"
        _stage(number, f"{name}: " + (what if name == "student" else "the same without the teacher"))
        settings = args if name == "student" else control_of(args)
        settings.output_dir = str(output_dir / name)
        set_seed(seed)
        student = _llama(plan.student, tokenizer, plan.length)
        look = Measuring(settings, tokenizer, dev, seen=of_teacher)
        rows = transfer, dev, tokenizer
        found[name], _ = train_one(settings, f"  {name}", student, teacher, *rows, look=look)
    # The command repeats the demo; no configuration file describes it.
    command = ["fastkd", "demo", "--output-dir", str(output_dir), "--seed", str(seed)] + ["--quick"] * quick
    found |= report.about(args, "demo") | {"configuration": {}, "repeat": shlex.join(command)}
    found["teacher"] |= report.teacher_part(found["student"]["eval"])

    _stage(6, "cost: the loss's share of a training step, ours and by hand (heads included)")
    batch = torch.tensor(
        [piece for piece in transfer["input_ids"] if len(piece) == plan.length][: plan.batch]
    )
    batch = batch.to(student.device)
    shares = loss_share.measure(student, teacher, batch, plan.kd_ratio, plan.temperature, plan.repeats)
    found["loss_share"] = shares

    _stage(7, "result")
    found["seconds"] = time.perf_counter() - began
    report.write(output_dir, found)
    picture.draw(found, output_dir / "curves.png")
    _say("\n" + report.table(report.rows(found)) + "\n")
    _say("Perplexity and agreement with the teacher are on the held-out files.")
    _say(_verdict(found) + "\n")
    _say(loss_share.describe(shares) + "\n")
    _say(
        f"{found['seconds']:.0f} s in all. "
        f"Wrote {output_dir / 'report.html'}, {output_dir / 'curves.png'}, "
        f"{output_dir / 'report.json'} and the models beside them"
    )
    return found


def _settings(
    plan: Plan, output_dir: Path, seed: int, steps: int, learning_rate: float
) -> DistillationConfig:
    return DistillationConfig(
        output_dir=str(output_dir),
        seed=seed,
        max_length=plan.length,
        packing=True,
        max_steps=steps,
        per_device_train_batch_size=plan.batch,
        per_device_eval_batch_size=2 * plan.batch,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 10),
        adam_beta2=0.98,
        weight_decay=0.01,
        kd_ratio=plan.kd_ratio,
        temperature=plan.temperature,
        eval_strategy="no" if output_dir.name == "teacher" else "steps",
        save_strategy="no",
        logging_steps=10,
        report_to="none",
        disable_tqdm=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _llama(size: Size, tokenizer: PreTrainedTokenizerFast, length: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=size.hidden,
            intermediate_size=8 * size.hidden // 3 // 32 * 32,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.heads,
            max_position_embeddings=2 * length,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def _verdict(found: dict[str, Any]) -> str:
    student, control = (found[name]["eval"]["perplexity"] for name in ("student", "control"))
    if student < control:
        return f"The distilled student's perplexity is {1 - student / control:.0%} lower than the control's."
    return f"The distilled student did not beat the control: perplexity {student:.1f} against {control:.1f}."


def _backend() -> str:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return next(
        (
            name.split(":")[0]
            for name, state in available_backends().items()
            if name.endswith(device) and state == "available"
        ),
        "none",
    )


def _stage(number: int, what: str) -> None:
    _say(f"[{number}/{STAGES}] {what}")


def _say(what: str) -> None:
    print(what, flush=True)
