"""Settings that cancel each other, do nothing, or stop the run at its first step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from fastkd.runs.doctor.findings import Case, Check, Finding
from fastkd.trainer.config import DistillationConfig, plain
from fastkd.trainer.loading import adapter_folder, adapter_trouble
from fastkd.trainer.loading.adapters import Trouble
from fastkd.trainer.quantized import QUANTISED, QUANTISED_REMEDY

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


def on_policy(case: Case) -> Iterator[Finding]:
    args = case.args
    if args.lmbda == 0:
        return
    if case.teacher.cache is not None:
        yield Finding(
            "error",
            "lmbda_with_cache",
            f"lmbda: {args.lmbda} needs the teacher's distributions for new texts, which no cache has",
            "set teacher to the model, or lmbda: 0",
        )
    if args.task == "classification":
        yield Finding("error", "lmbda_without_text", "lmbda is for models that write text", "set lmbda: 0")
    if args.teacher is None:
        yield Finding(
            "error", "lmbda_without_teacher", "lmbda needs a teacher to judge the samples", "set teacher"
        )
    elif args.kd_ratio == 0:
        yield Finding(
            "warning",
            "lmbda_without_kd",
            f"kd_ratio: 0 learns from labels alone, while {100 * args.lmbda:.0f} % of the steps (lmbda) "
            "learn from the teacher alone",
            "set kd_ratio above 0",
        )
    if args.packing:
        yield Finding(
            "warning",
            "lmbda_with_packing",
            "packing leaves no prompts for the student to answer",
            "set packing: false",
        )


def insides(case: Case) -> Iterator[Finding]:
    args = case.args
    if (args.feature_matches or args.gradient_match_weight) and not case.teacher.is_model:
        what = "no teacher" if args.teacher is None else f"teacher: {args.teacher}"
        yield Finding(
            "error",
            "insides_without_model",
            f"feature_matches and gradient_match_weight compare layers of a teacher, and there is {what}",
            "set teacher to a model",
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
    """Settings of the student's adapter that contradict each other, as ``load_student`` refuses them."""
    try:
        trouble = adapter_trouble(case.args)
    except ValueError as error:
        yield Finding("error", "adapter", str(error))
        return
    plain_student = not case.args.peft_config and adapter_folder("model", case.args.model) is None
    if plain_student and getattr(case.student_config, "quantization_config", None) is not None:
        trouble = trouble or Trouble("quantised_without_adapter", QUANTISED, QUANTISED_REMEDY)
    if trouble is not None:
        yield Finding("error", trouble.name, trouble.found, trouble.remedy)


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


def fused_classifier(case: Case) -> Iterator[Finding]:
    if case.args.fused_head == "true" and case.args.task == "classification":
        yield Finding(
            "error",
            "fused_classifier",
            "fused_head: true is for large vocabularies, and a classifier has few columns",
            "set fused_head: auto",
        )


def control(case: Case) -> Iterator[Finding]:
    if case.args.control and case.args.kd_ratio == 0:
        yield Finding(
            "warning",
            "control_of_nothing",
            "control: true trains the student again without the teacher, and kd_ratio: 0 does so already",
            "set control: false",
        )


def learning(case: Case) -> Iterator[Finding]:
    args, steps = case.args, case.optimizer_steps
    if args.learning_rate == 0:
        yield Finding(
            "error", "learning_rate", "learning_rate: 0 changes nothing", "set it, for example 5e-5"
        )
    warmup = args.warmup_steps or 0
    if steps is not None and warmup >= 1 and warmup >= steps:
        yield Finding(
            "warning",
            "warmup",
            f"warmup_steps: {warmup:g} is as long as the run ({steps:,} steps): the learning rate is never "
            "reached",
            f"set warmup_steps to about {max(1, steps // 20)}",
        )


def half_precision(case: Case) -> Iterator[Finding]:
    if case.args.fp16 and case.args.device.type == "cpu":
        yield Finding(
            "error",
            "fp16_on_cpu",
            "fp16: true needs a GPU for its loss scaling, and the run is on the CPU",
            "set bf16: true instead",
        )


def evaluation(case: Case) -> Iterator[Finding]:
    args = case.args
    has_data = args.eval_file is not None or (args.dataset is not None and args.eval_split is not None)
    if plain(args.eval_strategy) != "no" and not has_data:
        yield Finding(
            "error",
            "evaluation_without_data",
            "eval_strategy is set and there is nothing to evaluate on",
            "set eval_file (or eval_split of dataset), or leave out eval_strategy",
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
    no_teacher,
    unused_teacher,
    idle_without_teacher,
    unused_labels,
    temperatures,
    mixtures,
    on_policy,
    insides,
    same_model,
    adapter,
    sixteen_bits,
    fused_classifier,
    control,
    learning,
    half_precision,
    evaluation,
    saving,
    bfloat16,
)
