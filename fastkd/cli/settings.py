"""Reads a ``DistillationConfig`` from a YAML file and ``--field value`` options, and names every mistake."""

from __future__ import annotations

import dataclasses
import difflib
import enum
import types
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastkd.cli.fields_read import refuse_tail
from fastkd.cli.renames import unknown_fields

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
    from fastkd.cli.yaml_text import read_file

    path, overrides = _split(argv)
    args = settings_of({**read_file(Path(path)), **read_values(overrides)}, fixed)
    if "cache_tail" in overrides:
        refuse_tail(args)
    return args


def read_values(overrides: dict[str, str]) -> dict[str, Any]:
    """The values of options, whose texts are read as YAML."""
    from fastkd.cli.yaml_text import read_value

    return {name: read_value(text, f"--{name}") for name, text in overrides.items()}


def settings_of(given: dict[str, Any], fixed: dict[str, Any] | None = None) -> DistillationConfig:
    """The configuration with these values; arguments and errors are those of :func:`read_settings`."""
    # Imported late, since it imports torch and transformers: errors above need not wait for them.
    from fastkd.trainer.config import DistillationConfig

    fields = {field.name: field for field in dataclasses.fields(DistillationConfig) if field.init}
    if unknown := {name: value for name, value in given.items() if name not in fields}:
        raise ValueError(unknown_fields(unknown, list(fields)))
    hints = typing.get_type_hints(DistillationConfig)
    values = {
        name: _coerce(name, value, hints[name], fields[name].default is None) for name, value in given.items()
    }
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
    paths, overrides = split_options(argv)
    if not paths:
        taken = [f"--{name}" for name, value in overrides.items() if value.endswith((".yaml", ".yml"))]
        why = f": {taken[0]} has taken it as its value" if taken else ""
        raise ValueError(f"give the configuration file before the fields{why}")
    if len(paths) > 1:
        raise ValueError(f"give one configuration file, not {len(paths)} ({', '.join(paths)})")
    return paths[0], overrides


def split_options(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """The arguments that belong to no option, and the text of each option by the name of its field."""
    paths: list[str] = []
    overrides: dict[str, str] = {}
    rest = list(argv)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--"):
            if argument.startswith("-"):
                raise ValueError(f"there is no option {argument!r}: fields begin with two hyphens")
            paths.append(argument)
            continue
        name, equals, value = argument[2:].partition("=")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        overrides[name.replace("-", "_")] = value
    return paths, overrides


def _coerce(name: str, value: Any, hint: Any, optional: bool) -> Any:
    """A YAML value as the field's type: YAML reads 1e-4 as text and 1 as an integer; both can be floats.

    Args:
        optional: whether the field may be None, whatever its type says.
    """
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    allowed = typing.get_args(hint) if union else (hint,)
    plain = {typing.get_origin(kind) or kind for kind in allowed}
    optional = optional or types.NoneType in plain
    if value is False and name.endswith("_strategy"):  # YAML reads the `no` in `save_strategy: no` as false
        return "no"
    if name == "report_to" and value in (None, False):
        return "none"
    if value is None or (value == "None" and optional):  # Python's word for YAML's null
        if not optional:
            raise ValueError(f"{name} is empty: give it a value, or leave out the line")
        return None
    if isinstance(value, list) and list[str] in allowed:
        return _words(name, value)
    for kind in allowed:
        if isinstance(kind, type) and issubclass(kind, enum.Enum) and isinstance(value, str):
            _require_member(name, value, kind)
    known = plain & {bool, int, float, str, dict, list}
    if type(value) in plain or not known:
        return value
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
    wanted = "a mapping" if dict in known else " or ".join(sorted(kind.__name__ for kind in known))
    raise ValueError(f"{name} must be {wanted}, not {value!r}")


def _words(name: str, values: list[Any]) -> list[str]:
    """The items of a list of names, which YAML may have read as numbers."""
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            how = (
                "put quotes around yes, no, on, off, true and false"
                if isinstance(value, bool)
                else "give names"
            )
            raise ValueError(f"{name} holds {value!r} after YAML has read it: {how}")
    return [str(value) for value in values]


def _require_member(name: str, value: str, kind: type[enum.Enum]) -> None:
    choices = [str(member.value) for member in kind]
    if value not in choices:
        near = difflib.get_close_matches(value, choices, n=3, cutoff=0.0)
        some = choices if len(choices) <= 6 else near
        raise ValueError(
            f"{name} must be {' or '.join(some)}{'' if some is choices else ' or another of its choices'}, "
            f"not {value!r}"
        )


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
