"""Test the doctor's findings about rows and their labels."""

from __future__ import annotations

from pathlib import Path

import transformers
from support.doctor import edit, look, row, write_rows


def test_ends_that_are_cut_off(place: Path) -> None:
    finding = look(max_length=3)["eos_missing"]
    assert finding.severity == "warning" and "of 40 rows" not in finding.found.split("(")[1]
    assert "are cut" in finding.found


def test_empty_and_masked_rows(place: Path) -> None:
    rows = [row(i) for i in range(40)]
    rows[3] = {"prompt": "w1", "completion": ""}
    write_rows("train.jsonl", rows)
    assert look()["empty_rows"].found.startswith("1 of 40 rows (2.5 %)")
    talk = [{"messages": [{"role": "user", "content": "w1"}]}] * 4
    write_rows("train.jsonl", talk)
    finding = look(eval_file=None)["labels_masked"]
    assert finding.severity == "error" and finding.found.startswith("4 of 4 rows")


def test_prompts_and_answers_that_are_cut(place: Path) -> None:
    long = {"prompt": " ".join(["w1"] * 32), "completion": " w2 w3"}
    write_rows("train.jsonl", [*(row(i) for i in range(38)), long, long])
    finding = look()["prompts_fill_the_window"]
    assert "2 of 40 rows (5 %) lose the beginning of their prompt" in finding.found
    assert "end of their answer" not in finding.found
    write_rows("train.jsonl", [*(row(i) for i in range(39)), {"prompt": "w1", "completion": " w2" * 50}])
    finding = look()["prompts_fill_the_window"]
    assert "1 of 40 rows (2.5 %) lose the end of their answer" in finding.found
    assert finding.severity == "warning"


def test_whole_texts_that_are_cut(place: Path) -> None:
    write_rows("train.jsonl", [{"text": " ".join(["w1"] * (i + 1))} for i in range(40)])
    finding = look(eval_file=None)["rows_cut"]
    assert "9 of 40 rows" in finding.found and "the longest has 41 tokens" in finding.found
    assert "packing: true" in finding.remedy


def test_positions_that_run_out(place: Path) -> None:
    write_rows("train.jsonl", [{"text": " ".join(["w1"] * 40)}] + [{"text": "w1 w2"}] * 2)
    assert look(eval_file=None, max_length=64)["student_positions"].severity == "warning"  # rotary
    config = transformers.GPT2Config(
        vocab_size=48, n_embd=16, n_layer=1, n_head=2, n_positions=32, eos_token_id=0, bos_token_id=0
    )
    config.save_pretrained("student")
    finding = look(eval_file=None, max_length=64)["student_positions"]
    assert finding.severity == "error" and "41 tokens" in finding.found and "32 positions" in finding.found


def test_a_prompt_of_the_teacher_that_is_too_long(place: Path) -> None:
    rows = [{**row(i), "hint": "w1 " * (20 if i == 7 else 3)} for i in range(40)]
    write_rows("train.jsonl", rows)
    settings = {"eval_file": None, "teacher_prompt": "{hint} {prompt}"}
    longest = 20 + len(rows[7]["prompt"].split()) + len(rows[7]["completion"].split()) + 1
    assert "teacher_prompt_positions" not in look(**settings)
    config = transformers.GPT2Config(
        vocab_size=48, n_embd=16, n_layer=1, n_head=2, n_positions=longest - 1, eos_token_id=0, bos_token_id=0
    )
    config.save_pretrained("teacher")
    finding = look(**settings)["teacher_prompt_positions"]
    assert finding.severity == "error"
    assert (
        f"teacher_prompt and the answer have {longest} tokens, and the teacher {longest - 1}" in finding.found
    )
    config.n_positions = longest
    config.save_pretrained("teacher")
    assert "teacher_prompt_positions" not in look(**settings)
    written = look(**settings, lmbda=1.0, control=False, max_completion_length=16)["teacher_prompt_positions"]
    assert f"have {longest - len(rows[7]['completion'].split()) - 1 + 16} tokens" in written.found
    edit("student/config.json", max_position_embeddings=longest - 1)  # rotary: it only loses quality
    own = look(**settings, teacher="self", self_weights="ema")["teacher_prompt_positions"]
    assert own.severity == "warning"


def test_tokens_that_a_model_does_not_have(place: Path) -> None:
    edit("teacher/config.json", vocab_size=40)
    finding = look()["teacher_tokens"]
    assert (
        finding.severity == "error"
        and "the token 47 ('w44') and the teacher has embeddings for 40" in finding.found
    )


def test_columns_that_nobody_reads(place: Path) -> None:
    write_rows("train.jsonl", [{**row(i), "id": i, "text": "rendered"} for i in range(40)])
    finding = look()["unread_columns"]
    assert finding.severity == "note"
    assert finding.found == "train_file is read as prompt+completion; nobody reads the columns id, text"


def test_prompts_alone(place: Path) -> None:
    write_rows("train.jsonl", [{"prompt": row(i)["prompt"]} for i in range(40)])
    assert "no answers" in look()["unreadable_train_file"].found
    found = look(lmbda=1.0)
    assert not {"unreadable_train_file", "labels_masked", "eos_missing"} & set(found)


def test_duplicates_and_leaks(place: Path) -> None:
    rows = [row(i) for i in range(40)]
    write_rows("train.jsonl", [*rows, *rows[:5]])
    write_rows("eval.jsonl", [row(41), rows[0]])
    found = look()
    assert found["duplicates"].found.startswith("5 of 45 rows")
    assert found["leak"].severity == "warning" and found["leak"].found.startswith("1 of 2 rows (50 %)")
    assert repr(rows[0]["prompt"])[1:-1] in found["leak"].found


def test_a_language_that_the_tokenizer_does_not_know(place: Path) -> None:
    write_rows("train.jsonl", [{"prompt": "w1 hello", "completion": "w2 world"}] * 3)
    assert look()["unknown_tokens"].severity == "warning"


def test_a_target_without_its_first_token(place: Path) -> None:
    """An error is reported if a seq2seq model has no decoder start token."""
    for side in ("student", "teacher"):
        transformers.T5Config(
            vocab_size=48,
            d_model=16,
            d_kv=8,
            d_ff=16,
            num_layers=1,
            num_heads=2,
            eos_token_id=0,
            pad_token_id=2,
        ).save_pretrained(side)
        edit(f"{side}/config.json", decoder_start_token_id=None)
    assert look(task="seq2seq")["student_decoder_start"].severity == "error"
    for side in ("student", "teacher"):
        edit(f"{side}/config.json", decoder_start_token_id=2)
    assert not [f for f in look(task="seq2seq").values() if f.severity == "error"]
    cut = look(task="seq2seq", eval_file=None, max_target_length=3)["rows_cut"].found
    assert "30 of 40 rows" in cut and "the longest target 6, max_target_length 3" in cut
