"""orda-kernel's distillation_loss; on a CPU its torch backend."""

import torch
from orda_kernel import PrecomputedTeacher, SeparateTeacher, distillation_loss
from torch import Tensor

from fastkd.conformance.adapter import Adapter, Call

# Its name of each divergence. Its beta is the student's share of a mixture, ours of `jsd` and
# `skew_forward_kl` the teacher's; its alpha is the student's exponent, ours the teacher's.
NAMES = {
    "forward_kl": "forward",
    "reverse_kl": "reverse",
    "jeffreys": "jeffreys",
    "jsd": "skew_js",
    "skew_forward_kl": "skew_forward",
    "skew_reverse_kl": "skew_reverse",
    "alpha": "alpha_divergence",
    "renyi": "renyi",
    "triangular": "triangular",
    "decoupled": "dkd",
}


def parameters(call: Call) -> dict[str, float]:
    return {
        "jsd": {"kl_beta": 1 - call.beta},
        "skew_forward_kl": {"kl_beta": 1 - call.beta},
        "skew_reverse_kl": {"kl_beta": call.beta},
        "alpha": {"kl_alpha": 1 - call.alpha},
        "renyi": {"kl_alpha": call.alpha},
        "decoupled": {"kl_alpha": 1.0, "kl_beta": call.beta},
    }.get(call.divergence, {})


def loss(call: Call) -> Tensor:
    call = call.flat
    student, teacher = call.student, call.teacher_logits
    labels = call.labels
    if labels is None:
        labels = torch.zeros(len(student), dtype=torch.int64, device=student.device)
    head = torch.eye(student.shape[-1], dtype=student.dtype, device=student.device)
    # A teacher may have columns of -inf only if it is given by its logits.
    absent = bool(teacher.isneginf().any())
    source = PrecomputedTeacher(logits=teacher) if absent else SeparateTeacher(teacher, head)
    return distillation_loss(
        *(student, head, labels, source),
        student_ce_weight=1 - call.kd_ratio,
        kl_weight=call.kd_ratio,
        kl_temperature=call.temperature,
        kl_divergence=NAMES[call.divergence],
        reduction=call.reduction,
        **parameters(call),
    ).loss


adapters = (
    Adapter(
        "orda-kernel",
        loss,
        function="orda_kernel.distillation_loss with a SeparateTeacher",
        packages=("orda-kernel",),
        divergences=tuple(NAMES),
        reductions={"mean": "valid tokens", "sum": "sum"},
        takes=("labels", "temperature", "kd_ratio", "parameters"),
        from_hidden=("student",),
        notes=(
            "Logits of -inf are passed in a PrecomputedTeacher.",
            "On a CPU it runs its torch backend; its Triton kernels need a GPU.",
        ),
    ),
)
