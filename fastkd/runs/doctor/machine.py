"""Checks what the run lacks on this machine: a backend, a fused head, disk space, memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import fastkd
from fastkd.backends import registry
from fastkd.runs import disk_space
from fastkd.runs.doctor.findings import Case, Check, Finding
from fastkd.runs.estimate import Shape, free_bytes, run_step
from fastkd.runs.estimate.text import size
from fastkd.trainer.heads import declared_head
from fastkd.trainer.models import LinearHead

# Exists where the NVIDIA driver is loaded, whether or not torch can use the GPU.
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def backend(case: Case) -> Iterator[Finding]:
    """A loss that would fall back to the reference backend."""
    args = case.args
    device = torch.device(args.device.type)
    student = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    chosen = registry.choose(None, device, student, _teacher_dtype(case, student))
    if chosen.name == "reference":
        reasons = [
            f"{name.split(':')[0]}: {why}"
            for name, why in fastkd.available_backends().items()
            if name.endswith(f":{device.type}") and why != "available"
        ]
        yield Finding(
            "warning",
            "reference_backend",
            f"on {device.type} the loss would use the plain formulas ({'; '.join(reasons) or student}), "
            "with several copies of the logits in memory",
            "remove the reasons that fastkd env gives, or choose float32 or bfloat16",
        )


def _teacher_dtype(case: Case, student: torch.dtype) -> torch.dtype:
    kwargs = case.args.teacher_model_init_kwargs
    given: Any = kwargs.get("dtype", kwargs.get("torch_dtype")) if isinstance(kwargs, dict) else None
    given = getattr(torch, given, None) if isinstance(given, str) else given
    if given is None and case.teacher_config is not None:
        given = getattr(case.teacher_config, "dtype", None)
    return given if isinstance(given, torch.dtype) else student


def idle_gpu(case: Case) -> Iterator[Finding]:
    """An available GPU that the run would not use, or would use without fastkd's CUDA kernels."""
    if torch.cuda.is_available():
        if case.args.device.type == "cpu":
            yield Finding(
                "note",
                "gpu_unused",
                f"{torch.cuda.get_device_name(0)} is available, and use_cpu: true does not use it",
                "set use_cpu: false",
            )
        elif (why := fastkd.available_backends()["native:cuda"]) != "available":
            yield Finding(
                "warning", "no_cuda_kernels", f"the CUDA kernels cannot run: {why}", "build fastkd with nvcc"
            )
    elif NVIDIA_DRIVER.exists():
        built = torch.version.cuda
        yield Finding(
            "warning",
            "gpu_unseen",
            "there is an NVIDIA driver and torch sees no GPU"
            + (": it was built without CUDA" if built is None else f" (it was built for CUDA {built})"),
            "install a CUDA build of torch" if built is None else "check nvidia-smi and CUDA_VISIBLE_DEVICES",
        )


def fused_head(case: Case) -> Iterator[Finding]:
    """A head that is not linear, judged without weights; ``quality`` also compares its logits."""
    if case.args.task == "classification" or case.args.fused_head == "false":
        return
    if (model := case.student_without_weights) is None:
        return
    head = declared_head(model)
    if not isinstance(head, LinearHead):
        yield head_finding(case, head)


def head_finding(case: Case, reason: str) -> Finding:
    """The finding about a head that is not linear."""
    return Finding(
        "error" if case.args.fused_head == "true" else "note",
        "fused_head",
        f"the loss is computed from logits, since {reason}",
        "set fused_head: auto" if case.args.fused_head == "true" else "",
    )


def disk(case: Case) -> Iterator[Finding]:
    """Disk space for the model and all checkpoints kept at a time, each with weights and optimizer state."""
    if (model := case.student_without_weights) is None:
        return
    need = disk_space.needed(case.args, model, case.optimizer_steps)
    if need.bytes > need.free:
        yield Finding("error", "disk", need.sentence, need.remedy)
    elif need.bytes > 0.8 * need.free:
        yield Finding("warning", "disk", need.sentence, "set save_total_limit")


def memory(case: Case) -> Iterator[Finding]:
    """A peak, as ``fastkd estimate`` computes it, above the free memory."""
    args = case.args
    if case.fast or case.train is None or not case.train.kept or case.troubles:
        return
    seq2seq = args.task == "seq2seq"
    longest = max(len(row["input_ids"]) for row in case.train.kept)
    target = max(len(row["labels"]) for row in case.train.kept) if seq2seq else 0
    shape = Shape(args.per_device_train_batch_size, args.max_length if args.packing else longest, target)
    try:
        step = run_step(args, shape, processes=args.world_size)
    except ValueError:
        return  # the check that loads the model reports the error
    free = free_bytes(args.device)
    if step.peak > free:
        yield Finding(
            "warning",
            "memory",
            f"a step needs about {size(step.peak)} on {args.device.type} and {size(free)} are free",
            "fastkd estimate shows settings that need less",
        )


CHECKS: tuple[Check, ...] = (backend, idle_gpu, fused_head, disk, memory)
