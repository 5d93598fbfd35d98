"""DeepSpeed's ZeRO: what has to be set up before models are loaded, and models whose weights it shards.

ZeRO-3 shards the weights of every model that is loaded while its configuration is alive. A layer has its
weights only while an engine runs it, so the loss is computed from logits, and what looks into a model before
training gathers its weights first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

import torch
from accelerate.state import AcceleratorState
from torch import nn

_RUNNING: WeakSet[nn.Module] = WeakSet()


def begin(args: Any) -> None:
    """Check the DeepSpeed settings of a configuration, and connect the processes.

    Raises:
        ValueError: no launcher, or ZeRO-3 that does not save the model.
    """
    stage = zero_stage(args)
    if not stage:
        return
    settings = args.deepspeed_plugin.deepspeed_config.get("zero_optimization", {})
    if stage == 3 and not settings.get("stage3_gather_16bit_weights_on_model_save"):
        raise ValueError(
            "ZeRO-3 would not save the model: set stage3_gather_16bit_weights_on_model_save: true in "
            "zero_optimization of the DeepSpeed configuration"
        )
    if args.device.type == "cpu" and torch.distributed.is_initialized():
        import deepspeed

        # `accelerate` does this for GPUs only.
        deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)


def zero_stage(args: Any) -> int:
    """The stage of ZeRO; 0 without DeepSpeed."""
    plugin = getattr(args, "deepspeed_plugin", None)
    if plugin is None:
        return 0
    return int(plugin.deepspeed_config.get("zero_optimization", {}).get("stage", 0))


def require_launcher(args: Any) -> None:
    """Raise a ``ValueError`` if DeepSpeed is to train and no launcher has started this process."""
    if getattr(args, "deepspeed_plugin", None) is not None and not torch.distributed.is_initialized():
        raise ValueError(
            "deepspeed trains with a launcher: start torchrun -m fastkd.cli, or accelerate launch"
        )


def new_run(args: Any) -> None:
    """Let a second trainer of this process, such as that of a control, set DeepSpeed up again."""
    require_launcher(args)
    if getattr(args, "deepspeed_plugin", None) is not None:
        AcceleratorState._reset_state()


def leave(args: Any) -> None:
    """Forget DeepSpeed, which only training uses: models that are loaded afterwards are whole."""
    if getattr(args, "deepspeed_plugin", None) is not None:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        args.deepspeed = args.deepspeed_plugin = args.hf_deepspeed_config = None
        unset_hf_deepspeed_config()


@contextlib.contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """All weights of a model on every process, if ZeRO-3 has sharded them."""
    if not is_sharded(model):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        yield


def is_sharded(model: nn.Module) -> bool:
    """Whether ZeRO-3 has sharded the model's weights."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def run_sharded(model: nn.Module, args: Any) -> None:
    """Let a sharded model that is not trained, a teacher, gather each layer's weights when it runs."""
    if model in _RUNNING:
        return
    import deepspeed

    zero = args.deepspeed_plugin.deepspeed_config["zero_optimization"]
    own = {
        "train_micro_batch_size_per_gpu": args.per_device_train_batch_size,
        "zero_optimization": {
            name: value for name, value in zero.items() if "optimizer" not in name and value != "auto"
        },
    }
    deepspeed.initialize(model=model, config=own)
    _RUNNING.add(model)
