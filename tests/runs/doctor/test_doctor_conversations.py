"""Test the doctor's findings about prompts, and about chat templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import chats
from support.chats import talk
from support.doctor import edit, look, row, write_rows

BASE = {"eval_file": None, "max_length": 128}


def chatty(template: str, rows: list[Any], merges: Any = ()) -> None:
    tokenizer = chats.tokenizer(template, merges)
    for side in ("student", "teacher"):
        edit(f"{side}/config.json", vocab_size=len(tokenizer), max_position_embeddings=128)
        tokenizer.save_pretrained(side)
    write_rows("train.jsonl", [{"messages": messages} for messages in rows])


def test_prompts_that_end_inside_a_word(place: Path) -> None:
    assert "prompts_end_elsewhere" not in look(**BASE)
    glued = {"prompt": "w1 w2", "completion": "w3 w4"}
    write_rows("train.jsonl", [*(row(i) for i in range(30)), *[glued] * 10])
    finding = look(**BASE)["prompts_end_elsewhere"]
    assert finding.severity == "warning" and "10 of 40 rows (25 %)" in finding.found
    assert "move a space" in finding.remedy


@pytest.mark.parametrize("reasoning", [None, "2 + 2"])
def test_thinking_that_the_template_opens_and_answers_lack(place: Path, reasoning: str | None) -> None:
    messages = talk("two and two?", "four")
    if reasoning:
        messages[1]["reasoning_content"] = reasoning
    chatty(chats.OPENED, [messages] * 4, [("Ċ", "Ċ")])
    found = look(**BASE)
    assert ("prompts_end_elsewhere" in found) == (reasoning is None)
    if reasoning is None:
        assert "enable_thinking: false" in found["prompts_end_elsewhere"].remedy
        assert r"<think>\n' and are trained in" in found["prompts_end_elsewhere"].found


def test_rewritten_turns_and_dates(place: Path) -> None:
    chatty(chats.PLAIN, [talk("a?", "b", "c?", "d")] * 4)
    assert not {"rewritten_turns", "template_date"} & set(look(**BASE))
    chatty("{# strftime_now #}" + chats.DROPPED, [talk("a?", "b", "c?", "d")] * 4)
    found = look(**BASE)
    assert "4 of 4 rows" in found["rewritten_turns"].found
    assert "they become 4 more rows" in found["rewritten_turns"].found
    assert found["template_date"].severity == "note"
    found = look(**BASE, rewritten_turns="last")
    assert "4 answers are not trained on" in found["rewritten_turns"].found
