"""TextBrewer's soft cross-entropy, on the rows that its distillers select."""

from textbrewer.distiller_utils import select_logits_with_mask
from textbrewer.losses import kd_ce_loss
from torch import Tensor

from fastkd.conformance.adapter import Adapter, Call


def loss(call: Call) -> Tensor:
    student, teacher = call.student, call.teacher_logits
    if call.labels is not None:
        mask = call.labels != -100
        student, teacher = select_logits_with_mask([student, teacher], [mask, mask])
    return kd_ce_loss(student, teacher, call.temperature)


adapters = (
    Adapter(
        "TextBrewer",
        loss,
        function="textbrewer.losses.kd_ce_loss, after select_logits_with_mask where labels are ignored",
        packages=("textbrewer",),
        reductions={"mean": "valid tokens"},
        takes=("labels", "temperature"),
        t_squared="never",
        teacher_entropy=True,
        teacher_gradient=True,
        notes=(
            "It is the cross-entropy between both distributions, which is the KL divergence plus the "
            "teacher's entropy and has the same gradient.",
        ),
    ),
)
