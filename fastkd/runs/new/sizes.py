"""Widths of a smaller model: those that are asked for, and the others in proportion."""

from __future__ import annotations

from typing import Any

_HEADS = (
    "num_attention_heads", "num_heads", "n_head", "n_heads", "encoder_attention_heads",
    "decoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads",
)  # fmt: skip
_GROUPS = ("num_key_value_heads", "num_kv_heads")
_INNER = (
    "intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "n_inner", "hidden_dim",
    "ffn_hidden_size",
)  # fmt: skip
_INNER_OF_EXPERTS = ("moe_intermediate_size", "shared_expert_intermediate_size")
# Widths that belong to the hidden states only where they equal them.
_BESIDE = ("word_embed_proj_dim", "pooler_hidden_size")


def narrowed(config: Any, widths: dict[str, int]) -> dict[str, Any]:
    """The fields of a config that change with the widths that are asked for.

    Heads become fewer and keep their size where the width allows it. The feed-forward layers, those of
    experts too, shrink in proportion.

    Args:
        config: the teacher's.
        widths: ``hidden_size``, ``intermediate_size``, ``num_attention_heads``, ``num_key_value_heads``, or
            some of them.

    Raises:
        ValueError: numbers of heads that do not divide what they must, or a field that the model lacks.
    """
    fields = config.to_dict()
    alias = dict(getattr(config, "attribute_map", None) or {})
    width_name = alias.get("hidden_size", "hidden_size")
    old = fields.get(width_name)
    if not isinstance(old, int):
        raise ValueError("the config of the teacher does not say how wide it is: give --layers alone")
    width = widths.get("hidden_size", old)
    found: dict[str, Any] = {width_name: width}
    for name in _BESIDE:
        if fields.get(name) == old:
            found[name] = width
    found |= _heads(fields, alias, old, width, widths)
    for name in (*_INNER, *_INNER_OF_EXPERTS):
        if name == width_name or not isinstance(fields.get(name), int):
            continue
        main = name in _INNER or not any(isinstance(fields.get(inner), int) for inner in _INNER)
        asked = widths.get("intermediate_size") if main else None
        found[name] = asked or scaled(fields[name], old, width)
    if "intermediate_size" in widths and widths["intermediate_size"] not in found.values():
        inner = next((name for name in _INNER if name in fields and name != width_name), None)
        if inner is None:
            raise ValueError("the teacher's config has no intermediate_size: leave --intermediate-size out")
        found[inner] = widths["intermediate_size"]
    return {name: value for name, value in found.items() if fields.get(name) != value}


def scaled(inner: int, old: int, width: int) -> int:
    """``inner * width / old``, as a multiple of 8 if ``inner`` is one."""
    step = 8 if inner % 8 == 0 else 1
    return max(step, round(inner * width / old / step) * step)


def _heads(
    fields: dict[str, Any], alias: dict[str, str], old: int, width: int, widths: dict[str, int]
) -> dict[str, Any]:
    """The numbers of heads and, where the config has it, the size of one."""
    found: dict[str, Any] = {}
    size_name = alias.get("head_dim", "head_dim")
    size = fields.get(size_name)
    names = [name for name in _HEADS if isinstance(fields.get(name), int)]
    if not names:
        if "num_attention_heads" in widths:
            raise ValueError(
                "the teacher's config has no num_attention_heads: leave --num-attention-heads out"
            )
        return found
    before = fields[names[0]]
    # A size of its own, as Qwen3 and Gemma have it, is not that of the hidden states over the heads.
    independent = isinstance(size, int) and size * before != old
    for name in names:
        heads = widths.get("num_attention_heads") or divisor(
            width, fields[name] * width / old, even=not independent
        )
        if not independent and width % heads:
            raise ValueError(
                f"hidden_size {width} is no multiple of num_attention_heads {heads}: give "
                f"{divisor(width, heads)} heads, or hidden_size {max(1, round(width / heads)) * heads}"
            )
        found[name] = heads
    heads = found[names[0]]
    if isinstance(size, int) and not independent:
        found[size_name] = width // heads
    for name in (name for name in _GROUPS if isinstance(fields.get(name), int)):
        groups = widths.get("num_key_value_heads") or divisor(heads, fields[name] * heads / before)
        if heads % groups:
            raise ValueError(
                f"num_attention_heads {heads} is no multiple of num_key_value_heads {groups}: give "
                f"{divisor(heads, groups)} key-value heads"
            )
        found[name] = groups
    if "num_key_value_heads" in widths and not any(name in found for name in _GROUPS):
        raise ValueError("the teacher's config has no num_key_value_heads: leave --num-key-value-heads out")
    return found


def divisor(whole: int, near: float, even: bool = False) -> int:
    """The divisor of ``whole`` whose ratio to ``near`` is closest to 1.

    Args:
        even: whether ``whole`` over the divisor must be even, as rotary positions need it, if any is.
    """
    divisors = [d for d in range(1, whole + 1) if whole % d == 0]
    if even:
        divisors = [d for d in divisors if whole // d % 2 == 0] or divisors
    return min(divisors, key=lambda d: max(d / near, near / d))
