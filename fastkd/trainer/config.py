"""The settings of a distillation run: everything ``transformers`` knows, plus the teacher's side."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments

from fastkd import kd_loss

TASKS = ("causal_lm",)
MODEL_INITS = ("pretrained", "scratch")
FUSED_HEADS = ("auto", "true", "false")


@dataclass
class DistillationConfig(TrainingArguments):
    """``transformers.TrainingArguments`` and the fields of a distillation.

    ``label_smoothing_factor`` of ``TrainingArguments`` is honoured inside the loss (it smooths the
    cross-entropy, never the distillation term). ``model``, ``teacher``, the file fields and ``control`` are
    read by the command line; :class:`DistillationTrainer` is handed models and data sets instead.

    Raises:
        ValueError: an unknown task, divergence, ``model_init`` or ``fused_head``, or a number out of range.
    """

    # `TrainingArguments` parses JSON text for these when it comes from a command line.
    _VALID_DICT_FIELDS = [  # noqa: RUF012  an attribute of the base class
        *TrainingArguments._VALID_DICT_FIELDS,
        "teacher_model_init_kwargs",
        "column_mapping",
    ]

    logging_steps: float = field(default=10, metadata={"help": "Log every this many optimizer steps."})

    task: str = field(
        default="causal_lm", metadata={"help": "What the models do; causal_lm is the one there is."}
    )
    model: str | None = field(default=None, metadata={"help": "Student: a directory or hub id."})
    model_init: str = field(
        default="pretrained",
        metadata={
            "help": "pretrained loads the weights of `model`; scratch takes its config and draws new weights."
        },
    )
    teacher: str | None = field(default=None, metadata={"help": "Teacher: a directory or hub id."})
    teacher_model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Keywords of from_pretrained for the teacher (dtype, quantization_config, ...)."},
    )

    kd_ratio: float = field(
        default=0.5,
        metadata={"help": "Share of the distillation loss; the rest is cross-entropy with the labels."},
    )
    divergence: str = field(
        default="forward_kl", metadata={"help": "Divergence from the teacher, as in fastkd.kd_loss."}
    )
    beta: float | None = field(default=None, metadata={"help": "The divergence's beta, where it has one."})
    temperature: float = field(
        default=1.0, metadata={"help": "Softens the student, and the teacher unless it has its own."}
    )
    teacher_temperature: float | None = field(
        default=None, metadata={"help": "Softens the teacher; `temperature` if unset."}
    )
    fused_head: str = field(
        default="auto",
        metadata={
            "help": "auto: hidden states and linear_kd_loss where the head is known linear, else logits; "
            "true: refuse a model whose head is not; false: always logits."
        },
    )

    train_file: str | None = field(
        default=None, metadata={"help": "Training text: txt, json, jsonl, csv or parquet."}
    )
    eval_file: str | None = field(default=None, metadata={"help": "Held-out text, same formats."})
    column_mapping: dict[str, str] | str | None = field(
        default=None, metadata={"help": "Our column name -> the file's, for example {text: body}."}
    )
    max_length: int = field(default=1024, metadata={"help": "Longest sequence, in tokens."})
    packing: bool = field(
        default=False,
        metadata={
            "help": "Join the texts, end-of-text between them, and cut max_length pieces: nothing is lost."
        },
    )
    control: bool = field(
        default=False, metadata={"help": "Also train the same student without the teacher, and report both."}
    )

    def __post_init__(self) -> None:
        # YAML and dataclass callers may write the switch as a boolean.
        self.fused_head = str(self.fused_head).lower()
        for name, allowed in (("task", TASKS), ("model_init", MODEL_INITS), ("fused_head", FUSED_HEADS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be {' or '.join(allowed)}, not {getattr(self, name)!r}")
        if self.max_length < 2:
            raise ValueError(
                f"max_length must be at least 2 (a token and the next one), not {self.max_length}"
            )
        super().__post_init__()
        # The loss is the one judge of its own options: ask it now rather than at the first step.
        logits = torch.zeros(1, 2)
        kd_loss(logits, logits, torch.zeros(1, dtype=torch.long), **self.loss_options())

    def loss_options(self) -> dict[str, Any]:
        """The keywords of :func:`fastkd.kd_loss` that this configuration fixes."""
        return {
            "kd_ratio": self.kd_ratio,
            "divergence": self.divergence,
            "beta": self.beta,
            "temperature": self.temperature,
            "teacher_temperature": self.teacher_temperature,
            "label_smoothing": self.label_smoothing_factor,
        }
