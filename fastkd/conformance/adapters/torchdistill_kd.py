"""torchdistill's KDLoss, which finds its logits in dictionaries."""

from torch import Tensor
from torchdistill.losses.mid_level import KDLoss

from fastkd.conformance.adapter import Adapter, Call


def loss(call: Call) -> Tensor:
    call = call.flat
    alone = call.kd_ratio == 1
    criterion = KDLoss(
        *("logits", "output", "logits", "output"),
        temperature=call.temperature,
        alpha=None if alone else 1 - call.kd_ratio,
        beta=call.kd_ratio,
        reduction=call.reduction,
    )
    student, teacher = ({"logits": {"output": x}} for x in (call.student, call.teacher))
    return criterion(student, teacher, None if alone else call.labels)


adapters = (
    Adapter(
        "torchdistill",
        loss,
        function="torchdistill.losses.mid_level.KDLoss",
        packages=("torchdistill",),
        reductions={"batchmean": "tokens", "sum": "sum"},
        takes=("temperature", "kd_ratio"),
        t_squared="mixed",
        teacher_gradient=True,
        notes=(
            "`ignore_index` goes to its cross-entropy alone; the divergence has no mask.",
            "Logits are `(tokens, V)`, so batchmean is the mean over tokens.",
        ),
    ),
)
