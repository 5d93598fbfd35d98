"""Settings with which a run cannot work. ``fastkd train`` and ``distill`` refuse them before anything is
loaded, and ``fastkd doctor`` reports them as errors.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from huggingface_hub import get_token
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from fastkd.trainer.config import DistillationConfig, plain
from fastkd.trainer.crossing import troubles
from fastkd.trainer.loading import adapter_trouble
from fastkd.trainer.sampling.settings import sampler_troubles
from fastkd.trainer.steps import no_step
from fastkd.trainer.teachers import TeacherSource

# Packages of the services in report_to whose names differ from the service's.
PACKAGES = {
    "azure_ml": "azureml-sdk",
    "comet_ml": "comet-ml",
    "flyte": "flytekit",
    "dagshub": "dagshub mlflow",
}


class Refusal(NamedTuple):
    """A reason not to start a run.

    Attributes:
        name: fixed name, for programs that read it.
        found: the reason.
        remedy: the setting to change.
    """

    name: str
    found: str
    remedy: str


def refuse(args: DistillationConfig) -> None:
    """Raise a ``ValueError`` with the first reason not to start a run, if there is one."""
    for refusal in refusals(args):
        raise ValueError(f"{refusal.found}: {refusal.remedy}")


def refusals(args: DistillationConfig) -> Iterator[Refusal]:
    """Every reason not to start a run that the settings alone show."""
    for check in _CHECKS:
        yield from check(args)


def _on_policy(args: DistillationConfig) -> Iterator[Refusal]:
    if args.lmbda == 0:
        return
    if TeacherSource.parse(args.teacher).cache is not None:
        yield Refusal(
            "lmbda_with_cache",
            f"lmbda: {args.lmbda} needs the teacher's distributions for new texts, which no cache has",
            "set teacher to the model, or lmbda: 0",
        )
    if args.task == "classification":
        yield Refusal("lmbda_without_text", "lmbda is for models that write text", "set lmbda: 0")
    if args.teacher is None:
        yield Refusal(
            "lmbda_without_teacher", "lmbda needs a teacher to judge the samples", "set teacher, or lmbda: 0"
        )
    if args.packing:
        yield Refusal(
            "lmbda_with_packing",
            "packing leaves no prompts for the student to answer",
            "set packing: false, or lmbda: 0",
        )


def _sampler(args: DistillationConfig) -> Iterator[Refusal]:
    for trouble in sampler_troubles(args):
        yield Refusal(*trouble)


def _own_prompt(args: DistillationConfig) -> Iterator[Refusal]:
    source = TeacherSource.parse(args.teacher)
    if source.is_self and args.teacher_prompt is None and args.self_weights == "live" and args.kd_ratio > 0:
        yield Refusal(
            "self_without_difference",
            "teacher: self with live weights and the same prompt has nothing to teach",
            "set teacher_prompt, or self_weights: ema",
        )
    if args.teacher_prompt is None:
        return
    if source.kind in ("none", "cache"):
        yield Refusal(
            "prompt_without_reader",
            "teacher_prompt is for a teacher that reads it, and there is "
            f"{'no teacher' if source.kind == 'none' else 'a cache'}",
            "set teacher to a model, a server or self, or leave out teacher_prompt",
        )
    if args.task == "classification" or args.packing:
        yield Refusal(
            "prompt_without_prompts",
            "teacher_prompt takes the place of a prompt, and "
            f"{'packed texts have' if args.packing else 'classification has'} none",
            "leave out teacher_prompt",
        )
    yield from _no_layers(
        args,
        "prompt_with_matches",
        "teacher_prompt gives both sides other tokens, whose layers cannot be compared",
    )


def _no_layers(args: DistillationConfig, name: str, why: str) -> Iterator[Refusal]:
    if args.feature_matches or args.gradient_match_weight:
        yield Refusal(name, why, "leave out feature_matches and gradient_match_weight")


def _sampled(args: DistillationConfig) -> Iterator[Refusal]:
    if args.objective != "sampled":
        return
    if args.lmbda != 1:
        yield Refusal(
            "sampled_without_samples",
            "objective: sampled learns from the student's own tokens, and lmbda is "
            f"{args.lmbda}, so that some steps have the data's",
            "set lmbda: 1, or objective: full",
        )
    if args.divergence not in ("forward_kl", "reverse_kl") or args.temperature != 1:
        yield Refusal(
            "sampled_divergence",
            "objective: sampled estimates the reverse KL at temperature 1",
            "leave out divergence and temperature, or set objective: full",
        )
    if args.sampling_temperature != 1 or args.generation_kwargs:
        yield Refusal(
            "sampled_from_another",
            "objective: sampled needs tokens that are drawn as the student's probabilities say",
            "leave out sampling_temperature and generation_kwargs",
        )
    if args.routes:
        yield Refusal(
            "sampled_with_several",
            "objective: sampled has one teacher, and rows have several",
            "set teacher, or objective: full",
        )
    yield from _no_layers(args, "sampled_with_matches", "objective: sampled reads no layers of the teacher")


def _cross_tokenizer(args: DistillationConfig) -> Iterator[Refusal]:
    for trouble in troubles(args):
        yield Refusal(*trouble)


def _insides(args: DistillationConfig) -> Iterator[Refusal]:
    inside = args.feature_matches or args.gradient_match_weight
    if inside and not (source := TeacherSource.parse(args.teacher)).is_model and not source.is_base:
        what = "no teacher" if args.teacher is None else f"teacher: {args.teacher}"
        yield Refusal(
            "insides_without_model",
            f"feature_matches and gradient_match_weight compare layers of a teacher, and there is {what}",
            "set teacher to a model",
        )


def _adapter(args: DistillationConfig) -> Iterator[Refusal]:
    try:
        trouble = adapter_trouble(args)
    except ValueError:
        return  # the student cannot be found, which is said where it is loaded
    if trouble is not None:
        yield Refusal(*trouble)


def _fused_classifier(args: DistillationConfig) -> Iterator[Refusal]:
    if args.fused_head == "true" and args.task == "classification":
        yield Refusal(
            "fused_classifier",
            "fused_head: true is for large vocabularies, and a classifier has few columns",
            "set fused_head: auto",
        )


def _learning(args: DistillationConfig) -> Iterator[Refusal]:
    if args.learning_rate == 0:
        yield Refusal("learning_rate", "learning_rate: 0 changes nothing", "set it, for example 5e-5")
    if (reason := no_step(args)) is not None:
        yield Refusal("no_step", *reason)


def _half_precision(args: DistillationConfig) -> Iterator[Refusal]:
    if args.fp16 and args.device.type == "cpu":
        yield Refusal(
            "fp16_on_cpu",
            "fp16: true needs a GPU for its loss scaling, and the run is on the CPU",
            "set bf16: true instead",
        )


def _evaluation(args: DistillationConfig) -> Iterator[Refusal]:
    has_data = args.eval_file is not None or (args.dataset is not None and args.eval_split is not None)
    if plain(args.eval_strategy) != "no" and not has_data:
        yield Refusal(
            "evaluation_without_data",
            "eval_strategy is set and there is nothing to evaluate on",
            "set eval_file (or eval_split of dataset), or leave out eval_strategy",
        )


def _headline(args: DistillationConfig) -> Iterator[Refusal]:
    if args.headline in ("bleu", "chrf", "rougeL") and args.eval_answers == 0:
        yield Refusal(
            "headline_without_answers",
            f"headline: {args.headline} is a figure of answers, and eval_answers: 0 has none written",
            "set eval_answers, for example 200, or leave out headline",
        )


def _reporting(args: DistillationConfig) -> Iterator[Refusal]:
    for name in args.report_to or []:
        if name not in INTEGRATION_TO_CALLBACK:
            known = difflib.get_close_matches(str(name), INTEGRATION_TO_CALLBACK, n=1, cutoff=0.0)[0]
            yield Refusal(
                "report_to",
                f"report_to: {name} is not a service that transformers reports to",
                f"did you mean {known}? none reports to no service",
            )
            continue
        try:
            INTEGRATION_TO_CALLBACK[name]()  # the same call as the trainer's, made before anything is loaded
        except (ImportError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            yield Refusal(
                "report_to",
                f"report_to: {name} cannot be used ({reason.rstrip('.')})",
                f"pip install {PACKAGES.get(name, name)}, or set report_to: none",
            )


def _hub(args: DistillationConfig) -> Iterator[Refusal]:
    if args.push_to_hub and not (args.hub_token or get_token()):
        yield Refusal(
            "push_to_hub",
            "push_to_hub: true needs an account of the hub, and this machine has no token of one",
            "run `hf auth login`, set hub_token, or set push_to_hub: false",
        )


_CHECKS: tuple[Callable[[DistillationConfig], Iterator[Refusal]], ...] = (
    _on_policy,
    _sampler,
    _own_prompt,
    _sampled,
    _cross_tokenizer,
    _insides,
    _adapter,
    _fused_classifier,
    _learning,
    _half_precision,
    _evaluation,
    _headline,
    _reporting,
    _hub,
)
