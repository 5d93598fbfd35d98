"""Which commands read an option: one that its command would ignore is refused on the command line.

A YAML file may serve several commands, so its fields are not refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastkd.trainer.config import DistillationConfig

TRAINING = ("train", "distill")
# The commands that look at a run without doing it read whatever the run reads.
LOOKING = ("doctor", "estimate")
TEACHING = ("distill", "evaluate", *LOOKING)

# The commands that read a field, or an option of their own. What is not here is read by every command.
READ_BY: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("cache_kind", "cache_top_k", "cache_samples"), ("cache", *LOOKING)),
    **dict.fromkeys(("kind", "from", "cache_from", "write_rows"), ("cache",)),
    "cache_tail": TEACHING,
    **dict.fromkeys(("generation_mode", "mode", "interpolate_metric"), ("generate",)),
    "min_probability": ("generate",),
    **dict.fromkeys(("eval_answers", "eval_beam", "seeds"), (*TRAINING, *LOOKING)),
    "headline": (*TRAINING, "evaluate", *LOOKING),
    "num_beams": (*TRAINING, "generate", "evaluate", *LOOKING),
    "generation_kwargs": (*TRAINING, "generate", "evaluate", *LOOKING),
    "max_completion_length": (*TRAINING, "generate", "evaluate", *LOOKING),
    "sampling_temperature": ("distill", "generate", *LOOKING),
    **dict.fromkeys(("kd_ratio", "divergence", "beta", "alpha"), TEACHING),
    **dict.fromkeys(("temperature", "teacher_temperature"), (*TEACHING, "cache")),
    "teacher": (*TEACHING, "generate", "cache"),
    "teacher_model_init_kwargs": (*TEACHING, "generate", "cache"),
    **dict.fromkeys(("teachers", "teacher_column", "teacher_weights", "teacher_top_k"), TEACHING),
    **dict.fromkeys(("teacher_prompt", "cross_tokenizer"), TEACHING),
    **dict.fromkeys(("self_weights", "self_decay"), ("distill", *LOOKING)),
    **dict.fromkeys(
        (
            "teacher_served_name", "teacher_key_variable", "teacher_key_file", "teacher_requests",
            "teacher_timeout", "teacher_patience",
        ),
        (*TEACHING, "cache", "generate"),
    ),
    **dict.fromkeys(("lmbda", "feature_matches", "gradient_match_weight", "control"), ("distill", *LOOKING)),
    **dict.fromkeys(
        (
            "objective", "sampled_estimator", "sampled_advantage_clip", "sampler", "sampler_kwargs",
            "sampling_steps",
        ),
        ("distill", *LOOKING),
    ),
    **dict.fromkeys(("fused_head", "model_init", "model_init_kwargs"), (*TRAINING, "evaluate", *LOOKING)),
    "eval_file": (*TRAINING, "evaluate", "cache", *LOOKING),
    "eval_split": (*TRAINING, "evaluate", "cache", *LOOKING),
    **dict.fromkeys(
        (
            "peft_config", "resume_from_checkpoint", "learning_rate", "lr_scheduler_type", "warmup_steps",
            "weight_decay", "max_grad_norm", "num_train_epochs", "max_steps", "per_device_train_batch_size",
            "gradient_accumulation_steps", "logging_steps", "eval_strategy", "eval_steps", "save_strategy",
            "save_steps", "save_total_limit",
        ),
        (*TRAINING, *LOOKING),
    ),
    "label_smoothing_factor": (*TRAINING, "evaluate", *LOOKING),
    "fast": ("doctor",),
    "processes": ("estimate",),
    **dict.fromkeys(("no_time", "no_weights"), ("estimate",)),
    "json": LOOKING,
}  # fmt: skip
# Commands whose options are fields of the configuration.
COMMANDS = ("train", "distill", "generate", "cache", "evaluate", *LOOKING)


def refuse_foreign(command: str, argv: Sequence[str]) -> None:
    """Raise a ``ValueError`` if an option is one that the command never reads."""
    if command not in COMMANDS or {"-h", "--help"} & set(argv):
        return
    for argument in argv:
        option = argument.partition("=")[0]
        readers = READ_BY.get(option.removeprefix("--").replace("-", "_"), COMMANDS)
        if option.startswith("--") and command not in readers:
            names = [f"fastkd {name}" for name in readers]
            listed = f"{', '.join(names[:-1])} and {names[-1]} do" if names[1:] else f"{names[0]} does"
            raise ValueError(f"fastkd {command} does not read {option}, which {listed}: leave it out")


def refuse_tail(args: DistillationConfig) -> None:
    """Raise a ``ValueError`` where ``--cache_tail`` is given and no top-k cache is read."""
    from fastkd.corpora.store import Manifest
    from fastkd.corpora.store.manifest import NAME
    from fastkd.trainer.teachers import TeacherSource

    source = TeacherSource.parse(args.teacher)
    if source.is_served:
        return
    folder = source.cache
    if folder is None:
        raise ValueError(
            f"--cache_tail says how a topk cache is read, and teacher is {args.teacher or 'unset'}: "
            "leave it out, or set teacher: cache:DIR"
        )
    if (folder / "train" / NAME).exists() and (kind := Manifest.read(folder / "train").kind) != "topk":
        raise ValueError(
            f"--cache_tail says how a topk cache is read, and {folder} is of the kind {kind}: leave it out"
        )


def refuse_entries(args: DistillationConfig, argv: Sequence[str]) -> None:
    """Raise a ``ValueError`` where ``fastkd cache`` is given the number of entries of another kind."""
    for field, kind in (("cache_top_k", "topk"), ("cache_samples", "sampled")):
        given = {argument.partition("=")[0].removeprefix("--").replace("-", "_") for argument in argv}
        if field in given and args.cache_kind != kind:
            raise ValueError(
                f"--{field} is for a {kind} cache, and this one is {args.cache_kind}: "
                f"leave it out, or give --kind {kind}"
            )
