"""Liger's Triton losses over log-probabilities and probabilities, which the caller computes."""

import torch.nn.functional as F
import triton
from liger_kernel.transformers import LigerJSD, LigerKLDIVLoss, LigerTVDLoss
from torch import Tensor

from fastkd.conformance.adapter import Adapter, Call

INTERPRETED = "its Triton kernel needs a GPU, or on a CPU TRITON_INTERPRET=1"
GPU = "its Triton kernel needs a GPU: the interpreter stops at a method that Python's numbers lack"
BETA = {"forward_kl": 0.0, "reverse_kl": 1.0}


def kl_div(call: Call) -> Tensor:
    call = call.flat
    student, teacher = call.student / call.temperature, call.teacher_logits / call.temperature
    criterion = LigerKLDIVLoss(reduction=call.reduction)
    return criterion(F.log_softmax(student, -1), F.softmax(teacher, -1))


def jsd(call: Call) -> Tensor:
    call = call.flat
    student, teacher = call.student / call.temperature, call.teacher_logits / call.temperature
    criterion = LigerJSD(beta=BETA.get(call.divergence, call.beta))
    return criterion(F.log_softmax(student, -1), F.log_softmax(teacher, -1), call.labels)


def tvd(call: Call) -> Tensor:
    call = call.flat
    student, teacher = call.student / call.temperature, call.teacher_logits / call.temperature
    criterion = LigerTVDLoss(reduction=call.reduction)
    return criterion(F.softmax(student, -1), F.softmax(teacher, -1), call.labels)


adapters = (
    Adapter(
        "Liger KLDiv",
        kl_div,
        function="liger_kernel.transformers.LigerKLDIVLoss after F.log_softmax and F.softmax",
        packages=("liger-kernel", "triton"),
        reductions={"batchmean": "tokens", "sum": "sum", "mean": "elements"},
        takes=("temperature",),
        t_squared="never",
        in_float32=True,
        on_cpu=GPU,
    ),
    Adapter(
        "Liger JSD",
        jsd,
        function="liger_kernel.transformers.LigerJSD after F.log_softmax",
        packages=("liger-kernel", "triton"),
        divergences=("jsd", "forward_kl", "reverse_kl"),
        takes=("labels", "temperature", "parameters"),
        t_squared="never",
        in_float32=True,
        on_cpu=None if triton.knobs.runtime.interpret else INTERPRETED,
        notes=("On a CPU its Triton kernel is interpreted.",),
    ),
    Adapter(
        "Liger TVD",
        tvd,
        function="liger_kernel.transformers.LigerTVDLoss after F.softmax",
        packages=("liger-kernel", "triton"),
        divergences=("tvd",),
        reductions={"batchmean": "valid tokens", "sum": "sum"},
        takes=("labels", "temperature"),
        t_squared="never",
        in_float32=True,
        on_cpu=GPU,
    ),
)
