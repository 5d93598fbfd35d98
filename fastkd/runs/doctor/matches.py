"""Compares the losses between layers with the loss on the logits, as the first step of a run has them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from fastkd.runs.doctor.findings import Case, Finding
from fastkd.trainer.assembly import distilled
from fastkd.trainer.matching.balance import drowning
from fastkd.trainer.objective import means
from fastkd.trainer.quantized import keep_differentiable
from fastkd.trainer.sides import name_padding, padding_token


def drowned(case: Case, student: Any, teacher: Any, rows: Sequence[Any]) -> Iterator[Finding]:
    """Weights of matches that drown the loss on the logits.

    Args:
        case: the configuration.
        student, teacher: the loaded models.
        rows: encoded rows.
    """
    args = copy.copy(case.args)
    if not (args.feature_matches or args.gradient_match_weight):
        return
    for model in (student, teacher):
        keep_differentiable(model)
        if getattr(model, "hf_device_map", None) is None and not getattr(model, "is_quantized", False):
            model.to(args.device)
    try:
        whole = distilled(student, teacher, args, case.tokenizer, [rows])
        pad = padding_token(student, case.tokenizer)
        if args.task == "classification":
            name_padding({"student": student, "teacher": teacher}, pad)
        batch = whole.task.collate(rows, pad)
        assert whole.matching is not None
        torch.manual_seed(args.seed)  # for the student's dropout
        whole.train()
        whole.matching.to(student.device)
        batch = {name: value.to(student.device) for name, value in batch.items()}
        with torch.set_grad_enabled(args.gradient_match_weight > 0):  # a saliency is a gradient
            sums = whole(**batch, with_sums=True)["sums"]
    except ValueError as error:  # a layer that does not exist, or sides that do not fit
        yield Finding("error", "matches", " ".join(str(error).split()))
        return
    found = means({name: float(value) for name, value in sums.items()})
    for one in drowning(found, whole.matching.matches, whole.matching.gradient_weight):
        yield Finding("warning", "match_drowns", one.found, one.remedy)
    names = [name for name in found if name.startswith("feature_") or name == "saliency"]
    shown = ", ".join(f"{name} {found[name]:.3g}" for name in names)
    yield Finding("note", "match_losses", f"at the start, {shown}, beside {found['loss']:.3g} on the logits")
