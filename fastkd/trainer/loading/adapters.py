"""Adapters of `peft`: new ones on a model, and directories that hold a trained one."""

from __future__ import annotations

import copy
import functools
import json
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import constants, errors, hf_hub_download, snapshot_download
from safetensors import safe_open
from transformers import AutoTokenizer
from transformers.utils.peft_utils import find_adapter_config_file

from fastkd.corpora.listing import listed
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.loading.names import LFS, expanded, is_path, reason, refusal
from fastkd.trainer.quantized import QUANTISED, QUANTISED_REMEDY
from fastkd.trainer.teachers import TeacherSource

# Seconds for which an answer of the hub is remembered, at most.
_REMEMBERED = 300.0
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_TASK_TYPES = {"causal_lm": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM", "classification": "SEQ_CLS"}


def adapter_folder(field: str, name: str | None) -> Path | None:
    """The directory of the adapter that a model's name means; None if it means a whole model.

    An adapter of the hub is downloaded first.

    Raises:
        ValueError: the hub does not give a model of this name.
    """
    if name is None:
        return None
    folder = Path(expanded(name))
    if folder.is_dir():
        return folder if (folder / CONFIG).is_file() else None
    if is_path(name) or folder.exists():
        return None  # reported where the configuration is read
    found = _asked(name, int(time.monotonic() / _REMEMBERED))
    if isinstance(found, Exception):
        raise refusal(field, name, found) from found
    return found


@functools.lru_cache
def _asked(name: str, moment: int) -> Path | OSError | ValueError | None:
    """The hub's answer about a name, or its error: without a connection, each question takes half a minute,
    and a run asks several. The answer holds for one ``moment``.
    """
    try:
        return _hub_adapter(name)
    except (OSError, ValueError) as error:
        return error


def _hub_adapter(name: str) -> Path | None:
    # The first question is also the last one if there is no such model or no connection.
    try:
        hf_hub_download(name, "config.json")
        is_model = True
    except errors.LocalEntryNotFoundError:
        is_model = False
        if not constants.HF_HUB_OFFLINE or find_adapter_config_file(name) is None:
            raise
    except errors.EntryNotFoundError:
        is_model = False
    if is_model and find_spec("peft") is None:
        return None
    if find_adapter_config_file(name) is None:
        return None
    return Path(snapshot_download(name, allow_patterns=["adapter_*", "*token*", "*.json"]))


def base_name(field: str, name: str) -> str:
    """The name of the model under an adapter; ``name`` itself if it means a whole model.

    Raises:
        ValueError: an adapter that does not state its model.
    """
    folder = adapter_folder(field, name)
    if folder is None:
        return name
    try:
        base = json.loads((folder / CONFIG).read_text("utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{field} {name!r}: its {CONFIG} cannot be read ({reason(error)})") from error
    if not base:
        raise ValueError(
            f"{field} {name!r} is an adapter, and its {CONFIG} does not name the model under it: set "
            "base_model_name_or_path there"
        )
    return str(base)


class Trouble(NamedTuple):
    """A fault in the settings: its fixed name, a sentence, and the setting to change."""

    name: str
    found: str
    remedy: str


def adapter_trouble(args: DistillationConfig, trained: bool = False) -> Trouble | None:
    """The contradiction in the settings of the student's adapter, if there is one.

    Args:
        args: the configuration.
        trained: whether the student is only measured: then it may be quantised without an adapter.
    """
    folder = adapter_folder("model", args.model)
    if args.model_init == "scratch" and (args.peft_config or folder is not None):
        return Trouble(
            "adapter_on_noise",
            "an adapter alone learns, and model_init: scratch leaves random weights under it",
            "set model_init: pretrained, or leave the adapter out",
        )
    if args.peft_config and folder is not None:
        return Trouble(
            "adapter_on_adapter",
            f"model {args.model!r} is an adapter already, which is trained further, and peft_config asks for "
            "a new one",
            f"leave peft_config out, or give the model under it, {base_name('model', str(args.model))!r}",
        )
    if TeacherSource.parse(args.teacher).is_base and not args.peft_config and folder is None:
        return Trouble(
            "base_without_adapter",
            "teacher: base is the student without its adapter, and it has none",
            "set peft_config, for example {peft_type: LORA, r: 8}",
        )
    kwargs = args.model_init_kwargs
    quantised = isinstance(kwargs, dict) and kwargs.get("quantization_config") is not None
    if quantised and not trained and not args.peft_config and folder is None:
        return Trouble("quantised_without_adapter", QUANTISED, QUANTISED_REMEDY)
    return None


def new_adapter(model: Any, args: DistillationConfig) -> Any:
    """The model with the untrained adapter that ``peft_config`` describes; only the adapter is trained.

    Raises:
        ValueError: a ``peft_config`` that is no mapping or does not fit the model.
    """
    peft = _peft("peft_config")
    if not isinstance(args.peft_config, dict):
        raise ValueError(f"peft_config must be a mapping, not {args.peft_config!r}")
    fields = {
        "peft_type": "LORA",
        "task_type": _TASK_TYPES[args.task],
        **copy.deepcopy(args.peft_config),
    }
    try:
        return peft.get_peft_model(prepared(model), peft.get_peft_config(fields))
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"peft_config does not fit: {error}") from error


def untrained_copy(model: Any, folder: Path, field: str) -> Any:
    """The model with an adapter like the one in ``folder``, without its weights."""
    peft = _peft(field)
    try:
        return peft.get_peft_model(model, peft.PeftConfig.from_pretrained(str(folder)))
    except (OSError, TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{field} {str(folder)!r}: the adapter cannot be built: {reason(error)}") from error


def trained_adapter(field: str, name: str, folder: Path, model: Any, trainable: bool) -> Any:
    """The model with the adapter in ``folder``.

    Args:
        field, name: the field that names the adapter, and its value, for messages.
        folder: the adapter's directory.
        model: the model under the adapter.
        trainable: whether the adapter will be trained further.

    Raises:
        ValueError: an adapter without weights, with pickled ones, or one that does not fit the model.
    """
    peft = _peft(f"{field} {name!r} is an adapter, which")
    path = folder / WEIGHTS
    if not path.is_file():
        raise ValueError(f"{field} {name!r} has no {WEIGHTS}, and pickled weights are not read")
    with path.open("rb") as file:
        if file.read(len(LFS)) == LFS:
            raise ValueError(f"{field} {name!r}: {WEIGHTS} is a pointer of git-lfs: run git lfs pull there")
    _grow(model, folder)
    try:
        with safe_open(path, "pt") as file:
            stored = set(file.keys())
        made = peft.PeftModel.from_pretrained(
            prepared(model) if trainable else model, str(folder), is_trainable=trainable
        )
        # The keys under which peft would save this adapter.
        wanted = peft.get_peft_model_state_dict(made, save_embedding_layers=False)
    except Exception as error:  # adapters of each kind raise errors of their own
        raise ValueError(f"{field} {name!r}: the adapter does not fit its model: {reason(error)}") from error
    if lost := sorted(set(wanted) - stored):
        raise ValueError(
            f"{field} {name!r}: {len(lost):,} of the adapter's {len(wanted):,} weights are missing from "
            f"{WEIGHTS} and would be random ({listed(lost)}): save the adapter again"
        )
    return made


def prepared(model: Any) -> Any:
    """The model, ready to be trained with an adapter: a quantised one needs its other weights in float32."""
    if not getattr(model, "is_quantized", False):
        return model
    from peft import prepare_model_for_kbit_training

    # `Trainer` switches on activation checkpointing itself, if the configuration asks for it.
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def _grow(model: Any, folder: Path) -> None:
    """Give the model rows for the tokens that were added when the adapter was trained."""
    if not (folder / "tokenizer_config.json").is_file():
        return
    try:
        tokens = len(AutoTokenizer.from_pretrained(str(folder)))
    except (OSError, ValueError):
        return
    if tokens > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(tokens)


def _peft(needed_by: str) -> Any:
    try:
        import peft
    except ImportError as error:
        raise ValueError(f"{needed_by} needs the package peft: pip install 'fastkd[peft]'") from error
    return peft
