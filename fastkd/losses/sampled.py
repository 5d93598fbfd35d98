"""``sampled_kd_loss``: the reverse KL from one token of each distribution, the one that was drawn."""

from __future__ import annotations

import torch
from torch import Tensor

from fastkd.losses import checks, reduction as reductions

ESTIMATORS = ("k1", "k2", "k3")


def sampled_kd_loss(
    logprobs: Tensor,
    teacher_logprobs: Tensor,
    *,
    estimator: str = "k1",
    behaviour_logprobs: Tensor | None = None,
    clip: float | None = None,
    advantage_clip: float | None = None,
    mask: Tensor | None = None,
    reduction: str = "mean",
    num_items: int | Tensor | None = None,
) -> Tensor:
    r"""An estimate of the reverse KL, from the log-probabilities of tokens that the student has drawn.

    For tokens $y \sim q$, the teacher says only how likely it finds them: $\log p_y$. With
    $a = \log q_y - \log p_y$ the loss of a token is

    ======  =========================  =============================  ==============================
    name    value                      gradient                       its expectation
    ======  =========================  =============================  ==============================
    ``k1``  $a$                        $a \nabla \log q_y$            that of the reverse KL, $D(q, p)$
    ``k2``  $a^2 / 2$                  $a \nabla \log q_y$            that of the reverse KL, $D(q, p)$
    ``k3``  $e^{-a} - 1 + a$           $(1 - e^{-a}) \nabla \log q_y$  that of the forward KL, $D(p, q)$
    ======  =========================  =============================  ==============================

    The values of ``k1`` and ``k3`` are unbiased, and that of ``k3`` is never negative. ``k1`` is trained in
    the advantage form of policy gradients, $\mathrm{sg}(a)\, \rho$ with the stopped gradient sg and the
    advantage $-a$, because the derivative of $a$ itself is 0 on average.

    Args:
        logprobs: ``(...)`` the student's, with a graph, in float32 or float64; see
            :func:`fastkd.token_logprobs`.
        teacher_logprobs: ``(...)`` the teacher's, whose graph is not used. With -inf, for a token that the
            teacher finds impossible, the loss is infinite unless ``advantage_clip`` is set.
        estimator: ``"k1"``, ``"k2"`` or ``"k3"``.
        behaviour_logprobs: ``(...)`` those with which the tokens were drawn, if the student has changed
            since. Each token counts $\rho = q_y / \mu_y$ times; by default 1.
        clip: limits how far a token is followed as in PPO (Schulman et al. 2017, equation 7): the loss of
            ``k1`` is the larger of $\rho a$ and $\mathrm{clip}(\rho, 1 - c, 1 + c)\, a$. For ``k1`` alone,
            with ``behaviour_logprobs``.
        advantage_clip: largest size of $a$; None for no limit. Clipped tokens bias the gradient.
        mask: ``(...)`` bool, True for the tokens that count; all by default.
        reduction: ``"mean"`` over the tokens that count, ``"sum"`` or ``"none"``.
        num_items: the number by which ``"mean"`` divides, for micro-batches of a larger batch.

    Returns:
        The reduced loss, or ``(...)`` for ``"none"``, where masked tokens are 0.

    Raises:
        ValueError: shapes that differ, an unknown estimator or reduction, limits that are not positive or
            that the estimator does not have.
        TypeError: an argument that is no floating-point tensor.

    Sources: J. Schulman, "Approximating KL divergence" (2020), for the names and values; Tang & Munos (2025),
    <https://arxiv.org/abs/2506.09477>, for the gradients.
    """
    checks.one_of("estimator", estimator, ESTIMATORS)
    checks.one_of("reduction", reduction, ("mean", "sum", "none"))
    reductions.check(reduction, num_items)
    for name, given in (
        ("logprobs", logprobs),
        ("teacher_logprobs", teacher_logprobs),
        ("behaviour_logprobs", behaviour_logprobs),
    ):
        if given is None:
            continue
        if not isinstance(given, Tensor) or not given.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {_kind(given)}")
        if given.shape != logprobs.shape:
            shapes = f"{tuple(given.shape)}, and logprobs {tuple(logprobs.shape)}"
            raise ValueError(f"{name} has shape {shapes}: they must agree")
    if mask is not None and (mask.shape != logprobs.shape or mask.dtype != torch.bool):
        raise ValueError(f"mask must be bool of shape {tuple(logprobs.shape)}")
    for name, limit in (("clip", clip), ("advantage_clip", advantage_clip)):
        if limit is not None and not limit > 0:
            raise ValueError(f"{name} must be positive, got {limit!r}")
    if clip is not None and (behaviour_logprobs is None or estimator != "k1"):
        raise ValueError(
            'clip is for estimator="k1" with behaviour_logprobs, from which the student has moved'
        )

    given = teacher_logprobs.detach().to(logprobs.dtype)
    kept = torch.ones_like(logprobs, dtype=torch.bool) if mask is None else mask
    # Masked tokens may hold anything. They get a log-probability of their own without a graph, whose
    # derivative is exactly 0.
    own = torch.where(kept, logprobs, 0.0)
    given = torch.where(kept, given, 0.0)
    found = _per_token(own, given, estimator, advantage_clip, clip, _ratio(own, behaviour_logprobs, kept))
    found = torch.where(kept, found, 0.0)
    if reduction == "none":
        return found
    if reduction == "sum":
        return found.sum()
    items = kept.sum() if num_items is None else num_items
    return found.sum() / torch.as_tensor(items, device=found.device).clamp(min=1).to(found.dtype)


def _ratio(own: Tensor, behaviour: Tensor | None, kept: Tensor) -> Tensor | None:
    """How much likelier the tokens are now than when they were drawn."""
    if behaviour is None:
        return None
    return torch.exp(own - torch.where(kept, behaviour.detach().to(own.dtype), 0.0))


def _per_token(
    own: Tensor, given: Tensor, estimator: str, limit: float | None, clip: float | None, ratio: Tensor | None
) -> Tensor:
    difference = own - given
    if limit is not None:
        difference = difference.clamp(-limit, limit)
    if estimator == "k1":
        fixed = difference.detach()
        if ratio is None:
            # The factor is 1 with the derivative of log q: the value is a, and the gradient a times it.
            return fixed * (1 + own - own.detach())
        followed = ratio * fixed
        if clip is not None:
            followed = torch.maximum(followed, ratio.clamp(1 - clip, 1 + clip) * fixed)
        return followed
    weight = 1.0 if ratio is None else ratio.detach()
    if estimator == "k2":
        return weight * difference.square() / 2
    return weight * (torch.expm1(-difference) + difference)


def _kind(given: object) -> str:
    return str(given.dtype) if isinstance(given, Tensor) else type(given).__name__
