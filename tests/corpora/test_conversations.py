"""Test what a chat template is given: nothing that a table filled in, and a sentence for wrong data."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from support import chats
from support.chats import talk

from fastkd.corpora.conversations import conversation
from fastkd.corpora.tasks import TASKS

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"a": {"type": "number"}}}}


def rendered(template: str | None, row: dict[str, Any], **options: Any) -> str:
    settings = SimpleNamespace(chat_template_kwargs=options or None)
    return conversation(row, chats.tokenizer(template), settings).rendered()


def calling(name: str, **arguments: Any) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    tool = {"type": "function", "function": {"name": name, "parameters": dict.fromkeys(arguments, "x")}}
    said = {"role": "assistant", "content": None, "tool_calls": [call]}
    return {"messages": [*talk("hi"), said, {"role": "tool", "content": "out"}], "tools": [tool]}


def test_keys_that_other_rows_have_are_not_rendered() -> None:
    """Tables give every row the keys of all rows, and their values are null."""
    given = [calling("weather", city="B"), calling("clock", zone="U")]
    for row, plain in zip(Dataset.from_list(given), given, strict=True):
        text = rendered(chats.TOOLS, row)
        assert "null" not in text and "None" not in text
        assert text == rendered(chats.TOOLS, {**plain, "tools": json.dumps(plain["tools"])})
    assert '"zone": "U"' in text and "city" not in text


@pytest.mark.parametrize("message", [{"content": None}, {}, {"content": "", "tool_calls": None}])
def test_an_empty_content_is_no_text(message: dict[str, Any]) -> None:
    row = {"messages": [{"role": "user", **message}, *talk("a")]}
    assert rendered(chats.PLAIN, row) == "<|im_start|>user\n<|im_end|>\n<|im_start|>user\na<|im_end|>\n"


def test_keywords_of_the_template() -> None:
    template = "{{ mood | default('calm') }} {{ pace | default('slow') }} {{ messages[0].content }}"
    row = {"messages": talk("a")}
    assert rendered(template, row) == "calm slow a"
    assert rendered(template, row, mood="gay") == "gay slow a"
    more = {"mood": None, "pace": "quick"}
    assert rendered(template, {**row, "chat_template_kwargs": more}, mood="gay") == "gay quick a"
    assert rendered(template, {**row, "chat_template_kwargs": json.dumps(more)}) == "calm quick a"


PARTS = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"


@pytest.mark.parametrize("template", ["{{ messages[0].content }}", "{{ '' + messages[0].content }}", PARTS])
def test_parts_of_a_content_are_text(template: str) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert rendered(template, {"messages": [{"role": "user", "content": parts}]}) == "ab"


def test_a_mapping_of_lists_is_a_list_of_messages() -> None:
    row = {"messages": {"role": ["user", "assistant"], "content": ["a", "b"]}}
    assert rendered(chats.PLAIN, row) == rendered(chats.PLAIN, {"messages": talk("a", "b")})


REFUSES = "{{ raise_exception('System role not supported') }}"
IMAGE = [{"type": "image", "image": "a.png"}]


@pytest.mark.parametrize(
    ("template", "row", "sentence"),
    [
        (None, {"messages": talk("a")}, "the tokenizer has no chat template, which conversations need"),
        (
            REFUSES,
            {"messages": talk("a", "b")},
            r"conversation \(user, assistant\): System role not supported",
        ),
        ("{{ messages[0].content + 1 }}", {"messages": talk("a")}, "refuses the conversation"),
        (chats.PLAIN, {"messages": '[{"role": "user"}]'}, "messages is text .*parse its JSON"),
        (chats.PLAIN, {"messages": 5}, "messages is 5, not a list of messages"),
        (chats.PLAIN, {"messages": ["hi"]}, "messages holds 'hi', which is not {role: ..., content: ...}"),
        (chats.PLAIN, {"messages": [{"from": "human", "value": "a"}]}, "as ShareGPT does: name the column"),
        (chats.PLAIN, {"messages": [{"speaker": "a"}]}, "a message has no role, but the keys speaker"),
        (chats.PLAIN, {"messages": [{"role": "user", "content": 5}]}, "content of a message is 5, not text"),
        (chats.PLAIN, {"messages": [{"role": "user", "content": IMAGE}]}, "has a part that is not text"),
        (chats.TOOLS, {"messages": talk("a"), "tools": "add"}, "tools is text that is no JSON"),
        (chats.TOOLS, {"messages": talk("a"), "tools": "{}"}, "tools is {}, not a list"),
    ],
)
def test_what_cannot_be_read_is_a_sentence(template: str | None, row: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        rendered(template, row)


def test_rows_of_conversations(configuration: Any, caplog: pytest.LogCaptureFixture) -> None:
    """From a data set to rows: tools reach the template, empty conversations are left out, rewritten turns
    become rows or are left out, and the log says how many.
    """
    rows = Dataset.from_list([calling("weather", city="B"), calling("clock", zone="U")])
    tokenizer, task = chats.tokenizer(chats.TOOLS), TASKS["causal_lm"]
    found = task.tokenize(rows, tokenizer, configuration(max_length=512), "train_file")
    assert '"name": "clock"' in tokenizer.decode(found[1]["input_ids"]).split("hi")[0]
    assert chats.said(tokenizer, found[1]) == 'CALL {"name": "clock", "arguments": {"zone": "U"}}<|im_end|>\n'
    assert set(found.column_names) == {"input_ids", "labels"}

    data = [
        talk("one?", "uno", "two?", "due"),
        talk("a?", "b"),
        talk("a?", ""),
        [{"role": "model", "content": "a"}],
        [],
    ]
    rows = Dataset.from_list([{"messages": messages} for messages in data])
    tokenizer.chat_template = chats.DROPPED
    split, last = (
        task.tokenize(rows, tokenizer, configuration(rewritten_turns=name), "train_file")
        for name in ("split", "last")
    )
    thought = "<think>\n\n</think>\n\n"
    answers = [f"{thought}{text}<|im_end|>\n" for text in ("uno", "due", "b")]
    assert [chats.said(tokenizer, row) for row in split] == answers
    assert [chats.said(tokenizer, row) for row in last] == answers[1:]
    assert "rewrites earlier answers of 1 conversations" in caplog.text
    assert "1 more in all" in caplog.text and "1 answers are not trained on" in caplog.text
