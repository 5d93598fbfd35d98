"""Source and target languages of multilingual encoder-decoders (M2M100, NLLB, mBART).

Their tokenizers add a token that names the language to every text. A model learns from the target's token in
which language to answer, and has to be given that token when it writes: as the first token of the answer
(``forced_bos_token_id``), or as the token that starts the decoder where the tokenizer puts it at the end.
"""

from __future__ import annotations

import difflib
from typing import Any, Protocol


class LanguageSettings(Protocol):
    """The settings that name the languages.

    Attributes:
        source_language, target_language: codes as the tokenizer spells them; None for the tokenizer's own.
        forced_bos_token_id: first token of every answer; None for the token of the target language, if any.
    """

    source_language: str | None
    target_language: str | None
    forced_bos_token_id: int | None


def set_languages(tokenizer: Any, args: LanguageSettings) -> None:
    """Give the languages of the configuration to the tokenizer.

    Raises:
        ValueError: languages for a tokenizer that has none or does not know them, or a tokenizer with
            languages whose target language is not known. (It would take the source language for it.)
    """
    given = {"source_language": args.source_language, "target_language": args.target_language}
    kind = type(tokenizer).__name__
    if not (hasattr(tokenizer, "src_lang") and hasattr(tokenizer, "tgt_lang")):
        for field, language in given.items():
            if language is not None:
                raise ValueError(
                    f"{field} is {language}, but {kind} marks no languages (as those of M2M100, NLLB and "
                    "mBART do): leave it out"
                )
        return
    for field, name in (("source_language", "src_lang"), ("target_language", "tgt_lang")):
        language = given[field]
        if language is not None and getattr(tokenizer, name) != language:
            _require_known(tokenizer, field, language)
            setattr(tokenizer, name, language)
    if tokenizer.src_lang is None and tokenizer.tgt_lang is None:  # PLBart without languages
        return
    stored = getattr(tokenizer, "init_kwargs", {})
    missing = [
        field
        for field, known in (
            ("source_language", given["target_language"] is None or stored.get("src_lang")),
            ("target_language", tokenizer.tgt_lang),
        )
        if given[field] is None and not known
    ]
    if missing:
        codes = " and ".join(_codes(tokenizer)[:2])
        raise ValueError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set, but {kind} marks "
            "every text with its language: set source_language and target_language"
            + (f" (it knows {codes}, for example)" if codes else "")
        )


def languages_of(tokenizer: Any) -> dict[str, str]:
    """The languages of a tokenizer by the names of their fields; empty for one that marks none."""
    if getattr(tokenizer, "tgt_lang", None) is None:
        return {}
    return {"source_language": tokenizer.src_lang, "target_language": tokenizer.tgt_lang}


def prepare_model(model: Any, tokenizer: Any, args: LanguageSettings) -> None:
    """Make the model write in the tokenizer's target language, or begin with ``forced_bos_token_id``.

    The setting goes into the model's generation config, which is saved with the model.

    Raises:
        ValueError: ``forced_bos_token_id`` is no token of the model.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    settings = getattr(base, "generation_config", None)
    if settings is None or not base.config.is_encoder_decoder:
        return
    first = args.forced_bos_token_id
    if first is None and getattr(tokenizer, "tgt_lang", None) is not None:
        language, at_front = _mark(tokenizer)
        if at_front:
            first = language
        elif language is not None:
            base.config.decoder_start_token_id = settings.decoder_start_token_id = language
    if first is None:
        return
    columns = base.get_output_embeddings().out_features
    if not 0 <= first < columns:
        raise ValueError(f"forced_bos_token_id is {first}, but the model has the tokens 0 to {columns - 1}")
    settings.forced_bos_token_id = first


def _mark(tokenizer: Any) -> tuple[int | None, bool]:
    """The token of the target language, and whether the tokenizer puts it before a text."""
    ids = list(tokenizer(text_target="", verbose=False)["input_ids"])
    plain = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    marks = [token for token in ids if token not in plain]
    return (marks[0], ids[0] == marks[0]) if len(marks) == 1 else (None, False)


def _require_known(tokenizer: Any, field: str, language: str) -> None:
    codes = _codes(tokenizer)
    convert = getattr(tokenizer, "_convert_lang_code_special_format", lambda code: code)  # PLBart
    if convert(language) not in codes:
        near = difflib.get_close_matches(language, codes, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else f" (it knows {', '.join(codes[:3])} and others)"
        raise ValueError(f"{field} is {language}, which {type(tokenizer).__name__} does not know{hint}")


def _codes(tokenizer: Any) -> list[str]:
    """The codes of the languages that the tokenizer knows."""
    listed = getattr(tokenizer, "lang_code_to_id", None)
    if listed:
        return list(listed)
    return [token for token in tokenizer.all_special_tokens if not token.startswith("<")]
