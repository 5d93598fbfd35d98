"""A smaller model of a teacher's family: some of its layers, or fewer and narrower ones with new weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import AutoModel, GenerationConfig, set_seed

from fastkd.corpora.tasks import TASKS
from fastkd.runs.new.layers import Stack, chosen, stacks
from fastkd.runs.new.made import Made
from fastkd.runs.new.per_layer import cut
from fastkd.runs.new.request import Request
from fastkd.runs.new.sizes import narrowed
from fastkd.runs.new.weights import copy_weights
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.loading import adapter_folder, read_config, teacher_tokenizer
from fastkd.trainer.loading.configs import init_kwargs, stored_dtype
from fastkd.trainer.loading.names import expanded, reason
from fastkd.trainer.loading.weights import ERRORS, load_weights
from fastkd.trainer.teachers.source import require_model

# Keywords for the teacher's weights that say where and how it runs, which a copy of its files has no use for.
_OF_RUNNING = ("dtype", "quantization_config", "device_map", "max_memory", "attn_implementation")


def task_of(config: Any) -> str:
    """The task that a model was made for, by its config; that of an encoder without a head is to classify."""
    names = " ".join(config.architectures or ())
    if "ForSequenceClassification" in names:
        return "classification"
    if getattr(config, "is_encoder_decoder", False):
        return "seq2seq"
    return "causal_lm" if "ForCausalLM" in names or "LMHead" in names else "classification"


def from_teacher(request: Request, args: DistillationConfig) -> Made:
    """The student that a request describes, from the model that ``args.teacher`` names.

    Raises:
        ValueError: an adapter, a quantised or a composite model, or a request that does not fit the teacher.
    """
    config = teacher_config(args)
    headless = is_headless(config, args.task)
    shape = built(config, args, headless, meta=True)
    kept = _kept(request, stacks(shape))
    widths = narrowed(config, request.widths) if request.widths else {}
    init = request.init or ("scratch" if widths else "layers")
    if init == "layers" and widths:
        raise ValueError(
            f"layers cannot be copied to another width ({', '.join(widths)}): leave the widths out, or give "
            "--init scratch"
        )
    small = changed(config, kept, widths)
    set_seed(args.seed)
    student = built(small, args, headless)
    if init == "layers":
        copy_weights(student, _loaded(args, headless), kept)
    else:
        student.to(stored_dtype(config))
    run_once(student)
    if (settings := _generation_settings(args)) is not None and student.can_generate():
        student.generation_config = settings
    tokenizer = teacher_tokenizer(args)
    copied = [(stack.part, list(layers), stack.length) for stack, layers in kept] if init == "layers" else []
    return Made(student, tokenizer, shape, copied)


def teacher_config(args: DistillationConfig) -> Any:
    """The teacher's configuration.

    Raises:
        ValueError: ``teacher`` names no model, or one whose layers cannot be copied.
    """
    require_model(args.teacher, "fastkd new makes a smaller model of the teacher's own family")
    name = str(args.teacher)
    if adapter_folder("teacher", name) is not None:
        raise ValueError(
            f"teacher {name!r} is an adapter: merge it into its model first (merge_and_unload of peft), and "
            "give the directory of the whole model"
        )
    config = read_config("teacher", name, args)
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            f"teacher {name!r} is quantised, and a student needs weights that learn: give the model that it "
            "was quantised from"
        )
    if config.get_text_config() is not config:
        raise ValueError(
            f"teacher {name!r} ({config.model_type}) consists of several models: save its language model "
            "in a directory of its own, and give that one"
        )
    return config


def is_headless(config: Any, task: str) -> bool:
    """Whether a classifier is to be made of a model that has no head for it yet."""
    made = " ".join(config.architectures or ())
    return task == "classification" and "ForSequenceClassification" not in made


def built(config: Any, args: DistillationConfig, headless: bool, meta: bool = False) -> Any:
    """A model with random weights, in float32; with ``meta`` one without data.

    Raises:
        ValueError: the family has no model for the task, or the sizes do not fit together.
    """
    auto = AutoModel if headless else TASKS[args.task].auto_class
    try:
        with torch.device("meta" if meta else "cpu"):
            return auto.from_config(
                copy.deepcopy(config), trust_remote_code=args.trust_remote_code, dtype=torch.float32
            )
    except ERRORS as error:
        raise ValueError(
            f"no model of the family {config.model_type!r} can be made for {args.task} with these sizes: "
            f"{reason(error)}"
        ) from error


def changed(config: Any, kept: list[tuple[Stack, list[int]]], widths: dict[str, Any]) -> Any:
    """The config with the layers that are kept and the widths that change.

    Raises:
        ValueError: the family refuses them.
    """
    fields = config.to_dict()
    changes = {name: value for stack, layers in kept for name, value in cut(fields, stack, layers).items()}
    try:
        return type(config).from_dict({**fields, **changes, **widths})
    except Exception as error:  # configs raise errors of many kinds about their fields
        raise ValueError(
            f"the config of the family {config.model_type!r} does not allow these sizes: {reason(error)}"
        ) from error


def run_once(model: Any) -> None:
    """Run a model on a few tokens.

    Raises:
        ValueError: its sizes do not fit together.
    """
    words = torch.tensor([[1, 2, 3, 4]])
    inner = model.base_model
    inputs = {"input_ids": words}
    if getattr(model.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = words
    training = model.training
    try:
        with torch.no_grad():
            inner.eval()(**inputs)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        raise ValueError(
            f"a model of the family {model.config.model_type!r} cannot run with these sizes: {reason(error)}"
        ) from error
    finally:
        model.train(training)


def _kept(request: Request, there: list[Stack]) -> list[tuple[Stack, list[int]]]:
    """The stacks and the layers that they keep."""
    if request.decoder_layers is not None and len(there) == 1:
        raise ValueError("decoder_layers is for encoder-decoders: give --layers")
    own = {"decoder": request.layers if request.decoder_layers is None else request.decoder_layers}
    return [(stack, chosen(stack, own.get(stack.part, request.layers))) for stack in there]


def _loaded(args: DistillationConfig, headless: bool) -> Any:
    kwargs = {k: v for k, v in init_kwargs("teacher", args).items() if k not in _OF_RUNNING}
    options = {"use_safetensors": True, "trust_remote_code": args.trust_remote_code, **kwargs}
    auto = TASKS[args.task].auto_class
    model = load_weights("teacher", str(args.teacher), auto, options, fresh_head=headless)
    return model.base_model if headless else model


def _generation_settings(args: DistillationConfig) -> GenerationConfig | None:
    try:
        return GenerationConfig.from_pretrained(expanded(str(args.teacher)))
    except (OSError, ValueError):
        return None  # the model's config says how it generates
