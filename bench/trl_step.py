"""``python -m bench.trl_step``: a training step of TRL's trainers, with their own loss and with fastkd's.

The step is ``training_step`` (both models' forward, the loss, the backward) and the optimizer, of tiny Llamas
in float32 on a CPU. ``DistillationTrainer`` gets its samples before; the time for writing them is measured
apart. The two losses take turns, and the ratio is the median of the ratios of neighbours, since other work on
the machine slows both alike. The peak of memory above that before the step is measured in processes of their
own. ``--save`` writes the numbers to ``bench/results/trl-step.json`` and the table into
``docs/integrations.md``; ``--render`` writes the table again.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from fastkd import release_memory
from fastkd.bench import device as devices
from fastkd.bench.memory import status_bytes
from fastkd.bench.trainer import COMMON, llama, tokenizer
from fastkd.bench.versions import versions
from fastkd.integrations.trl import use_fastkd

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "bench" / "results" / "trl-step.json", ROOT / "docs" / "integrations.md"
BEGIN, END = "<!-- bench: begin trl_step -->", "<!-- bench: end -->"
TRAINERS, LOSSES = ("DistillationTrainer", "GKDTrainer"), ("TRL", "fastkd")
NAMED = ("trl", "transformers", "torch")
WARM_UP = 2


def trainer_of(name: str, loss: str, options: argparse.Namespace, folder: str) -> Any:
    library: Any = importlib.import_module("trl" if name == "DistillationTrainer" else "trl.experimental.gkd")
    student = llama(options.vocab, options.hidden, options.layers, 0)
    teacher = llama(options.vocab, 2 * options.hidden, options.layers, 1)
    common = {**COMMON, "bf16": False, "gradient_checkpointing": False}
    if name == "GKDTrainer":
        args = library.GKDConfig(output_dir=folder, lmbda=0.0, **common)
        rows = Dataset.from_dict({"text": [""]})
        made = library.GKDTrainer(
            student, teacher, args, lambda rows: rows, rows, processing_class=tokenizer()
        )
    else:
        args = library.DistillationConfig(
            output_dir=folder,
            max_completion_length=options.length,
            generation_kwargs={"min_new_tokens": options.length},
            **common,
        )
        rows = Dataset.from_dict({"prompt": ["a b"] * options.batch})
        made = library.DistillationTrainer(student, teacher, args, rows, processing_class=tokenizer())
    made.current_gradient_accumulation_steps = 1  # train() sets it
    return use_fastkd(made) if loss == "fastkd" else made


def inputs_of(name: str, options: argparse.Namespace) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(
        2, options.vocab, (options.batch, options.prompt + options.length), generator=generator
    )
    if name == "GKDTrainer":
        labels = ids.clone()
        labels[:, : options.prompt] = -100
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    prompts, completions = ids.split([options.prompt, options.length], 1)
    return {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": completions,
        "completion_mask": torch.ones_like(completions),
        "num_items_in_batch": torch.tensor(float(completions.numel())),
    }


def step_of(trainer: Any, name: str, options: argparse.Namespace) -> Callable[[], float]:
    """A function that runs one step and returns its loss."""
    inputs = inputs_of(name, options)
    model = trainer.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    trainer._prepare_inputs = lambda batch: batch  # the samples are written

    def step() -> float:
        loss = float(trainer.training_step(model, dict(inputs), None))
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def times(name: str, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        trainers = {loss: trainer_of(name, loss, options, folder) for loss in LOSSES}
        writing = None
        if name == "DistillationTrainer":
            generate = trainers["TRL"]._generate_and_score_completions
            prompts = [{"prompt": "a b"}] * options.batch
            writing = statistics.median(seconds(lambda: generate(prompts)) for _ in range(3))
        steps = {loss: step_of(trainer, name, options) for loss, trainer in trainers.items()}
        values = {loss: step() for loss, step in steps.items()}
        found: dict[str, list[float]] = {loss: [] for loss in LOSSES}
        for turn in range(WARM_UP + options.steps):
            for loss in LOSSES if turn % 2 else LOSSES[::-1]:
                found[loss].append(seconds(steps[loss]))
    pairs = list(zip(*(found[loss][WARM_UP:] for loss in LOSSES), strict=True))
    ratios = statistics.quantiles([a / b for a, b in pairs], n=4)
    whole = None
    if writing is not None:
        theirs = statistics.median(a for a, _ in pairs)
        whole = (writing + theirs) / (writing + theirs / ratios[1])
    return {"ratio_quartiles": ratios, "ratio_with_writing": whole, "losses": values, "steps": options.steps}


def peak(name: str, loss: str, options: argparse.Namespace) -> int:
    """Peak bytes of a step above the memory in use before it."""
    with tempfile.TemporaryDirectory() as folder:
        step = step_of(trainer_of(name, loss, options, folder), name, options)
        step()
        gc.collect()
        release_memory()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = status_bytes("VmRSS")
        step()
        return status_bytes("VmHWM") - before


def peak_in_child(name: str, loss: str, arguments: list[str]) -> int:
    command = [sys.executable, "-m", "bench.trl_step", *arguments, "--memory", name, loss]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return int(child.stdout.split()[-1])


def render(run: dict[str, Any]) -> str:
    size, named = run["size"], ", ".join(f"{name} {run['versions'][name]}" for name in NAMED)
    lines = [
        "| trainer | step without fastkd / with (quartiles) | with the writing of the samples "
        "| peak memory of the step, without | with |",
        "|---|---|---|---|---|",
    ]
    for name, entry in run["trainers"].items():
        low, middle, high = entry["ratio_quartiles"]
        whole = entry["ratio_with_writing"]
        memory = " | ".join(f"{entry['peak_bytes'][loss] / 2**20:.0f} MB" for loss in LOSSES)
        with_writing = "-" if whole is None else f"{whole:.2f}"
        lines.append(f"| `{name}` | **{middle:.2f}** ({low:.2f} to {high:.2f}) | {with_writing} | {memory} |")
    about = (
        f"Vocabulary {size['vocab']:,}, hidden sizes {size['hidden']} and {2 * size['hidden']}, "
        f"{size['layers']} layers, {size['batch']} x {size['length']} tokens, float32, "
        f"{size['threads']} thread; {run['device']}; {named}."
    )
    return "\n".join([*lines, "", about])


def write_table(run: dict[str, Any]) -> None:
    before, rest = PAGE.read_text().split(BEGIN)
    _, after = rest.split(END, 1)
    PAGE.write_text(f"{before}{BEGIN}\n{render(run)}\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.trl_step", description=__doc__)
    sizes = {
        "vocab": 32_000,
        "hidden": 128,
        "layers": 2,
        "batch": 4,
        "prompt": 8,
        "length": 128,
        "threads": 1,
    }
    for name, default in {**sizes, "steps": 15}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--memory", nargs=2, metavar=("TRAINER", "LOSS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    if options.render:
        write_table(json.loads(RESULTS.read_text()))
        return
    if options.memory:
        name, loss = options.memory
        print(peak(name, loss, options))
        return
    size = {name: getattr(options, name) for name in sizes}
    arguments = [part for name, number in size.items() for part in (f"--{name}", str(number))]
    run: dict[str, Any] = {"size": size, "device": devices.of("cpu").name(), "versions": versions()}
    run["trainers"] = {name: times(name, options) for name in TRAINERS}
    for name, entry in run["trainers"].items():
        entry["peak_bytes"] = {loss: peak_in_child(name, loss, arguments) for loss in LOSSES}
    print(render(run))
    if options.save:
        RESULTS.write_text(json.dumps(run, indent=1) + "\n")
        write_table(run)


if __name__ == "__main__":
    main()
