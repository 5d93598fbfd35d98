"""The setting ``generation_kwargs``: options of ``generate`` that apply wherever a model writes."""

from __future__ import annotations

import difflib
from typing import Any

from transformers import GenerationConfig

# Options that have a field of their own, or that the decoder sets itself.
FIELDS = {
    "num_beams": "num_beams",
    "do_sample": "generation_mode",
    "temperature": "sampling_temperature",
    "max_new_tokens": "max_completion_length",
    "max_length": "max_completion_length",
    "forced_bos_token_id": "forced_bos_token_id",
    "decoder_start_token_id": "target_language",
}
SET_BY_DECODER = (
    "num_return_sequences",
    "use_cache",
    "return_dict_in_generate",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "output_logits",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)
NUMBERS = (
    "length_penalty",
    "repetition_penalty",
    "encoder_repetition_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "min_length",
    "min_new_tokens",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
)
OF_BEAMS = ("length_penalty", "early_stopping")
OF_SAMPLES = ("top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")


def check_generation_kwargs(given: Any) -> None:
    """Validate the value of the field ``generation_kwargs``; None is valid.

    Raises:
        ValueError: no mapping, an unknown option, one that a field sets, or a value that is not possible.
    """
    if given is None:
        return
    if not isinstance(given, dict):
        raise ValueError(f"generation_kwargs must be a mapping, not {given!r}")
    known = [name for name in vars(GenerationConfig()) if not name.startswith("_")]
    for name, value in given.items():
        if name in FIELDS:
            raise ValueError(f"generation_kwargs has {name}, which the field {FIELDS[name]} sets")
        if name in SET_BY_DECODER:
            raise ValueError(f"generation_kwargs has {name}, which fastkd sets itself: leave it out")
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"generation_kwargs has {name}, which is no option of generate{hint}")
        if name in NUMBERS and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise ValueError(f"generation_kwargs: {name} must be a number, not {value!r}")
    try:
        GenerationConfig(**given, num_beams=2, do_sample=any(name in OF_SAMPLES for name in given))
    except (TypeError, ValueError) as error:
        raise ValueError(f"generation_kwargs: {' '.join(str(error).split())}") from error


def applicable(given: dict[str, Any] | None, num_beams: int, do_sample: bool) -> dict[str, Any]:
    """The given options without those of beam search if there is one beam, and without those of sampling if
    the likeliest tokens are taken: ``generate`` would only warn of them.
    """
    idle = (*(OF_BEAMS if num_beams == 1 else ()), *(() if do_sample else OF_SAMPLES))
    return {name: value for name, value in (given or {}).items() if name not in idle}
