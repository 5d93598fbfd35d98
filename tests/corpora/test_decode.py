"""Test the decoding of answers: padding, beams, samples, limits."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from support import chats
from support.tiny import llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from fastkd.corpora.decode import decode, end_tokens, questions
from fastkd.corpora.prompts import pair_ids
from fastkd.corpora.tasks import TASKS

PROMPTS = [[5, 6, 7], [9], [1, 2, 3, 4, 5, 6, 8, 2], [11, 12], [3, 3, 3, 3]]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    letters = ["<end>", *(chr(97 + i) for i in range(26)), "Ġ", *(chr(65 + i) for i in range(20))]
    bpe = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>")


def gpt2() -> Any:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=48, n_embd=16, n_layer=2, n_head=2, n_positions=24, initializer_range=0.4,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def bart() -> Any:
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=48, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=24,
        init_std=0.4, pad_token_id=1, bos_token_id=0, eos_token_id=0, decoder_start_token_id=2,
        forced_eos_token_id=None,
    )  # fmt: skip
    return BartForConditionalGeneration(config)


MODELS = {"llama": ("causal_lm", llama), "gpt2": ("causal_lm", gpt2), "bart": ("seq2seq", bart)}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("beams", [1, 3])
def test_padding_changes_no_answer(kind: str, beams: int, tokenizer: Any) -> None:
    """A batch of uneven prompts gives the answers of its prompts one by one, and of a plain greedy loop."""
    task, make = MODELS[kind]
    model = make().eval()
    together, apart = (
        dict(
            decode(
                *(model, TASKS[task], tokenizer, PROMPTS),
                num_beams=beams,
                max_new_tokens=7,
                batch_size=size,
            )
        )
        for size in (len(PROMPTS), 1)
    )
    assert together == apart and sorted(together) == list(range(len(PROMPTS)))
    if beams > 1:
        return
    for number, prompt in enumerate(PROMPTS):
        said: list[int] = []
        while len(said) < 7 and (not said or said[-1] != tokenizer.eos_token_id):
            if task == "causal_lm":
                logits = model(torch.tensor([[*prompt, *said]])).logits
            else:
                logits = model(torch.tensor([prompt]), decoder_input_ids=torch.tensor([[2, *said]])).logits
            said.append(int(logits[0, -1].argmax()))
        (answer,) = together[number]
        assert answer.tokens == said
        assert answer.complete == (said[-1] == tokenizer.eos_token_id)
        assert answer.text == tokenizer.decode(said, skip_special_tokens=True)


def test_beams_find_likelier_answers(tokenizer: Any) -> None:
    model = llama().eval()

    def log_probability(prompt: list[int], said: list[int]) -> float:
        logits = model(torch.tensor([[*prompt, *said]])).logits[0, len(prompt) - 1 : -1]
        return float(logits.detach().log_softmax(-1).gather(1, torch.tensor(said)[:, None]).sum())

    greedy, beam = (
        dict(decode(model, TASKS["causal_lm"], tokenizer, PROMPTS, num_beams=beams, max_new_tokens=5))
        for beams in (1, 8)
    )
    pairs = [
        [log_probability(prompt, found[i][0].tokens) / len(found[i][0].tokens) for found in (greedy, beam)]
        for i, prompt in enumerate(PROMPTS)
    ]
    assert all(best >= first - 1e-5 for first, best in pairs) and any(b > g + 1e-3 for g, b in pairs)


def test_several_beams_come_best_first_and_differ(tokenizer: Any) -> None:
    model = llama()
    found = dict(
        decode(
            *(model, TASKS["causal_lm"], tokenizer, PROMPTS),
            num_beams=4, num_return_sequences=3, max_new_tokens=5,
        )
    )  # fmt: skip
    best = dict(decode(model, TASKS["causal_lm"], tokenizer, PROMPTS, num_beams=4, max_new_tokens=5))
    for number, answers in found.items():
        assert len({tuple(answer.tokens) for answer in answers}) == 3
        assert answers[0] == best[number][0]
    assert model.training  # the mode from before the call is restored


def test_samples_follow_the_model_and_their_seed(tokenizer: Any) -> None:
    """First tokens are drawn from the whole distribution at the temperature; the checkpoint's own generation
    settings have no effect."""
    model = llama().eval()
    model.generation_config.update(
        top_k=2, top_p=0.3, epsilon_cutoff=0.03, eta_cutoff=0.03, repetition_penalty=5.0, do_sample=True
    )
    state = torch.get_rng_state()

    def draws(seed: int) -> list[int]:
        found = decode(
            *(model, TASKS["causal_lm"], tokenizer, [[5, 6, 7]]),
            do_sample=True, temperature=1.5, num_return_sequences=4000, max_new_tokens=1, seed=seed,
        )  # fmt: skip
        return [answer.tokens[0] for answer in next(found)[1]]

    first = draws(1)
    assert first == draws(1) and first != draws(2)
    assert torch.equal(state, torch.get_rng_state())
    expected = (model(torch.tensor([[5, 6, 7]])).logits[0, -1] / 1.5).softmax(-1)
    shares = torch.bincount(torch.tensor(first), minlength=48) / len(first)
    assert (shares - expected).abs().max() < 4 * (0.25 / len(first)) ** 0.5


def test_prompts_leave_room_in_the_window(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A prompt longer than GPT-2's 24 positions is cut at its beginning, to leave room for the answer."""
    model, task = gpt2().eval(), TASKS["causal_lm"]
    long = [1 + i % 40 for i in range(60)]
    ((_, (answer,)),) = decode(model, task, tokenizer, [long], max_new_tokens=10)
    ((_, (short,)),) = decode(model, task, tokenizer, [long[-14:]], max_new_tokens=10)
    assert answer == short
    assert "1 of 1 prompts do not fit the model's window of 24 tokens and were cut" in caplog.text
    ((_, (answer,)),) = decode(model, task, tokenizer, [long], max_new_tokens=100)
    assert len(answer.tokens) <= 23 and "does not fit the model's window of 24 tokens" in caplog.text


def test_a_long_answer_is_cut_and_its_prompt_is_not(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Near the end of the window answers are shorter, whatever else is in the batch."""
    model, task = gpt2().eval(), TASKS["causal_lm"]
    model.generation_config.eos_token_id = tokenizer.eos_token_id = None
    prompts = [[1 + (i + n) % 40 for i in range(n)] for n in (20, 20, 19, 5, 4)]
    together = dict(decode(model, task, tokenizer, prompts, max_new_tokens=10, batch_size=5))
    for number, prompt in enumerate(prompts):
        ((_, alone),) = decode(model, task, tokenizer, [prompt], max_new_tokens=10)
        assert together[number] == alone
        assert len(alone[0].tokens) == min(10, 24 - len(prompt))
        assert alone[0].tokens[0] == int(model(torch.tensor([prompt])).logits[0, -1].argmax())
    assert "3 of 5 prompts leave room for less than 10 tokens" in caplog.text


def saying(ids: list[int], vocab: int) -> Any:
    """A model that writes these tokens."""
    model, said = llama(vocab=vocab, positions=64).eval(), iter(ids)
    model.lm_head.register_forward_hook(
        lambda _, __, out: out.index_fill(-1, torch.tensor([next(said, ids[-1])]), 1e4)
    )
    return model


def test_special_tokens_of_an_answer_are_kept() -> None:
    """All but the end, which training appends, so that the text's tokens are those that were written."""
    marked = chats.tokenizer()
    ids = marked("<think>ab</think>cd</s>")["input_ids"]
    ((_, (answer,)),) = decode(saying(ids, len(marked)), TASKS["causal_lm"], marked, [[70]])
    assert answer.text == "<think>ab</think>cd" and answer.complete and answer.tokens == ids


def test_the_first_space_of_an_answer_is_kept() -> None:
    """Tokenizers that leave out a text's first space do not take it from an answer."""
    words = Tokenizer(models.BPE({"<end>": 0, "▁": 1, "a": 2, ":": 3, "b": 4, "▁b": 5}, [("▁", "b")]))
    words.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    words.decoder = decoders.Metaspace(prepend_scheme="first")
    spaced = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>")
    assert spaced.decode([5]) == "b"
    for ids, text in (([5, 0], " b"), ([4, 0], "b")):
        ((_, (answer,)),) = decode(saying(ids, 6), TASKS["causal_lm"], spaced, [[2, 3]])
        assert answer.text == text
        assert pair_ids("a:", answer.text, spaced)[0][-1] == ids[0]


def test_an_empty_prompt_becomes_the_start_token(tokenizer: Any) -> None:
    model, task = llama().eval(), TASKS["causal_lm"]
    found = dict(decode(model, task, tokenizer, [[], [0]], max_new_tokens=4))
    assert found[0] == found[1]


def test_every_end_token_ends_an_answer(tokenizer: Any) -> None:
    """The tokenizer's end token and the checkpoint's own both stop an answer, which keeps its end token."""
    model, task = llama().eval(), TASKS["causal_lm"]
    ((_, (whole,)),) = decode(model, task, tokenizer, [[5, 6, 7]], max_new_tokens=6)
    assert not whole.complete and len(whole.tokens) == 6
    stop = whole.tokens[2]
    model.generation_config.eos_token_id = [47, stop]
    ((_, (ended,)),) = decode(model, task, tokenizer, [[5, 6, 7]], max_new_tokens=6)
    assert ended.complete and ended.tokens == whole.tokens[: whole.tokens.index(stop) + 1]


@pytest.mark.parametrize(
    ("models_own", "tokenizers", "expected"),
    [(3, 0, {0, 3}), ([3, 4], 0, {0, 3, 4}), ((3, 4), None, {3, 4}), (None, 0, {0}), (None, None, set())],
)
def test_the_end_tokens_are_the_models_and_the_tokenizers(
    models_own: Any, tokenizers: int | None, expected: set[int]
) -> None:
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=models_own))
    assert end_tokens(model, SimpleNamespace(eos_token_id=tokenizers)) == expected
    assert end_tokens(model) == expected - {0}
    assert end_tokens(SimpleNamespace()) == set()


TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] }}{{ m['content'] }}{{ 'z' }}{% endfor %}"
    "{% if add_generation_prompt %}a{% endif %}"
)


def test_questions_have_the_form_of_the_training_data(tokenizer: Any, configuration: Any) -> None:
    """In every layout of rows, the prompt equals the unlabelled part of the same row in training."""
    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = TEMPLATE
    turns = [("user", "hello"), ("assistant", "yes"), ("user", "bye"), ("assistant", "no")]
    data = {
        "messages": [{"messages": [{"role": role, "content": said} for role, said in turns]}],
        "prompt": [{"prompt": "one two", "completion": " three"}, {"prompt": "left out", "completion": ""}],
    }
    args, task = configuration(max_length=24), TASKS["causal_lm"]
    for name, given in data.items():
        rows = Dataset.from_list(given)
        (asked,) = questions(rows, task, chatty, args, "eval_file")
        layout = task.layout_of(rows.column_names, "eval_file")
        encoded = task.encode(given[0], layout, chatty, args)
        assert encoded is not None and asked.row == 0
        ids, labels = encoded["input_ids"], encoded["labels"]
        last = max(i for i, label in enumerate(labels) if label == -100) + 1
        assert asked.ids == ids[:last], name
        answered = chatty.decode([label for label in labels[last:]], skip_special_tokens=True)
        assert answered.removesuffix("z") == asked.reference
    assert questions(Dataset.from_list(data["messages"]), task, chatty, args, "x")[0].source == (
        "user: hello\nassistant: yes\nuser: bye"
    )


def test_questions_that_are_too_long_are_cut(
    tokenizer: Any, configuration: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Prompts lose their beginning, and sources are cut where training cuts them."""
    args = configuration(max_length=5)
    rows = Dataset.from_list([{"source": "abcdefgh", "target": "yes"}])
    (asked,) = questions(rows, TASKS["causal_lm"], tokenizer, args, "eval_file")
    assert asked.ids == tokenizer("defgh")["input_ids"] and asked.source == "abcdefgh"
    assert "1 of 1 prompts are longer than max_length=5 and lost their beginning" in caplog.text
    (asked,) = questions(rows, TASKS["seq2seq"], tokenizer, args, "eval_file")
    encoded = TASKS["seq2seq"].encode(rows[0], ("source", "target"), tokenizer, args)
    assert encoded is not None and asked.ids == encoded["input_ids"]


def test_rows_without_questions(tokenizer: Any, configuration: Any) -> None:
    task = TASKS["causal_lm"]
    with pytest.raises(ValueError, match="eval_file has no prompts: it needs the columns prompt"):
        questions(Dataset.from_list([{"text": "a"}]), task, tokenizer, configuration(), "eval_file")
    empty = Dataset.from_list([{"prompt": "a", "completion": ""}])
    with pytest.raises(ValueError, match="eval_file holds no prompt with an answer"):
        questions(empty, task, tokenizer, configuration(), "eval_file")


def test_errors(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="classification models write no text"):
        next(decode(llama(), TASKS["classification"], tokenizer, PROMPTS))
    with pytest.raises(ValueError, match="2 beams give at most 2 answers, not 3"):
        next(decode(llama(), TASKS["causal_lm"], tokenizer, PROMPTS, num_beams=2, num_return_sequences=3))
