"""``python -m bench.tasks.gradients``: two effects on the gradient that every distillation meets, measured.

With trained models and real text: how the gradient of the divergence changes with the temperature, with and
without the factor T² (Hinton et al. 2015, section 2), and how wrong the gradient becomes if each micro-batch
is averaged by itself. The numbers go to ``gradients.json`` in the folder of the records, from which
``python -m bench.tasks`` writes its section of the page.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import fastkd

TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 16.0)
# Rows of a batch, and into how many micro-batches it is cut.
ROWS, PIECES = 32, (1, 2, 4, 8, 16, 32)
BATCHES, LONGEST = 8, 128
NAME = "gradients.json"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.tasks.gradients", description=__doc__)
    parser.add_argument("--student", required=True, help="directory of a causal language model")
    parser.add_argument("--teacher", required=True, help="directory of its teacher")
    parser.add_argument("--text", required=True, type=Path, help="text file; blank lines part its passages")
    parser.add_argument("--records", type=Path, default=Path("bench/results/tasks"))
    options = parser.parse_args(arguments)
    tokenizer = AutoTokenizer.from_pretrained(options.student)
    passages = [passage for passage in options.text.read_text("utf-8").split("\n\n") if passage.strip()]
    rows = [tokenizer(passage)["input_ids"][:LONGEST] for passage in passages]
    batches = list(_batches([row for row in rows if len(row) > 1]))
    if not batches:
        parser.error(f"{options.text} has fewer than {ROWS} passages between blank lines")
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(folder).float().eval()
        for folder in (options.student, options.teacher)
    )
    teacher.requires_grad_(False)
    found = {
        "text": options.text.as_posix(),
        "student": Path(options.student).as_posix(),
        "teacher": Path(options.teacher).as_posix(),
        "batches": len(batches),
        "rows": ROWS,
        "temperature": _by_temperature(student, teacher, batches),
        "accumulation": _by_accumulation(student, teacher, batches),
    }
    options.records.mkdir(parents=True, exist_ok=True)
    (options.records / NAME).write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    print("\n".join(section(found)))
    return 0


def section(found: dict[str, Any]) -> list[str]:
    """The lines of the page about these numbers."""
    lines = [
        "## Temperature and accumulation",
        "",
        f"Means over {found['batches']} batches of {found['rows']} passages:",
        "",
        "```sh",
        f"python -m bench.tasks.gradients --student {found['student']} --teacher {found['teacher']} \\",
        f"  --text {found['text']}",
        "```",
        "",
        "The gradient of forward KL at the student's logits, as a multiple of that of the cross-entropy.",
        "Hinton et al. (2015, section 2) multiply by T², because the gradient fades with the temperature and",
        "the labels take over.",
        "",
        "| temperature | with T² | without |",
        "| ---: | ---: | ---: |",
        *(
            f"| {one['temperature']:g} | {one['with']:.3f} | {one['without']:.4f} |"
            for one in found["temperature"]
        ),
        "",
        "The gradient of the loss (half forward KL, half cross-entropy) at the student's weights, where a",
        "batch is cut into micro-batches: its relative distance from that of the whole batch. A mean of the",
        "micro-batches' means gives tokens of short passages too much weight. fastkd divides by the tokens",
        "of the whole batch (`num_items`).",
        "",
        "| micro-batches | mean of means | fastkd |",
        "| ---: | ---: | ---: |",
        *(f"| {one['pieces']} | {one['means']:.1%} | {one['fastkd']:.1e} |" for one in found["accumulation"]),
        "",
    ]
    return lines


def _batches(rows: list[list[int]]) -> Iterator[list[list[int]]]:
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    for start in range(0, min(len(rows) // ROWS, BATCHES) * ROWS, ROWS):
        yield [rows[i] for i in order[start : start + ROWS]]


def _padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Inputs and labels of rows that are padded on the right. Causal models need no mask for that."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = labels[i, : len(row)] = torch.tensor(row)
    return ids, labels[:, 1:]


def _by_temperature(student: Any, teacher: Any, batches: list[list[list[int]]]) -> list[dict[str, float]]:
    ratios: dict[tuple[float, bool], list[float]] = {}
    for rows in batches:
        ids, labels = _padded(rows)
        with torch.no_grad():
            own, given = (model(ids).logits[:, :-1].contiguous() for model in (student, teacher))
        scale = _norm(own, None, labels, 0.0, 1.0, True)
        for temperature in TEMPERATURES:
            for squared in (True, False):
                norm = _norm(own, given, labels, 1.0, temperature, squared)
                ratios.setdefault((temperature, squared), []).append(norm / scale)
    return [
        {
            "temperature": temperature,
            "with": statistics.fmean(ratios[temperature, True]),
            "without": statistics.fmean(ratios[temperature, False]),
        }
        for temperature in TEMPERATURES
    ]


def _norm(
    own: Tensor, given: Tensor | None, labels: Tensor, ratio: float, temperature: float, squared: bool
) -> float:
    """The norm of the loss's gradient at the student's logits."""
    own = own.clone().requires_grad_()
    fastkd.kd_loss(own, given, labels, kd_ratio=ratio, temperature=temperature, t_squared=squared).backward()
    assert own.grad is not None
    return float(own.grad.norm())


def _by_accumulation(student: Any, teacher: Any, batches: list[list[list[int]]]) -> list[dict[str, float]]:
    distances: dict[tuple[int, bool], list[float]] = {}
    for rows in batches:
        whole = _gradient(student, teacher, rows, 1, False)
        for pieces in PIECES:
            for means in (True, False):
                distance = (_gradient(student, teacher, rows, pieces, means) - whole).norm() / whole.norm()
                distances.setdefault((pieces, means), []).append(float(distance))
    return [
        {
            "pieces": pieces,
            "means": statistics.fmean(distances[pieces, True]),
            "fastkd": statistics.fmean(distances[pieces, False]),
        }
        for pieces in PIECES
    ]


def _gradient(student: Any, teacher: Any, rows: list[list[int]], pieces: int, means: bool) -> Tensor:
    """The student's gradient, accumulated over micro-batches.

    Args:
        student, teacher: the models.
        rows: the batch.
        pieces: number of micro-batches.
        means: average each micro-batch by itself, and then these means.
    """
    student.zero_grad()
    size = math.ceil(len(rows) / pieces)
    items = sum(len(row) - 1 for row in rows)
    for start in range(0, len(rows), size):
        ids, labels = _padded(rows[start : start + size])
        with torch.no_grad():
            given = teacher(ids).logits[:, :-1]
        loss = fastkd.kd_loss(
            student(ids).logits[:, :-1], given, labels, kd_ratio=0.5, num_items=None if means else items
        )
        (loss / pieces if means else loss).backward()
    return torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])


if __name__ == "__main__":
    raise SystemExit(main())
