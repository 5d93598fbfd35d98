"""Settings that cancel each other, do nothing, or stop the run before its first step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from fastkd.runs.doctor.findings import Case, Check, Finding
from fastkd.runs.refusals import refusals
from fastkd.trainer.config import DistillationConfig, plain
from fastkd.trainer.loading import adapter_folder
from fastkd.trainer.quantized import QUANTISED, QUANTISED_REMEDY
from fastkd.trainer.steps import no_step

LONG_RUN = 1_000
HOT = 20.0
DEFAULTS = {field.name: field.default for field in dataclasses.fields(DistillationConfig)}
# Fields that only the distillation term reads.
OF_THE_TEACHER = ("divergence", "beta", "alpha", "temperature", "teacher_temperature")


def _changed(args: DistillationConfig, names: tuple[str, ...]) -> list[str]:
    return [f"{name}: {getattr(args, name)}" for name in names if getattr(args, name) != DEFAULTS[name]]


def no_teacher(case: Case) -> Iterator[Finding]:
    if case.args.teacher is None and case.args.kd_ratio > 0:
        yield Finding(
            "note",
            "no_teacher",
            f"no teacher is set: fastkd train ignores kd_ratio: {case.args.kd_ratio}, fastkd distill stops",
            "set teacher to distil",
        )


def unused_teacher(case: Case) -> Iterator[Finding]:
    args = case.args
    if args.kd_ratio > 0 or args.teacher is None or args.feature_matches or args.gradient_match_weight:
        return
    idle = _changed(args, OF_THE_TEACHER)
    yield Finding(
        "warning",
        "teacher_unused",
        "kd_ratio: 0 trains on the labels alone: the student is only compared with the teacher"
        + (f", and {', '.join(idle)} {'does' if len(idle) == 1 else 'do'} nothing" if idle else ""),
        "set kd_ratio above 0, for example 0.5",
    )


def idle_without_teacher(case: Case) -> Iterator[Finding]:
    idle = _changed(case.args, OF_THE_TEACHER) if case.args.teacher is None else []
    if idle:
        yield Finding(
            "warning", "idle_options", f"without a teacher, {', '.join(idle)} do nothing", "set teacher"
        )


def unused_labels(case: Case) -> Iterator[Finding]:
    args = case.args
    if args.kd_ratio < 1 or args.teacher is None:
        return
    if args.label_smoothing_factor:
        yield Finding(
            "warning",
            "smoothing_unused",
            f"label_smoothing_factor: {args.label_smoothing_factor} smooths the cross-entropy, "
            "which kd_ratio: 1 leaves out",
            "lower kd_ratio, or leave out label_smoothing_factor",
        )
    elif args.task == "classification":
        yield Finding(
            "note",
            "labels_unused",
            "kd_ratio: 1 learns from the teacher alone: the class labels are not used",
        )


def temperatures(case: Case) -> Iterator[Finding]:
    args = case.args
    if args.teacher_temperature is not None and args.teacher_temperature == args.temperature:
        yield Finding(
            "note",
            "same_temperature",
            f"teacher_temperature: {args.teacher_temperature} equals temperature, its default",
            "leave it out",
        )
    if args.temperature > HOT and args.kd_ratio > 0 and args.teacher is not None:
        yield Finding(
            "warning",
            "hot",
            f"temperature: {args.temperature} makes both distributions nearly uniform, and the loss, which "
            f"is multiplied by its square ({args.temperature**2:,.0f}), shows the rounding",
            "set temperature to between 1 and 4",
        )


def mixtures(case: Case) -> Iterator[Finding]:
    """Values of ``beta`` at which a divergence equals another one."""
    args = case.args
    same = {
        ("jsd", 0.0): "forward_kl",
        ("jsd", 1.0): "reverse_kl",
        ("skew_forward_kl", 0.0): "forward_kl",
        ("skew_reverse_kl", 0.0): "reverse_kl",
    }
    other = same.get((args.divergence, -1.0 if args.beta is None else float(args.beta)))
    if other is not None and args.kd_ratio > 0:
        yield Finding(
            "note",
            "beta_at_its_end",
            f"divergence: {args.divergence} with beta: {args.beta} is {other}",
            f"set divergence: {other}",
        )


def refused(case: Case) -> Iterator[Finding]:
    """Settings with which ``fastkd distill`` would not start."""
    for refusal in refusals(case.args):
        yield Finding("error", *refusal)


def no_batch(case: Case) -> Iterator[Finding]:
    """Data that is too small for a single step."""
    if case.train is None or case.args.packing or no_step(case.args) is not None:
        return
    if (reason := no_step(case.args, case.train.total)) is not None:
        yield Finding("error", "no_step", *reason)


def on_policy(case: Case) -> Iterator[Finding]:
    args = case.args
    if args.lmbda > 0 and args.teacher is not None and args.kd_ratio == 0:
        yield Finding(
            "warning",
            "lmbda_without_kd",
            f"kd_ratio: 0 learns from labels alone, while {100 * args.lmbda:.0f} % of the steps (lmbda) "
            "learn from the teacher alone",
            "set kd_ratio above 0",
        )


def same_model(case: Case) -> Iterator[Finding]:
    args = case.args
    if args.teacher is not None and args.teacher == args.model and args.model_init == "pretrained":
        yield Finding(
            "warning",
            "teacher_is_student",
            f"student and teacher are both {args.model}: their divergence begins at 0",
            "set teacher to a better model, or model_init: scratch",
        )


def adapter(case: Case) -> Iterator[Finding]:
    """A quantised student that has no adapter to train."""
    if case.args.peft_config or any(refusals(case.args)):
        return
    if _is_quantised(case) and adapter_folder("model", case.args.model) is None:
        yield Finding("error", "quantised_without_adapter", QUANTISED, QUANTISED_REMEDY)


def _is_quantised(case: Case) -> bool:
    return getattr(case.student_config, "quantization_config", None) is not None


def sixteen_bits(case: Case) -> Iterator[Finding]:
    """A student whose weights are 16 bits wide while it is trained."""
    kwargs = case.args.model_init_kwargs
    dtype = str(kwargs.get("dtype", "")).removeprefix("torch.") if isinstance(kwargs, dict) else ""
    if dtype in ("bfloat16", "float16") and not case.args.peft_config:
        yield Finding(
            "warning",
            "student_in_16_bits",
            f"model_init_kwargs: the weights are trained in {dtype}, which rounds small updates away",
            "leave dtype out: the weights are trained in float32 and saved in the dtype of their files; "
            "bf16: true makes the arithmetic as fast",
        )


def control(case: Case) -> Iterator[Finding]:
    if case.args.control and case.args.kd_ratio == 0:
        yield Finding(
            "warning",
            "control_of_nothing",
            "control: true trains the student again without the teacher, and kd_ratio: 0 does so already",
            "set control: false",
        )


def warmup(case: Case) -> Iterator[Finding]:
    steps = case.optimizer_steps
    length = case.args.warmup_steps or 0
    if steps is not None and length >= 1 and length >= steps:
        yield Finding(
            "warning",
            "warmup",
            f"warmup_steps: {length:g} is as long as the run ({steps:,} steps): the learning rate is never "
            "reached",
            f"set warmup_steps to about {max(1, steps // 20)}",
        )


def saving(case: Case) -> Iterator[Finding]:
    args, steps = case.args, case.optimizer_steps
    strategy = plain(args.save_strategy)
    if steps is None:
        return
    lasts = strategy == "steps" and args.save_steps >= steps
    if steps > LONG_RUN and (strategy == "no" or lasts):
        how = "save_strategy: no" if strategy == "no" else f"save_steps: {args.save_steps:g}"
        yield Finding(
            "warning",
            "nothing_to_resume",
            f"{how} leaves no checkpoint to resume from in a run of {steps:,} steps",
            f"set save_strategy: steps and save_steps: {max(1, steps // 10)}",
        )


def bfloat16(case: Case) -> Iterator[Finding]:
    args = case.args
    if args.bf16 and args.device.type == "cuda" and not torch.cuda.is_bf16_supported():
        yield Finding("warning", "bf16_emulated", "this GPU has no bfloat16 arithmetic", "set fp16: true")


CHECKS: tuple[Check, ...] = (
    refused,
    no_batch,
    no_teacher,
    unused_teacher,
    idle_without_teacher,
    unused_labels,
    temperatures,
    mixtures,
    on_policy,
    same_model,
    adapter,
    sixteen_bits,
    control,
    warmup,
    saving,
    bfloat16,
)
