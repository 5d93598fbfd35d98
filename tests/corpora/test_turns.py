"""Test which tokens of a conversation are answers, for the chat templates that models have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from support import chats
from support.chats import talk

from fastkd.corpora import turns
from fastkd.corpora.conversations import Chat, conversation
from fastkd.corpora.turns import answer_text, as_content, pieces, prompt_text, prompt_tokens

SETTINGS = SimpleNamespace(chat_template_kwargs=None)


def chat(template: str, messages: list[dict[str, Any]], merges: Any = (), **row: Any) -> Chat:
    return conversation({"messages": messages, **row}, chats.tokenizer(template, merges), SETTINGS)


def texts(chat: Chat) -> list[tuple[str, str]]:
    """The text of each piece, and the part of it that is trained on."""
    decode = chat.tokenizer.decode
    return [
        (
            decode(piece.ids),
            decode([token for token, mine in zip(piece.ids, piece.said, strict=True) if mine]),
        )
        for piece in pieces(chat)
    ]


def test_a_template_that_rewrites_nothing_makes_one_piece() -> None:
    found = chat(chats.PLAIN, talk("one?", "uno", "two?", "due", "three?", "tre", "four?"))
    ((text, said),) = texts(found)
    assert text == found.until(6).rendered() and "four?" not in text
    assert said == "uno<|im_end|>\ndue<|im_end|>\ntre<|im_end|>\n"


def test_a_prompt_that_opens_the_thinking() -> None:
    """The opening is the prompt's, and a token of two line breaks across the boundary is the answer's."""
    messages = talk("two and two?", "four")
    messages[1]["reasoning_content"] = "2 + 2"
    found = chat(chats.OPENED, messages, [("Ċ", "Ċ")])
    ((text, said),) = texts(found)
    assert said == "2 + 2\n</think>\n\nfour<|im_end|>\n"
    assert text.removesuffix(said) == prompt_text(found.until(1))
    ((text, said),) = texts(chat(chats.OPENED, talk("two and two?", "four"), [("Ċ", "Ċ")]))
    assert said == "\n\n</think>\n\nfour<|im_end|>\n"


def test_a_prompt_that_opens_thinking_which_the_template_does_not_write() -> None:
    """The answer begins where the texts part, after the header and not before it."""
    template = chats.PLAIN.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    ((_, said), *more) = texts(chat(template, talk("a?", "b", "c?", "d")))
    assert said == "b<|im_end|>\nd<|im_end|>\n" and not more


def test_thinking_that_is_dropped_splits_the_conversation() -> None:
    """Each answer is trained on once, after the conversation as it was then."""
    found = chat(chats.DROPPED, talk("one?", "uno", "two?", "due"))
    first, second = texts(found)
    thought = "<think>\n\n</think>\n\n"
    assert first == (found.until(2).rendered(), f"{thought}uno<|im_end|>\n")
    assert second == (found.rendered(), f"{thought}due<|im_end|>\n")
    assert thought not in second[0].split("two?")[0]


def test_answers_that_are_not_rewritten_share_a_piece() -> None:
    """Calls of tools and the answer after them belong to one message of the user, so they stay together."""
    call = {"role": "assistant", "content": "CALL"}
    tool = {"role": "tool", "content": "7"}
    messages = [*talk("one?", "uno", "two?"), call, tool, *talk("", "due")[1:]]
    thought = "<think>\n\n</think>\n\n"
    assert [said for _, said in texts(chat(chats.DROPPED, messages))] == [
        f"{thought}uno<|im_end|>\n",
        f"{thought}CALL<|im_end|>\n{thought}due<|im_end|>\n",
    ]


def test_markers_of_the_template_decide() -> None:
    ((text, said),) = texts(chat(chats.MARKED, talk("one?", "uno", "two?", "due")))
    assert said == "uno<|im_end|>due<|im_end|>" and "one?" in text
    messages = talk("one?", "uno", "two?", "due")
    messages[1]["weight"] = 0
    ((_, said),) = texts(chat(chats.MARKED, messages))
    assert said == "due<|im_end|>"
    # A tokenizer without positions cannot map the markers to tokens.
    slow = chats.Slow()
    slow.chat_template = chats.MARKED.replace("<|im_start|>", "[").replace("<|im_end|>", "]")
    (piece,) = pieces(conversation({"messages": talk("a?", "b")}, slow, SETTINGS))
    tokens = slow.convert_ids_to_tokens(piece.ids)
    assert [t for t, mine in zip(tokens, piece.said, strict=True) if mine] == ["b", "]"]


def test_some_answers_are_read_only() -> None:
    messages = talk("a?", "b", "c?", "", "d?", "e")
    messages[1]["weight"] = 0
    ((_, said),) = texts(chat(chats.PLAIN, messages))
    assert said == "e<|im_end|>\n"
    messages[5]["weight"] = 0.0
    assert texts(chat(chats.PLAIN, messages)) == []


def test_a_conversation_that_the_assistant_begins() -> None:
    messages = talk("", "welcome", "a?", "b")[1:]
    ((_, said),) = texts(chat(chats.PLAIN, messages))
    assert said == "welcome<|im_end|>\nb<|im_end|>\n"


@pytest.mark.parametrize("template", [chats.PLAIN, chats.OPENED, chats.TOOLS])
def test_long_conversations_are_read_turn_by_turn(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick way finds the same tokens, and renders a number of messages that grows linearly."""
    messages = talk(*(f"text {i}" for i in range(40)))
    messages[6:6] = [{"role": "assistant", "content": "CALL"}, {"role": "tool", "content": "7"}]
    rendered = []
    monkeypatch.setattr(Chat, "rendered", counted(rendered, Chat.rendered))
    quick = pieces(chat(template, messages))
    assert sum(rendered) < 12 * len(messages)
    monkeypatch.setattr(turns, "_FEW", 100)
    assert pieces(chat(template, messages)) == quick and quick[0].answers == 21
    assert sum(rendered) > 12 * len(messages)


def counted(counts: list[int], method: Any) -> Any:
    def rendered(self: Chat, *args: Any, **kwargs: Any) -> Any:
        counts.append(len(self.messages))
        return method(self, *args, **kwargs)

    return rendered


def test_the_last_piece_alone_takes_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A template that rewrites earlier answers does not make the time grow with the square either."""
    messages = talk(*(f"text {i}" for i in range(40)))
    rendered: list[int] = []
    monkeypatch.setattr(Chat, "rendered", counted(rendered, Chat.rendered))
    (last,) = pieces(chat(chats.DROPPED, messages), last_only=True)
    assert sum(rendered) < 12 * len(messages)
    assert [last] == pieces(chat(chats.DROPPED, messages))[-1:] and last.answers == 1


def test_turns_that_depend_on_their_number_are_read_too() -> None:
    template = "{% for m in messages %}[{{ loop.index }}{{ m.role[0] }}]{{ m.content }}{% endfor %}" + (
        "{% if add_generation_prompt %}[{{ messages | length + 1 }}a]{% endif %}"
    )
    ((text, said),) = texts(chat(template, talk(*"abcdefgh")))
    assert text == "[1u]a[2a]b[3u]c[4a]d[5u]e[6a]f[7u]g[8a]h" and said == "bdfh"


def test_a_template_that_rewrites_the_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="rewrites what comes before an answer"):
        texts(chat("{% for m in messages[-1:] %}{{ m.content }}{% endfor %}", talk("a", "b", "c", "d")))


def test_questions_end_with_the_opening_of_the_answer() -> None:
    found = chat(chats.PLAIN, talk("a?", "b"), tools=None)
    assert prompt_text(found.until(1)) == "<|im_start|>user\na?<|im_end|>\n<|im_start|>assistant\n"
    assert found.tokenizer.decode(prompt_tokens(found.until(1))) == prompt_text(found.until(1))


def test_the_text_of_an_answer() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    messages = [*talk("a?"), {"role": "assistant", "content": None, "tool_calls": [call]}, *talk("b?", "c")]
    found = chat(chats.TOOLS, messages)
    assert answer_text(found, 1) == 'CALL {"name": "add", "arguments": {"a": 1}}'
    assert answer_text(found, 3) == "c"


@pytest.mark.parametrize(
    ("template", "written", "content"),
    [
        (chats.PLAIN, "four", "four"),
        (chats.PLAIN, "<think>\n2\n</think>\n\nfour", "<think>\n2\n</think>\n\nfour"),
        # The prompt opens the thinking, which the template expects in the content.
        (
            chats.PLAIN.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}"),
            "2\n</think>\n\nfour",
            "<think>\n2\n</think>\n\nfour",
        ),
    ],
)
def test_what_a_model_wrote_becomes_the_content_that_renders_it(
    template: str, written: str, content: str
) -> None:
    found = chat(template, talk("two and two?"))
    assert as_content(found, written) == content
    whole = found.of([*found.messages, {"role": "assistant", "content": content}]).rendered()
    assert whole == prompt_text(found) + written + "<|im_end|>\n"
