"""TRL's generalized JSD, the loss of its GKDTrainer."""

import torch
from torch import Tensor
from trl.experimental.gkd import GKDTrainer

from fastkd.conformance.adapter import Adapter, Call

BETA = {"forward_kl": 0.0, "reverse_kl": 1.0}


def loss(call: Call) -> Tensor:
    labels = call.labels
    if labels is None:  # GKDTrainer always has labels, without which batchmean divides by the batch size
        labels = call.student.new_zeros(call.student.shape[:-1], dtype=torch.int64)
    return GKDTrainer.generalized_jsd_loss(
        *(call.student, call.teacher, labels),
        beta=BETA.get(call.divergence, call.beta),
        temperature=call.temperature,
        reduction=call.reduction,
        num_items_in_batch=call.num_items,
    )


adapters = (
    Adapter(
        "TRL",
        loss,
        function="trl.experimental.gkd.GKDTrainer.generalized_jsd_loss",
        packages=("trl",),
        divergences=("jsd", "forward_kl", "reverse_kl"),
        reductions={"batchmean": "valid tokens", "sum": "sum", "mean": "valid elements"},
        takes=("labels", "temperature", "parameters", "num_items"),
        t_squared="never",
        teacher_gradient=True,
        notes=('`reduction="none"` returns a loss per token and column, which no case asks for.',),
    ),
)
