"""Settings of a run on several processes that depend on the student."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from transformers.training_args import ParallelMode

from fastkd.corpora.contexts import evaluating
from fastkd.corpora.tasks import Task
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.models import forward
from fastkd.trainer.student import DistilledStudent

logger = logging.getLogger(__name__)

LAYER_DROPS = ("layerdrop", "encoder_layerdrop", "decoder_layerdrop")


def prepare_processes(args: DistillationConfig, student: DistilledStudent) -> None:
    """Set ``ddp_find_unused_parameters`` unless it is set, and ``average_tokens_across_devices``.

    DDP waits in every step for the gradients of all parameters. It looks for those that the loss did not
    reach only if it is told to. That costs time, and does not work with reentrant checkpointing, so it is
    told to only for a student that has such parameters.

    Raises:
        ValueError: reentrant checkpointing of a student with unused parameters, under DDP.
    """
    if args.world_size == 1:
        return
    if not args.average_tokens_across_devices:
        logger.warning(
            "average_tokens_across_devices: false is not followed: with it, a token would count for more on "
            "a process whose batch has fewer of them, and a step would depend on how its batch is divided"
        )
        args.average_tokens_across_devices = True
    ddp = args.parallel_mode == ParallelMode.DISTRIBUTED and not args.fsdp and args.deepspeed_plugin is None
    if not ddp or args.ddp_find_unused_parameters is not None:
        return
    unused = unused_parameters(student.student, student.task)
    if unused and _reentrant(args) and not args.ddp_static_graph:
        raise ValueError(
            f"the loss does not reach {unused[0]}"
            + (f" and {len(unused) - 1} more parameters" if len(unused) > 1 else "")
            + ", which reentrant checkpointing under DDP does not allow: set gradient_checkpointing_kwargs: "
            "{use_reentrant: false}"
        )
    args.ddp_find_unused_parameters = bool(unused)


def unused_parameters(model: Any, task: Task) -> list[str]:
    """Trainable parameters that a loss on the model's logits may not reach in every step, by name. The model
    computes the logits of a few tokens, from which their graph is followed back.
    """
    trained = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    configs = [getattr(part, "config", None) for part in model.modules()]
    if any(getattr(config, name, 0) for config in configs for name in LAYER_DROPS):
        return list(trained.values())  # layers are left out at random
    end = getattr(model.config, "eos_token_id", None)
    tokens = [1, 2, end if isinstance(end, int) else 3]  # some classifiers read their output at this token
    row = {"input_ids": tokens, "labels": 0 if task.name == "classification" else tokens}
    batch = {name: value.to(model.device) for name, value in task.collate([row], 0).items()}
    with evaluating(model), torch.enable_grad():
        logits = forward(model, None, task.model_inputs(model, batch)).distribution
    assert isinstance(logits, Tensor)
    reached = _leaves(logits)
    return [name for key, name in trained.items() if key not in reached]


def _leaves(value: Tensor) -> set[int]:
    """The ids of the leaf tensors that ``value`` was computed from."""
    found: set[int] = set()
    seen: set[Any] = set()
    rest = [value.grad_fn]
    while rest:
        node = rest.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (variable := getattr(node, "variable", None)) is not None:
            found.add(id(variable))
        rest += [before for before, _ in node.next_functions]
    return found


def _reentrant(args: Any) -> bool:
    """Whether activations are checkpointed in the reentrant way."""
    for name in ("activation_checkpointing", "gradient_checkpointing"):
        kwargs = getattr(args, f"{name}_kwargs", None)
        if getattr(args, name, False) and isinstance(kwargs, dict) and kwargs.get("use_reentrant"):
            return True
    return False
