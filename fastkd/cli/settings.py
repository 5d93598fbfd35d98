"""Reads a ``DistillationConfig`` from a YAML file and ``--field value`` options, and names every mistake."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastkd.trainer.config import DistillationConfig

# The fields that most runs set, of the hundred of TrainingArguments.
COMMON = (
    "output_dir", "seed", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay",
    "max_grad_norm",
    "num_train_epochs", "max_steps", "per_device_train_batch_size", "per_device_eval_batch_size",
    "gradient_accumulation_steps", "label_smoothing_factor", "bf16", "fp16", "logging_steps", "eval_strategy",
    "eval_steps", "save_strategy", "save_steps", "save_total_limit", "resume_from_checkpoint", "report_to",
    "use_cpu",
)  # fmt: skip


def read_settings(argv: list[str], fixed: dict[str, Any] | None = None) -> DistillationConfig:
    """The configuration of ``CONFIG.yaml [--field value ...]``.

    Args:
        argv: a path and overrides; a value is read as YAML, and ``--flag`` alone means true.
        fixed: fields that the command sets; they override values in ``argv`` and the file without an error.

    Raises:
        ValueError: there is no file, it is not a mapping, a field is unknown (the message names the nearest
            known one), or a value has the wrong type.
    """
    import yaml

    path, overrides = _split(argv)
    if not Path(path).is_file():
        raise ValueError(f"there is no configuration file {path!r}")
    try:
        given = yaml.safe_load(Path(path).read_text("utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(given, dict):
        raise ValueError(f"{path} must contain `field: value` lines, not a {type(given).__name__}")
    # Imported late, since it imports torch and transformers: errors above need not wait for them.
    from fastkd.trainer.config import DistillationConfig

    given.update({name: yaml.safe_load(value) for name, value in overrides.items()})

    hints = typing.get_type_hints(DistillationConfig)
    known = [field.name for field in dataclasses.fields(DistillationConfig) if field.init]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
            raise ValueError(f"unknown field {name!r}; did you mean {near!r}?")
    values = {name: _coerce(name, value, hints[name]) for name, value in given.items()}
    return DistillationConfig(**{**values, **(fixed or {})})


def renamed(argv: list[str], short: str, field: str) -> list[str]:
    """``argv`` with ``--short`` replaced by ``--field``, with ``=`` or without."""
    option = f"--{short}"
    return [
        f"--{field}{argument[len(option) :]}" if argument.split("=")[0] == option else argument
        for argument in argv
    ]


def _split(argv: list[str]) -> tuple[str, dict[str, str]]:
    """The path of the file, and the text of each override."""
    paths: list[str] = []
    overrides: dict[str, str] = {}
    rest = list(argv)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--"):
            paths.append(argument)
            continue
        name, equals, value = argument[2:].partition("=")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        overrides[name.replace("-", "_")] = value
    if len(paths) != 1:
        raise ValueError(
            f"give one configuration file, not {len(paths)}" + (f" ({', '.join(paths)})" if paths else "")
        )
    return paths[0], overrides


def _coerce(name: str, value: Any, hint: Any) -> Any:
    """A YAML value as the field's type: YAML reads 1e-4 as text and 1 as an integer; both can be floats."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    allowed = typing.get_args(hint) if union else (hint,)
    plain = {typing.get_origin(kind) or kind for kind in allowed}
    if value is False and name.endswith("_strategy"):  # YAML reads the `no` in `save_strategy: no` as false
        return "no"
    if value is None or type(value) in plain or not plain & {bool, int, float, str}:
        return value
    wanted = " or ".join(sorted(kind.__name__ for kind in plain & {bool, int, float, str, dict, list}))
    for kind in (int, float):
        if kind in plain and isinstance(value, (int, float, str)) and not isinstance(value, bool):
            try:
                number = float(value)
            except ValueError:
                continue
            if kind is float or number.is_integer():
                return kind(number)
    if str in plain and isinstance(value, (int, float)):  # booleans too: fused_head, resume_from_checkpoint
        return str(value).lower() if isinstance(value, bool) else str(value)
    if str in plain and isinstance(value, (dict, list)):
        return value
    raise ValueError(f"{name} must be {wanted}, not {value!r}")


def help_text(command: str, about: str) -> str:
    """Usage, fastkd's own fields and the common ones of ``transformers``, with defaults."""
    from transformers import TrainingArguments

    from fastkd.trainer.config import DistillationConfig

    inherited = {field.name for field in dataclasses.fields(TrainingArguments)}
    fields = {field.name: field for field in dataclasses.fields(DistillationConfig)}
    own = [name for name in fields if name not in inherited]
    lines = [f"usage: fastkd {command} CONFIG.yaml [--field value ...]", "", about, "", "Fields (default):"]
    for name in own:
        lines.append(f"  {name} ({_default(fields[name])})")
        lines.append(f"      {fields[name].metadata['help']}")
    lines += ["", "Fields of transformers.TrainingArguments, the most used of about a hundred:"]
    lines += [f"  {name} ({_default(fields[name])})" for name in COMMON if name in fields]
    return "\n".join(lines)


def _default(field: dataclasses.Field[Any]) -> str:
    from fastkd.trainer.config import plain

    value = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    if isinstance(value, bool):
        return str(value).lower()
    return "unset" if value is None else plain(value)
