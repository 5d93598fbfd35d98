"""Models, tokenizers and data from the names in a configuration.

Weights are read from safetensors alone, unless ``teacher_model_init_kwargs`` requests otherwise.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from fastkd.corpora.tasks import TASKS
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.teachers import BaseTeacher, CachedTeacher, Teacher


@dataclass(frozen=True)
class TeacherSource:
    """The teacher that a configuration's field ``teacher`` names. No other code reads the field's text.

    Attributes:
        kind: ``none`` (the field is unset), ``base`` (the student without its adapter), ``cache`` (what
            ``fastkd cache`` wrote) or ``model`` (a directory or a hub id).
        name: the directory of a cache, or the name of a model; empty for the other kinds.
    """

    kind: Literal["none", "base", "cache", "model"]
    name: str = ""

    @classmethod
    def parse(cls, given: str | None) -> TeacherSource:
        """The source that ``base``, ``cache:DIR``, a model's name, or None means."""
        if given is None:
            return cls("none")
        if given == "base":
            return cls("base")
        if given.startswith("cache:"):
            return cls("cache", given.removeprefix("cache:"))
        return cls("model", given)

    @property
    def is_model(self) -> bool:
        """Whether it is a model of its own, which can be loaded."""
        return self.kind == "model"

    @property
    def is_base(self) -> bool:
        """Whether it is the student without its adapter."""
        return self.kind == "base"

    @property
    def cache(self) -> Path | None:
        """The directory of the cache; None if it is no cache."""
        return Path(self.name) if self.kind == "cache" else None


def require_model(given: str | None, why: str) -> None:
    """Raise a ``ValueError`` unless the value of ``teacher`` names a model.

    Args:
        given: the value of the field.
        why: states in the error why only a model will do.
    """
    source = TeacherSource.parse(given)
    if source.kind == "none":
        raise ValueError("teacher is not set: give a directory or a hub id")
    if not source.is_model:
        raise ValueError(f"teacher is {given!r}, but {why}: give its directory or id")


def load_student(args: DistillationConfig) -> PreTrainedModel:
    """The model that ``model`` names, pretrained or from scratch, in float32, since small updates vanish in
    16-bit weights.

    The seed is set first, so the same configuration gives the same fresh weights. With ``peft_config`` the
    model has an adapter, and only the adapter is trained.
    """
    set_seed(args.seed)
    auto = TASKS[args.task].auto_class
    common = {"trust_remote_code": args.trust_remote_code, **_classes(args)}
    if args.model_init == "scratch":
        config = _load("model", AutoConfig.from_pretrained, args.model, **common)
        model = auto.from_config(config, dtype=torch.float32, trust_remote_code=args.trust_remote_code)
    else:
        model = _load(
            "model", auto.from_pretrained, args.model, dtype=torch.float32, use_safetensors=True, **common
        )
    return _with_adapter(model, args) if args.peft_config else model


def _classes(args: DistillationConfig) -> dict[str, Any]:
    if args.task != "classification" or args.class_names is None:
        return {}
    names = dict(enumerate(args.class_names))
    problem = {"problem_type": args.problem_type} if args.problem_type else {}
    return {
        **problem,
        "num_labels": len(names),
        "id2label": names,
        "label2id": {name: number for number, name in names.items()},
    }


def _with_adapter(model: PreTrainedModel, args: DistillationConfig) -> Any:
    try:
        from peft import get_peft_config, get_peft_model
    except ImportError as error:
        raise ValueError("peft_config needs the package peft: pip install 'fastkd[peft]'") from error
    if not isinstance(args.peft_config, dict):
        raise ValueError(f"peft_config must be a mapping, not {args.peft_config!r}")
    types = {"causal_lm": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM", "classification": "SEQ_CLS"}
    fields = {"peft_type": "LORA", "task_type": types[args.task], **copy.deepcopy(args.peft_config)}
    try:
        return get_peft_model(model, get_peft_config(fields))
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"peft_config does not fit: {error}") from error


def load_teacher(args: DistillationConfig, student: Any = None) -> PreTrainedModel | Teacher:
    """The teacher that ``teacher`` names: a model, loaded with ``teacher_model_init_kwargs``; a cache; or the
    student's own base.
    """
    source = TeacherSource.parse(args.teacher)
    if source.cache is not None:
        return CachedTeacher(source.cache)
    if source.is_base:
        return BaseTeacher(student, TASKS[args.task], args.fused_head != "false")
    return load_teacher_model(args)


def load_teacher_model(args: DistillationConfig) -> PreTrainedModel:
    """The model that ``teacher`` names."""
    kwargs = args.teacher_model_init_kwargs or {}
    if not isinstance(kwargs, dict):
        raise ValueError(f"teacher_model_init_kwargs must be a mapping, not {kwargs!r}")
    auto = TASKS[args.task].auto_class
    defaults = {"use_safetensors": True, "trust_remote_code": args.trust_remote_code}
    return _load("teacher", auto.from_pretrained, args.teacher, **{**defaults, **kwargs})


def load_tokenizer(args: DistillationConfig) -> PreTrainedTokenizerBase:
    """The student's tokenizer, or the teacher's if the student (one from scratch) has none yet."""
    common = {"trust_remote_code": args.trust_remote_code}
    try:
        return _load("model", AutoTokenizer.from_pretrained, args.model, **common)
    except ValueError as missing:
        if not TeacherSource.parse(args.teacher).is_model or args.model is None:
            raise
        try:
            return _load("teacher", AutoTokenizer.from_pretrained, args.teacher, **common)
        except ValueError:
            raise missing from None


def _load(field: str, load: Any, name: str | None, **kwargs: Any) -> Any:
    if name is None:
        raise ValueError(f"{field} is not set: give a directory or a hub id")
    try:
        return load(name, **kwargs)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{field} {name!r} could not be loaded: {reason}") from error
