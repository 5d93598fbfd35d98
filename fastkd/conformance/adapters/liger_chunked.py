"""Liger's chunked JSD from hidden states, which is plain torch."""

import torch
from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
from torch import Tensor

from fastkd.conformance.adapter import Adapter, Call

BETA = {"forward_kl": 0.0, "reverse_kl": 1.0}


def loss(call: Call) -> Tensor:
    call = call.flat
    student, teacher = call.student, call.teacher_logits
    labels = call.labels
    if labels is None:
        labels = torch.zeros(len(student), dtype=torch.int64, device=student.device)
    compiled = bool({student.dtype, teacher.dtype} & {torch.bfloat16, torch.float16})
    if compiled:  # otherwise torch stops compiling after a few calls
        torch.compiler.reset()
    criterion = LigerFusedLinearJSDLoss(
        weight_hard_loss=1 - call.kd_ratio,
        weight_soft_loss=call.kd_ratio,
        beta=BETA.get(call.divergence, call.beta),
        temperature=call.temperature,
        compiled=compiled,
    )
    heads = [torch.eye(x.shape[-1], dtype=x.dtype, device=x.device) for x in (student, teacher)]
    return criterion(student, heads[0], teacher, heads[1], labels)


adapters = (
    Adapter(
        "Liger chunked",
        loss,
        function="liger_kernel.chunked_loss.LigerFusedLinearJSDLoss",
        packages=("liger-kernel",),
        divergences=("jsd", "forward_kl", "reverse_kl"),
        takes=("labels", "temperature", "kd_ratio", "parameters"),
        t_squared="never",
        in_float32=True,
        from_hidden=("student", "teacher"),
        notes=(
            "It is compiled, as by default, for 16-bit logits; "
            "for others that does not change the arithmetic.",
            "A student's head narrower than the teacher's is padded with logits of 0, by its documentation.",
        ),
    ),
)
