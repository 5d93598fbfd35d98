"""Test source and target languages, and the decoder's input, of multilingual encoder-decoders."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import families, languages
from transformers import BlenderbotConfig, BlenderbotForConditionalGeneration

from fastkd.corpora.decode import decode
from fastkd.corpora.languages import prepare_model, set_languages
from fastkd.corpora.tasks import TASKS
from fastkd.corpora.tasks.seq2seq import decoder_inputs, fitted_source

SEQ2SEQ = TASKS["seq2seq"]
CODES = {"nllb": ("eng_Latn", "deu_Latn"), "mbart": ("en_XX", "de_DE"), "mbart50": ("en_XX", "de_DE")}


def settings(source: str | None = None, target: str | None = None, **fields: Any) -> Any:
    defaults = {"max_length": 16, "max_target_length": 16, "forced_bos_token_id": None}
    return SimpleNamespace(source_language=source, target_language=target, **{**defaults, **fields})


def encoded(tokenizer: Any, args: Any, source: str = "ab", target: str = "cd") -> dict[str, list[str]]:
    row = SEQ2SEQ.encode({"source": source, "target": target}, ("source", "target"), tokenizer, args)
    assert row is not None
    return {name: tokenizer.convert_ids_to_tokens(row[name]) for name in ("input_ids", "labels")}


@pytest.mark.parametrize("kind", CODES)
def test_each_side_is_marked_with_its_language(kind: str) -> None:
    tokenizer = getattr(languages, kind)()
    source, target = CODES[kind]
    args = settings(source, target)
    set_languages(tokenizer, args)
    found = encoded(tokenizer, args)
    if kind == "mbart":
        assert found == {
            "input_ids": ["▁", "a", "b", "</s>", source],
            "labels": ["▁", "c", "d", "</s>", target],
        }
    else:
        assert found == {
            "input_ids": [source, "▁", "a", "b", "</s>"],
            "labels": [target, "▁", "c", "d", "</s>"],
        }


@pytest.mark.parametrize("kind", CODES)
def test_unknown_or_missing_languages_are_refused(kind: str) -> None:
    make = getattr(languages, kind)
    source, target = CODES[kind]
    with pytest.raises(ValueError, match="target_language is not set, but .* marks every text"):
        set_languages(make(), settings())
    with pytest.raises(ValueError, match="source_language is not set"):
        set_languages(make(), settings(None, target))
    with pytest.raises(ValueError, match=f"is {target[:-1]}, which .* does not know; did you mean {target}"):
        set_languages(make(), settings(source, target[:-1]))
    set_languages(make(src_lang=source, tgt_lang=target), settings())  # they are stored with the tokenizer


def test_a_tokenizer_without_languages() -> None:
    tokenizer = SimpleNamespace(eos_token_id=0)
    set_languages(tokenizer, settings())
    with pytest.raises(
        ValueError, match="target_language is deu_Latn, but SimpleNamespace marks no languages"
    ):
        set_languages(tokenizer, settings(None, "deu_Latn"))


def test_m2m100(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    tokenizer = languages.m2m100(tmp_path)
    with pytest.raises(ValueError, match="target_language is not set"):
        set_languages(tokenizer, settings())
    args = settings("en", "de")
    set_languages(tokenizer, args)
    assert encoded(tokenizer, args)["labels"][0] == "__de__"
    assert encoded(tokenizer, args)["input_ids"][0] == "__en__"
    model = languages.m2m100_model(0, len(tokenizer))
    prepare_model(model, tokenizer, args)
    assert model.generation_config.forced_bos_token_id == tokenizer.get_lang_id("de")


@pytest.mark.parametrize("kind", CODES)
def test_answers_are_in_the_target_language(kind: str) -> None:
    tokenizer = getattr(languages, kind)()
    args = settings(*CODES[kind])
    set_languages(tokenizer, args)
    wanted = tokenizer.convert_tokens_to_ids(CODES[kind][1])
    model = (
        languages.m2m100_model(0, len(tokenizer))
        if kind == "nllb"
        else languages.mbart_model(0, len(tokenizer), 2 if kind == "mbart50" else None)
    )
    prepare_model(model, tokenizer, args)
    if kind == "mbart":
        assert model.config.decoder_start_token_id == model.generation_config.decoder_start_token_id == wanted
        return
    prompts = [tokenizer("ab")["input_ids"], tokenizer("c")["input_ids"]]
    for _, (answer,) in decode(model, SEQ2SEQ, tokenizer, prompts, max_new_tokens=5):
        assert answer.tokens[0] == wanted
        assert CODES[kind][1] not in answer.text


def test_a_first_token_of_ones_own() -> None:
    model = families.bart(0)
    prepare_model(model, SimpleNamespace(), settings(forced_bos_token_id=7))
    assert model.generation_config.forced_bos_token_id == 7
    with pytest.raises(ValueError, match="forced_bos_token_id is 48, but the model has the tokens 0 to 47"):
        prepare_model(model, SimpleNamespace(), settings(forced_bos_token_id=48))


def test_a_cut_source_keeps_what_closes_it() -> None:
    tokenizer = languages.mbart()
    args = settings("en_XX", "de_DE", max_length=5, max_target_length=4)
    set_languages(tokenizer, args)
    found = encoded(tokenizer, args, "abcdefgh", "abcdefgh")
    assert found == {"input_ids": ["▁", "a", "b", "</s>", "en_XX"], "labels": ["▁", "a", "b", "c"]}
    assert fitted_source([5, 6, 7, 8], 2, tokenizer) == [5, 6]


def blenderbot(seed: int) -> Any:
    torch.manual_seed(seed)
    config = BlenderbotConfig(
        vocab_size=48, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32,
        init_std=0.4, dropout=0.0, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return BlenderbotForConditionalGeneration(config)


def mbart50(seed: int) -> Any:
    return languages.mbart_model(seed, 48, 2)


def m2m100(seed: int) -> Any:
    return languages.m2m100_model(seed, 48)


@pytest.mark.parametrize("make", [families.bart, families.t5, m2m100, mbart50, blenderbot])
def test_the_decoder_reads_what_the_model_would_read(make: Any) -> None:
    """Complete labels give the logits that the model itself computes from them."""
    model = make(0).eval()
    end = model.config.eos_token_id
    batch = SEQ2SEQ.collate(
        [{"input_ids": [5, 6, 7, end], "labels": [9, 10, end]}, {"input_ids": [8, end], "labels": [11, end]}],
        0,
    )
    with torch.no_grad():
        expected = model(**batch).logits
        found = model(**SEQ2SEQ.model_inputs(model, batch)).logits
    real = batch["labels"] != -100
    torch.testing.assert_close(found[real], expected[real])


def test_a_cut_target_does_not_move_to_the_front() -> None:
    """mBART's own method moves the last label, which is no end if the target was cut."""
    labels = torch.tensor([[9, 10, 11]])
    assert decoder_inputs(mbart50(0), labels).tolist() == [[2, 9, 10]]


def test_a_model_without_a_start_token() -> None:
    model = m2m100(0)
    model.config.decoder_start_token_id = None
    with pytest.raises(ValueError, match="M2M100ForConditionalGeneration has no decoder_start_token_id"):
        decoder_inputs(model, torch.tensor([[9]]))
