"""Student and teacher from the names in a configuration.

Weights are read from safetensors alone, unless the keywords of ``from_pretrained`` request otherwise.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel, set_seed

from fastkd.corpora.tasks import TASKS
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.loading.adapters import (
    adapter_folder,
    adapter_trouble,
    base_name,
    new_adapter,
    trained_adapter,
    untrained_copy,
)
from fastkd.trainer.loading.configs import init_kwargs, read_config, require_name, stored_dtype
from fastkd.trainer.loading.weights import ERRORS, explained, load_weights
from fastkd.trainer.precision import save_as
from fastkd.trainer.teachers import (
    BaseTeacher,
    CachedTeacher,
    LiveTeacher,
    MixedTeachers,
    RoutedTeachers,
    SelfTeacher,
    ServedTeacher,
    Teacher,
    TeacherSource,
)

# Keywords that a model built from its configuration takes beside the fields of that configuration.
_OF_BUILDING = ("dtype", "attn_implementation", "experts_implementation")


def load_student(args: DistillationConfig, trained: bool = False) -> PreTrainedModel:
    """The model that ``model`` names, pretrained or from scratch, with ``model_init_kwargs``.

    Its weights are in float32 unless a dtype is given, since small updates vanish in 16-bit weights; it will
    be saved in the dtype of its files. The seed is set first, so the same configuration gives the same fresh
    weights. With ``peft_config`` the model has a new adapter, and only the adapter is trained. If ``model``
    is the directory of an adapter, that adapter is trained further.

    Args:
        args: the configuration.
        trained: whether the model must be trained already, since it is measured and not trained: then no part
            of it may be random, and an adapter is frozen.

    Raises:
        ValueError: a model that cannot be read, or settings that do not fit it.
    """
    name = require_name("model", args.model)
    if (trouble := adapter_trouble(args, trained)) is not None:
        raise ValueError(f"{trouble.found}: {trouble.remedy}")
    set_seed(args.seed)
    kwargs = init_kwargs("model", args)
    folder = adapter_folder("model", name)
    if args.model_init == "scratch":
        return build_student(args)
    base = base_name("model", name)
    # An adapter brings the classification head that the model under it lacks.
    fresh_head = args.task == "classification" and (folder is not None or not trained)
    options = {**_common(args), "dtype": torch.float32, **_classes(args), **kwargs}
    model = load_weights("model", base, TASKS[args.task].auto_class, options, fresh_head)
    if folder is not None:
        return trained_adapter("model", name, folder, model, trainable=not trained)
    if args.peft_config:
        return new_adapter(model, args)
    if "dtype" not in kwargs and not getattr(model, "is_quantized", False):
        save_as(model, stored_dtype(read_config("model", base, args)))
    return model


def build_student(args: DistillationConfig) -> PreTrainedModel:
    """The student with random weights, built from its ``config.json`` alone; with an untrained adapter, if
    the configuration asks for one or ``model`` is one.

    Raises:
        ValueError: a configuration that cannot be read, or settings that do not fit it.
    """
    kwargs = init_kwargs("model", args)
    folder = adapter_folder("model", args.model)
    kwargs.pop("quantization_config", None)
    building = {name: kwargs.pop(name) for name in _OF_BUILDING if name in kwargs}
    if building.get("dtype", "auto") == "auto":
        building["dtype"] = torch.float32
    config = read_config("model", args.model, args, **_classes(args), **kwargs)
    try:
        model = TASKS[args.task].auto_class.from_config(
            config, trust_remote_code=args.trust_remote_code, **building
        )
    except ERRORS as error:
        raise explained("model", str(args.model), error) from error
    if folder is not None:
        return untrained_copy(model, folder, "model")
    return new_adapter(model, args) if args.peft_config else model


def load_teacher(args: DistillationConfig, student: Any = None) -> PreTrainedModel | Teacher:
    """The teacher that ``teacher`` names: a model, loaded with ``teacher_model_init_kwargs``; a cache; a
    server; the student's own base; or several of these.
    """
    source = TeacherSource.parse(args.teacher)
    if source.is_several:
        return _several(args, student)
    if source.cache is not None:
        return CachedTeacher(source.cache)
    if source.is_served:
        return ServedTeacher(args)
    if source.is_self:
        fused = args.fused_head != "false"
        return SelfTeacher(student, TASKS[args.task], fused, args.self_weights, args.self_decay)
    if source.is_base:
        return BaseTeacher(student, TASKS[args.task], args.fused_head != "false")
    return load_teacher_model(args)


def _several(args: DistillationConfig, student: Any) -> Teacher:
    assert isinstance(args.teachers, dict)
    return several_of({name: load_teacher(one, student) for name, one in settings_of_each(args)}, args)


def several_of(teachers: Mapping[str, PreTrainedModel | Teacher], args: DistillationConfig) -> Teacher:
    """Teachers by name, as one: routed, or mixed with ``teacher_weights``.

    Raises:
        ValueError: a cache among them.
    """
    made: dict[str, Teacher] = {}
    for name, teacher in teachers.items():
        if isinstance(teacher, CachedTeacher):
            raise ValueError(f"teacher {name} is a cache, and several teachers must be models or servers")
        if isinstance(teacher, PreTrainedModel):
            teacher = LiveTeacher(teacher, TASKS[args.task], args.fused_head != "false")
        made[name] = teacher
    if isinstance(args.teacher_weights, dict):
        return MixedTeachers(made, args.teacher_weights)
    return RoutedTeachers(made)


def settings_of_each(args: DistillationConfig) -> Iterator[tuple[str, DistillationConfig]]:
    """The name of each of several teachers, and the settings of a run with that one alone."""
    assert isinstance(args.teachers, dict)
    for name, source in args.teachers.items():
        one = copy.copy(args)
        one.teacher, one.teachers, one.teacher_weights, one.routes = source, None, None, []
        yield name, one


def load_teacher_model(args: DistillationConfig) -> PreTrainedModel:
    """The model that ``teacher`` names, in the dtype in which it was saved; with its adapter, if it names the
    directory of one.

    Raises:
        ValueError: a model that cannot be read or that lacks weights.
    """
    name = require_name("teacher", args.teacher)
    base, folder = base_name("teacher", name), adapter_folder("teacher", name)
    kwargs = init_kwargs("teacher", args)
    options = {**_common(args), **(_classes(args) if folder is not None else {}), **kwargs}
    fresh_head = args.task == "classification" and folder is not None
    model = load_weights("teacher", base, TASKS[args.task].auto_class, options, fresh_head)
    if folder is not None:
        model = trained_adapter("teacher", name, folder, model, trainable=False)
    return model


def load_sides(model: Any, teacher: Any, args: DistillationConfig) -> tuple[Any, Any]:
    """Student and teacher, with those that are given by name loaded as the fields ``model`` and ``teacher``
    would be.
    """
    named = copy.copy(args)
    if isinstance(model, str):
        named.model = model
        named.teacher = teacher if isinstance(teacher, str) else None
        model = load_student(named)
    if isinstance(teacher, str):
        named.teacher = teacher
        teacher = load_teacher(named, model)
    elif isinstance(teacher, dict):
        sides = {}
        for name, one in teacher.items():
            named.teacher = one if isinstance(one, str) else None
            sides[name] = load_teacher(named, model) if isinstance(one, str) else one
        args.routes = [] if args.teacher_weights else list(teacher)
        teacher = several_of(sides, args)
    return model, teacher


def _common(args: DistillationConfig) -> dict[str, Any]:
    return {"use_safetensors": True, "trust_remote_code": args.trust_remote_code}


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
