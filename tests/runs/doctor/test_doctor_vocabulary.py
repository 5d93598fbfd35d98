"""Test the doctor's findings about vocabularies and special tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers
from support.doctor import WORDS, edit, look, tokenizer
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


def test_padded_vocabularies_are_noted(place: Path) -> None:
    edit("teacher/config.json", vocab_size=64)
    finding = look()["vocabulary_padding"]
    assert finding.severity == "note"
    assert "48 output columns, the teacher 64" in finding.found and "first 48" in finding.found


def test_a_vocabulary_that_is_too_small(place: Path) -> None:
    edit("teacher/config.json", vocab_size=40)
    finding = look()["vocabulary_too_small"]
    assert finding.severity == "error"
    assert "48 tokens and the teacher 40 columns" in finding.found


def test_the_same_number_for_another_token(place: Path) -> None:
    """An error is reported if a token number stands for different tokens in the two vocabularies."""
    words = list(WORDS)
    words[10:14] = reversed(words[10:14])
    tokenizer(words).save_pretrained("teacher")
    finding = look()["vocabulary_contents"]
    assert finding.severity == "error"
    assert finding.found.startswith("4 of 48 token numbers")
    assert "10 is 'w7' and 'w10', 11 is 'w8' and 'w9', 12 is 'w9' and 'w8' and 1 more" in finding.found


def test_a_reserved_token_with_another_name(place: Path) -> None:
    made = tokenizer([*WORDS[:-1], "<tool>"])
    made.add_special_tokens({"additional_special_tokens": ["<tool>"]})
    made.save_pretrained("teacher")
    ours = tokenizer([*WORDS[:-1], "<reserved>"])
    ours.add_special_tokens({"additional_special_tokens": ["<reserved>"]})
    ours.save_pretrained("student")
    found = look()
    assert found["special_tokens_renamed"].severity == "note" and "vocabulary_contents" not in found
    assert "47 is '<reserved>' and '<tool>'" in found["special_tokens_renamed"].found


def test_tokens_that_only_one_side_has(place: Path) -> None:
    tokenizer([*WORDS, "extra"]).save_pretrained("teacher")
    edit("teacher/config.json", vocab_size=49)
    found = look()
    assert found["tokens_of_teacher_only"].severity == "note"
    assert "extra" in found["tokens_of_teacher_only"].found


def test_the_same_vocabulary_split_otherwise(place: Path) -> None:
    """A warning is reported if equal vocabularies split texts differently."""
    made = tokenizer()
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    made.save_pretrained("teacher")
    finding = look()["tokenizers_splitting"]
    assert finding.severity == "warning" and "80 of 80 texts" in finding.found


def test_a_beginning_that_only_the_teacher_writes(place: Path) -> None:
    """It is reported if only the teacher's tokenizer adds a token at the beginning of a text."""
    made = tokenizer(bos_token="w44")
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "w44 $A", special_tokens=[("w44", 47)]
    )
    made.save_pretrained("teacher")
    found = look()
    assert "w44" in found["tokenizers_opening"].found
    assert found["special_bos_token"].severity == "warning"


def test_special_tokens_that_differ(place: Path) -> None:
    tokenizer(eos_token="w1", pad_token="w2").save_pretrained("teacher")
    found = look()
    assert found["special_eos_token"].severity == "warning"
    assert "'<end>'" in found["special_eos_token"].found and "'w1'" in found["special_eos_token"].found
    assert found["special_pad_token"].severity == "note"


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_an_end_at_which_the_model_does_not_stop(place: Path, side: str) -> None:
    edit(f"{side}/config.json", eos_token_id=5)
    finding = look()[f"{side}_eos"]
    assert finding.severity == "warning" and "config.json stops at 5" in finding.found
    edit(f"{side}/config.json", eos_token_id=[5, 0])
    assert f"{side}_eos" not in look()
    transformers.GenerationConfig(eos_token_id=7).save_pretrained(side)
    assert "generation_config.json stops at 7" in look()[f"{side}_eos"].found


def test_another_padding_in_the_configuration(place: Path) -> None:
    edit("student/config.json", pad_token_id=9)
    assert look()["student_pad"].severity == "note"


def test_a_tokenizer_without_an_end(place: Path) -> None:
    for side in ("student", "teacher"):
        tokenizer(eos_token=None).save_pretrained(side)  # type: ignore[arg-type]
    assert look()["no_eos"].severity == "warning"


def another_tokenizer() -> None:
    """Give the teacher a tokenizer of single letters, whose spaces are in no token either."""
    letters = ["<end>", "<unk>", "<pad>", "w", *"0123456789"]
    made = Tokenizer(models.WordLevel({token: i for i, token in enumerate(letters)}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("."), "isolated")]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<end>", unk_token="<unk>", pad_token="<pad>"
    ).save_pretrained("teacher")


def test_the_share_of_the_data_that_aligns(place: Path) -> None:
    another_tokenizer()
    refused = look()["vocabulary_contents"]
    assert refused.severity == "error" and "set cross_tokenizer: spans" in refused.remedy
    found = look(cross_tokenizer="spans")
    assert "vocabulary_contents" not in found and found["alignment"].severity == "note"
    assert found["alignment"].found.startswith("94 % of the student's 180 labels")  # two rows are cut
    assert not [f for f in found.values() if f.severity == "error"]
    # The teacher's side is cut long before the student's.
    cut = look(cross_tokenizer="spans", max_length=6)["alignment"]
    assert cut.severity == "warning" and "raise max_length" in cut.remedy and cut.found.startswith("only ")


def test_what_cross_tokenizer_refuses(place: Path) -> None:
    same = look(cross_tokenizer="spans")["cross_tokenizer"]
    assert same.severity == "error" and same.remedy == "leave it out"
    another_tokenizer()
    for crossing in ("hybrid", "gold"):
        refused = look(cross_tokenizer=crossing, packing=True)["crossed_with_packing"]
        assert refused.severity == "error" and refused.found.startswith(f"cross_tokenizer: {crossing}")
    for path in Path("teacher").glob("*token*"):
        path.unlink()
    assert "none was saved beside" in look(cross_tokenizer="spans")["cross_tokenizer"].found


def test_a_teacher_is_measured_with_its_own_tokens(place: Path) -> None:
    another_tokenizer()
    edit("teacher/config.json", vocab_size=48)
    said = {"teacher_better", "teacher_no_better", "teacher_guesses"}
    found = look(fast=False, cross_tokenizer="spans")
    assert said & set(found) and not [f for f in found.values() if f.severity == "error"]
