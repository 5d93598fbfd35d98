"""One call for each combination of loss and teacher, on tensors that can be refilled in place, with its
expected result.

Numbers are made on the CPU from a seed, so that they are the same on every device.
"""

from __future__ import annotations

from typing import Any

import torch
from support.closeness import assert_gradient, assert_value, during
from support.oracle import Sparse, kd_loss as oracle_loss
from torch import Tensor

import fastkd

# (loss, kind of teacher)
WAYS = (
    *(("dense", "logits"), ("dense", "sparse"), ("inplace", "logits"), ("inplace", "sparse")),
    *(("linear", "logits"), ("linear", "hidden"), ("linear", "sparse")),
)
K, WIDTHS, CHUNK = 16, (24, 40), 5


class Case:
    """``rows`` tokens over ``vocab`` columns.

    Args:
        way: an entry of ``WAYS``.
        metrics: also compute the metrics. Calls without metrics use different kernels.
        options: options of the loss. They override defaults that make every term of the loss nonzero.
    """

    def __init__(
        self,
        way: tuple[str, str],
        device: str,
        backend: str,
        rows: int = 12,
        vocab: int = 1000,
        dtype: torch.dtype = torch.float32,
        metrics: bool = False,
        **options: Any,
    ) -> None:
        self.with_metrics = metrics
        self.metrics: Any = ()  # metrics of the last run
        self.way, self.rows, self.vocab = way, rows, vocab
        temperature = 1.0 if way[1] == "sparse" else 2.0
        arithmetic = {"kd_ratio": 0.6, "temperature": temperature, "label_smoothing": 0.1, "z_loss": 1e-3}
        self.options = {**arithmetic, **options}
        self.backend = backend
        self.host: dict[str, Tensor] = {}
        self.refill(0)
        self.device = {name: x.to(device, copy=True) for name, x in self.host.items()}
        for name in ("student", "hidden", "weight", "bias"):
            self.device[name] = self.device[name].to(dtype).requires_grad_()
        for name in ("logits", "teacher_hidden", "teacher_weight"):
            self.device[name] = self.device[name].to(dtype)

    def refill(self, seed: int) -> None:
        """Write other numbers to the same memory."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int, std: float = 1.0) -> Tensor:
            return torch.randn(shape, generator=generator) * std

        rows, vocab, width, teacher_width = self.rows, self.vocab, *WIDTHS
        labels = torch.randint(0, vocab, (rows,), generator=generator)
        labels[seed % rows] = -100
        chosen = torch.rand(rows, vocab, generator=generator).argsort(-1)[:, :K]
        made = {
            "student": normal(rows, vocab, std=2.0),
            "logits": normal(rows, vocab, std=2.0),
            "hidden": normal(rows, width),
            "weight": normal(vocab, width, std=0.4),
            "bias": normal(vocab, std=0.1),
            "teacher_hidden": normal(rows, teacher_width),
            "teacher_weight": normal(vocab, teacher_width, std=0.3),
            "indices": chosen,
            "logprobs": torch.log_softmax(normal(rows, K), -1) - 0.2,
            "labels": labels,
            "weights": torch.rand(rows, generator=generator),
            "items": torch.tensor(float(rows - 2)),
        }
        with torch.no_grad():
            for name, x in made.items():
                if self.host:
                    self.device[name].copy_(x)
        self.host = made

    @property
    def leaves(self) -> dict[str, Tensor]:
        names = ("hidden", "weight", "bias") if self.way[0] == "linear" else ("student",)
        return {name: self.device[name] for name in names}

    def _teacher(self, x: dict[str, Tensor]) -> Any:
        if self.way[1] == "sparse":
            return fastkd.SparseTeacher(x["indices"], x["logprobs"], "bucket")
        if self.way[1] == "hidden":
            return fastkd.HiddenTeacher(x["teacher_hidden"], x["teacher_weight"], logit_scale=0.5)
        return x["logits"]

    def run(self) -> Tensor:
        """Run forward, and backward into fresh gradients; return the loss."""
        for leaf in self.leaves.values():
            leaf.grad = None
        loss, self.metrics = self.forward()
        (3.0 * loss).backward()
        return loss.detach()

    def forward(self) -> tuple[Tensor, Any]:
        """Return the loss and the metrics; the metrics are ``()`` where the case has none."""
        x = self.device
        options = {
            "token_weights": x["weights"], "num_items": x["items"], "return_metrics": self.with_metrics,
            "backend": self.backend, **self.options,
        }  # fmt: skip
        if self.way[0] == "linear":
            found = fastkd.linear_kd_loss(
                x["hidden"], x["weight"], self._teacher(x), x["labels"], student_bias=x["bias"],
                logit_softcap=15.0, **{"chunk_size": CHUNK, **options},
            )  # fmt: skip
        else:
            inplace = self.way[0] == "inplace"
            student = x["student"] * 1.0 if inplace else x["student"]
            found = fastkd.kd_loss(student, self._teacher(x), x["labels"], inplace=inplace, **options)
        return found if self.with_metrics else (found, ())

    def results(self) -> list[Tensor]:
        """Run, and return copies of the loss, the metrics and the gradients."""
        found = [self.run(), *self.metrics, *(leaf.grad for leaf in self.leaves.values())]
        return [x.clone() for x in found if x is not None]

    def expected(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The oracle's loss and gradients in float64, from the numbers on the device."""
        x = {name: value.detach().cpu() for name, value in self.device.items()}
        x = {name: value.double() if value.is_floating_point() else value for name, value in x.items()}
        leaves = {name: x[name].requires_grad_() for name in self.leaves}
        student = x["student"]
        if self.way[0] == "linear":
            student = 15.0 * torch.tanh((x["hidden"] @ x["weight"].t() + x["bias"]) / 15.0)
        teacher: Any = x["logits"]
        if self.way[1] == "sparse":
            teacher = Sparse(x["indices"], x["logprobs"], "bucket")
        elif self.way[1] == "hidden":
            teacher = 0.5 * (x["teacher_hidden"] @ x["teacher_weight"].t())
        options = {k: v for k, v in self.options.items() if k not in ("chunk_size", "vocab_size")}
        loss = oracle_loss(
            student, teacher, x["labels"], token_weights=x["weights"], num_items=float(x["items"]), **options
        )
        grads = torch.autograd.grad(3.0 * loss, list(leaves.values()))
        return loss.detach(), dict(zip(leaves, grads, strict=True))

    def check(self, loss: Tensor) -> None:
        """Compare the loss of a run, and the gradients that it left, with the oracle's."""
        sixteen = self.device["student"].dtype in (torch.bfloat16, torch.float16)
        linear = self.way[0] == "linear"
        expected, grads = self.expected()
        # With a 16-bit head the logits themselves are rounded to 16 bits.
        loose = 2e-2 if sixteen and linear else None
        with during(way=self.way, dtype=self.device["student"].dtype):
            assert_value(loss.cpu(), expected, rtol=loose, atol=loose or 3e-6)
            for name, leaf in self.leaves.items():
                assert leaf.grad is not None and leaf.grad.device == leaf.device
                assert_gradient(leaf.grad, grads[name], factor=(10.0 if sixteen else 6.0) if linear else 2.0)
