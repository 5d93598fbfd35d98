"""``python -m bench.estimators``: how near the gradients of a few tokens come to that of the reverse KL.

The student's and the teacher's distributions are random ones over 1,000 tokens at 64 positions, as uncertain
as small language models. For each number of draws the gradients at the logits are averaged, and compared
with the exact gradient of the reverse KL. The picture goes to ``docs/sampled.png``, and the table that
docs/losses.md has is printed.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import fastkd

POSITIONS, COLUMNS, REPEATS = 64, 1000, 5
DRAWS = (1, 4, 16, 64, 256, 1024, 4096)
# Entries of the sparse teachers that are compared with draws.
ENTRIES = (1, 16, 64)


def sides(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits of student and teacher, ``(64, 1000)`` in float64: heavy-tailed, and alike."""
    generator = torch.Generator().manual_seed(seed)

    def noise() -> Tensor:
        return torch.randn(POSITIONS, COLUMNS, generator=generator, dtype=torch.float64)

    shared = 2.2 * noise()
    return shared + 0.8 * noise(), shared + 0.8 * noise()


def sampled_gradient(student: Tensor, teacher: Tensor, estimator: str, draws: int, seed: int) -> Tensor:
    """The mean gradient at the logits over so many draws at every position."""
    own = student.clone().requires_grad_()
    logs, given = own.log_softmax(-1), teacher.log_softmax(-1)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.multinomial(logs.detach().exp(), draws, replacement=True, generator=generator)
    loss = fastkd.sampled_kd_loss(logs.gather(-1, ids), given.gather(-1, ids), estimator=estimator)
    return torch.autograd.grad(loss, own)[0]


def exact_gradient(student: Tensor, teacher: Tensor | fastkd.SparseTeacher, divergence: str) -> Tensor:
    own = student.clone().requires_grad_()
    loss = fastkd.kd_loss(own, teacher, kd_ratio=1.0, divergence=divergence, backend="reference")
    return torch.autograd.grad(loss, own)[0]


def angle(found: Tensor, wanted: Tensor) -> float:
    """The angle between two gradients, in degrees."""
    cosine = torch.nn.functional.cosine_similarity(found.flatten(), wanted.flatten(), 0)
    return math.degrees(math.acos(min(1.0, float(cosine))))


def measured() -> tuple[dict[str, list[float]], dict[str, float]]:
    """The angles for each estimator and number of draws, and those that no number of draws changes."""
    student, teacher = sides()
    wanted = exact_gradient(student, teacher, "reverse_kl")
    curves = {
        name: [
            statistics.fmean(
                angle(sampled_gradient(student, teacher, name, draws, seed), wanted)
                for seed in range(REPEATS)
            )
            for draws in DRAWS
        ]
        for name in ("k1", "k3")
    }
    fixed = {
        f"top {k}, the rest in a bucket": angle(
            exact_gradient(
                student, fastkd.SparseTeacher.from_logits(teacher, k, tail="bucket"), "reverse_kl"
            ),
            wanted,
        )
        for k in ENTRIES
    }
    fixed["forward KL"] = angle(exact_gradient(student, teacher, "forward_kl"), wanted)
    return curves, fixed


def draw(curves: dict[str, list[float]], fixed: dict[str, float], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from fastkd.bench.plot import FAINT, STYLE

    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
        titles = {"k1": "k1 and k2", "k3": "k3"}
        for (name, angles), colour in zip(curves.items(), ("#0f7b6c", "#d9822b"), strict=True):
            axes.plot(DRAWS, angles, marker="o", color=colour, label=titles[name])
        styles = ("--", ":", "-.", (0, (1, 3)))
        for (name, value), style in zip(fixed.items(), styles, strict=True):
            axes.axhline(value, color="#777777", linestyle=style, linewidth=1, label=name)
        axes.set_xscale("log")
        axes.set_xticks(DRAWS, [f"{n:,}" for n in DRAWS])
        axes.set_xlabel("draws at each position")
        axes.set_ylabel("degrees from the gradient of the reverse KL")
        axes.set_ylim(0, 90)
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        axes.legend(frameon=False, fontsize=9)
        figure.savefig(path, dpi=120, metadata={"Software": None})
        plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.estimators", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("docs"), help="folder of the picture (default: docs)"
    )
    options = parser.parse_args(arguments)
    curves, fixed = measured()
    print("| draws | k1, k2 | k3 |\n| ---: | ---: | ---: |")
    for i, draws in enumerate(DRAWS):
        print(f"| {draws:,} | {curves['k1'][i]:.1f}° | {curves['k3'][i]:.1f}° |")
    for name, value in fixed.items():
        print(f"{name}: {value:.1f}°")
    options.out.mkdir(parents=True, exist_ok=True)
    draw(curves, fixed, options.out / "sampled.png")
    print(f"wrote {options.out / 'sampled.png'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
