"""Decodes answers in batches: prompts (or sources) in, tokens and text out.

It is used wherever a model writes. ``fastkd generate`` and ``fastkd evaluate`` call :func:`decode` for the
teacher and for the models that are measured; on-policy training calls :func:`write` for the student's own
samples, in the precision of training and with the weights gathered that FSDP has sharded, unless an engine
writes them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fastkd.corpora.contexts import evaluating, seeded
from fastkd.corpora.conversations import content_text, conversation
from fastkd.corpora.generation import applicable
from fastkd.corpora.local_files import where
from fastkd.corpora.prompts import prompt_ids, text_ids
from fastkd.corpora.settings import TaskSettings
from fastkd.corpora.tasks import Task
from fastkd.corpora.tasks.forms import WITHOUT_PROMPT
from fastkd.corpora.tasks.seq2seq import fitted_source
from fastkd.corpora.turns import answer_text, prompt_tokens
from fastkd.corpora.window import Limits

logger = logging.getLogger(__name__)

# Options with which samples come from the model's own distribution at ``temperature``. The settings of a
# checkpoint, of chat models in particular, would change it.
PLAIN_SAMPLING: dict[str, Any] = {
    "do_sample": True,
    "num_beams": 1,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}


@dataclass(frozen=True)
class Question:
    """A prompt (for seq2seq, a source) and the data's answer to it.

    Attributes:
        ids: tokens of the prompt, or of the source, already cut to ``max_length``.
        source: the prompt or source as text, not cut.
        reference: the data's answer.
        row: number of the row in the data set.
    """

    ids: list[int]
    source: str
    reference: str
    row: int


@dataclass(frozen=True)
class Answer:
    """A model's answer to a prompt.

    Attributes:
        tokens: the answer without the prompt, the decoder's start token and padding, but with the
            end-of-sequence token if there is one.
        text: the tokens as text without the end of the sequence, which training appends again. Other special
            tokens (of a thinking block or a tool call) are kept, except in texts of seq2seq, where they only
            say the language. Spaces are kept.
        complete: whether the model ended the answer itself; False if the length limit cut it.
    """

    tokens: list[int]
    text: str
    complete: bool


def questions(rows: Any, task: Task, tokenizer: Any, args: TaskSettings, field: str) -> list[Question]:
    """The prompts of raw rows and their references. The reference of a conversation is its last answer.

    Rows without an answer are left out, as they are in training. ``max_length`` cuts the start of a prompt
    and the end of a source.

    Raises:
        ValueError: columns without prompts, or no prompt with an answer.
    """
    layout = task.layout_of(rows.column_names, field)
    if not asks(task, layout):
        raise ValueError(f"{field} has no prompts: it needs the columns prompt+completion, or messages")
    found, cut = [], 0
    for number, row in enumerate(rows):
        try:
            made = _question(row, layout, task, tokenizer, args, number)
        except ValueError as error:
            raise ValueError(f"{where(field, number, args)}: {error}") from error
        if made is None:
            continue
        if task.name != "seq2seq" and len(made.ids) > args.max_length:
            cut += 1
            made = replace(made, ids=made.ids[-args.max_length :])
        found.append(made)
    if not found:
        raise ValueError(f"{field} holds no prompt with an answer")
    if cut:
        logger.warning(
            "%s: %d of %d prompts are longer than max_length=%d and lost their beginning: raise max_length",
            *(field, cut, len(found), args.max_length),
        )
    return found


def asks(task: Task, layout: tuple[str, ...]) -> bool:
    """Whether rows of this layout have a prompt and its answer."""
    return task.name == "seq2seq" or (task.name == "causal_lm" and layout not in WITHOUT_PROMPT)


def _question(
    row: dict[str, Any],
    layout: tuple[str, ...],
    task: Task,
    tokenizer: Any,
    args: TaskSettings,
    number: int,
) -> Question | None:
    row, layout = task.canonical(row, layout, tokenizer)
    if layout == ("messages",):
        chat = conversation(row, tokenizer, args)
        if not (answers := chat.answers()):
            return None
        before = chat.until(answers[-1])
        said = "\n".join(
            f"{message['role']}: {content_text(message['content'])}" for message in before.messages
        )
        return Question(prompt_tokens(before), said, answer_text(chat, answers[-1]), number)
    source, reference = (row[name] or "" for name in layout)
    if not reference or (task.name == "seq2seq" and not source):
        return None
    if task.name == "seq2seq":
        ids = fitted_source(text_ids(source, tokenizer), args.max_length, tokenizer)
    else:
        ids = prompt_ids(source, tokenizer)
    return Question(ids, source, reference, number)


def decode(
    model: Any,
    task: Task,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    num_beams: int = 1,
    do_sample: bool = False,
    temperature: float = 1.0,
    max_new_tokens: int = 256,
    num_return_sequences: int = 1,
    batch_size: int = 8,
    seed: int | None = None,
    longest_first: bool = True,
    title: str | None = None,
    generation_kwargs: dict[str, Any] | None = None,
) -> Iterator[tuple[int, list[Answer]]]:
    """Yields ``(number of the prompt, num_return_sequences answers)`` for each prompt, the best answer first.

    Prompts are yielded batch by batch. Each batch has prompts of similar length, and the longest come first,
    so that a batch too large for the memory fails at once. Padding is on the left for ``causal_lm``, whose
    answers follow the prompt directly, and on the right of an encoder's sources; it changes no answer. The
    model's own generation settings (length penalty, forced tokens) apply, except that samples are drawn from
    the whole distribution at ``temperature``. The model is put into eval mode, and back afterwards.

    Args:
        model: a model of `transformers` or `peft`; it stays on its device.
        task: causal_lm or seq2seq.
        tokenizer: the model's tokenizer.
        prompts: token ids. For ``causal_lm`` a prompt may be empty; it is then replaced by the tokenizer's
            beginning-of-sequence token, else its end-of-sequence token, else token 0.
        num_beams: 1 is greedy decoding, or sampling with ``do_sample``.
        do_sample, temperature: draw tokens instead of taking the likeliest.
        max_new_tokens: length limit of an answer. Near the end of the model's window answers are shorter; a
            prompt is cut, at its beginning, only if it does not fit into the window itself.
        num_return_sequences: answers to each prompt; at most ``num_beams`` unless sampling.
        batch_size: number of prompts in a batch.
        seed: makes samples repeatable for the same batches, without changing the global random state.
        longest_first: False keeps the given order.
        title: title of a progress bar; None shows none.
        generation_kwargs: further options of ``generate``, such as a length penalty; they come before the
            model's own settings.

    Raises:
        ValueError: a task that generates no text, or more answers than beams.
    """
    if task.name not in ("causal_lm", "seq2seq"):
        raise ValueError(f"{task.name} models write no text")
    if num_return_sequences > num_beams and not do_sample:
        raise ValueError(f"{num_beams} beams give at most {num_beams} answers, not {num_return_sequences}")
    limits = Limits.of(model, task, max_new_tokens)
    options: dict[str, Any] = {"num_beams": num_beams, "do_sample": False}
    if do_sample:
        options = {**PLAIN_SAMPLING, "num_beams": num_beams, "temperature": temperature}
    options |= applicable(generation_kwargs, num_beams, do_sample)
    options |= {"num_return_sequences": num_return_sequences}
    ends = end_tokens(model, tokenizer)
    padding = tokenizer.pad_token_id
    if padding is None:
        padding = min(ends) if ends else 0
    own = getattr(model.generation_config, "forced_eos_token_id", None)
    forced = (generation_kwargs or {}).get("forced_eos_token_id", own) is not None

    def answer(prompt: list[int], tokens: list[int], longest: int) -> Answer:
        ended = bool(tokens) and tokens[-1] in ends
        complete = ended and not (forced and len(tokens) == longest)
        if task.name == "seq2seq":
            text = tokenizer.decode(tokens, skip_special_tokens=True)
        else:
            text = continuation(tokenizer, prompt, tokens[:-1] if ended else tokens)
        return Answer(tokens, text, complete)

    order = list(range(len(prompts)))
    if longest_first:
        order.sort(key=lambda number: -len(prompts[number]))
    bar = None if title is None else tqdm(total=len(prompts), desc=title, unit="row", mininterval=0.5)
    fits = [limits.fit(list(prompts[number]), tokenizer) for number in range(len(prompts))]
    limits.warn(fits, prompts)
    try:
        while order:
            numbers = limits.together(order[:batch_size], fits)
            del order[: len(numbers)]
            fitted = [fits[number] for number in numbers]
            room = options["max_new_tokens"] = limits.room(fitted[0])
            with seeded(None if seed is None else seed + numbers[0], model.device):
                written = write(model, task, fitted, ends, padding, model.device, **options)
            answers = [
                answer(fitted[i // num_return_sequences], tokens, room) for i, tokens in enumerate(written)
            ]
            each = range(0, len(answers), num_return_sequences)
            yield from zip(numbers, (answers[i : i + num_return_sequences] for i in each), strict=True)
            if bar is not None:
                bar.update(len(numbers))
    finally:
        if bar is not None:
            bar.close()


@torch.no_grad()
def write(
    model: Any,
    task: Task,
    prompts: Sequence[Sequence[int]],
    ends: set[int],
    padding: int,
    device: torch.device,
    **options: Any,
) -> list[list[int]]:
    """The answers to one batch of prompts, as tokens up to and including the first of ``ends``.

    Args:
        model: put into eval mode, and back afterwards.
        prompts: none of them empty.
        ends: tokens that end an answer, as :func:`end_tokens` returns them.
        padding: token that fills up the prompts.
        device: the device of the model's inputs.
        options: further options of ``generate``; with ``num_return_sequences``, a prompt's answers follow
            one another.
    """
    left = task.name == "causal_lm"
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), padding)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        where = slice(longest - len(prompt), None) if left else slice(0, len(prompt))
        ids[i, where], mask[i, where] = torch.tensor(prompt), 1
    if getattr(model.config.get_text_config(decoder=True), "output_router_logits", False):
        # A mixture of experts would compute its load-balancing loss, which fails once keys are cached.
        options["output_router_logits"] = False
    with evaluating(model):
        found: Tensor = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            pad_token_id=padding,
            eos_token_id=sorted(ends) or None,
            use_cache=True,
            **options,
        )
    # Remove the tokens before the answer: the prompt, or the decoder's start token.
    rows = found[:, longest if left else 1 :].tolist()
    return [_until(row, ends) for row in rows]


def _until(row: list[int], ends: set[int]) -> list[int]:
    """The tokens up to the first that ends an answer. None is added to an answer that the limit cut."""
    end = next((i for i, token in enumerate(row) if token in ends), None)
    return row if end is None else row[: end + 1]


def continuation(tokenizer: Any, prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """An answer's tokens as text that continues the prompt's text: some tokenizers leave out the first space
    of a text, which here stands between the prompt and the answer. Special tokens are kept.
    """
    before, whole = (
        tokenizer.decode(ids, skip_special_tokens=False) for ids in (list(prompt), [*prompt, *tokens])
    )
    if prompt and whole.startswith(before):
        return str(whole[len(before) :])
    return str(tokenizer.decode(list(tokens), skip_special_tokens=False))


def end_tokens(model: Any, tokenizer: Any = None) -> set[int]:
    """The tokens that end an answer: the tokenizer's, which training appends, and the model's own."""
    found: set[int] = set()
    for source in (getattr(model, "generation_config", None), tokenizer):
        own = getattr(source, "eos_token_id", None)
        found.update(own if isinstance(own, (list, tuple)) else [] if own is None else [own])
    return found
