"""fastkd's own loss over logits."""

from torch import Tensor

import fastkd
from fastkd.conformance.adapter import OPTIONS, TAILS, Adapter, Call
from fastkd.divergences import DIVERGENCES


def loss(call: Call) -> Tensor:
    parameters = {name: getattr(call, name) for name in DIVERGENCES[call.divergence].parameters}
    teacher = call.teacher if isinstance(call.teacher, Tensor) else fastkd.SparseTeacher(*call.teacher)
    return fastkd.kd_loss(
        *(call.student, teacher, call.labels),
        kd_ratio=call.kd_ratio,
        divergence=call.divergence,
        temperature=call.temperature,
        reduction=call.reduction,
        num_items=call.num_items,
        token_weights=call.token_weights,
        vocab_size=call.vocab_size,
        **parameters,
    )


adapters = (
    Adapter(
        "fastkd",
        loss,
        function="fastkd.kd_loss",
        packages=("fastkd",),
        divergences=tuple(DIVERGENCES),
        reductions={"mean": "valid tokens", "sum": "sum", "batchmean": "sequences", "none": "none"},
        takes=OPTIONS,
        tails=TAILS,
        teacher_gradient=True,
        notes=("It refuses second derivatives rather than return a part of them.",),
    ),
)
