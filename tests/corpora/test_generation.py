"""Test ``generation_kwargs``: what it takes, and that it reaches every place where a model writes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.families import bart
from support.tiny import llama, rows

from fastkd.corpora.decode import decode
from fastkd.corpora.generation import applicable, check_generation_kwargs
from fastkd.corpora.tasks import TASKS
from fastkd.trainer import DistillationTrainer


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("length_penalty", "must be a mapping .*not 'length_penalty'"),
        ({"lenght_penalty": 2.0}, "did you mean length_penalty"),
        ({"num_beams": 4}, "which the field num_beams sets"),
        ({"max_new_tokens": 4}, "which the field max_completion_length sets"),
        ({"eos_token_id": 4}, "fastkd sets itself"),
        ({"length_penalty": "two"}, "length_penalty must be a number, not 'two'"),
        ({"early_stopping": "sometimes"}, "early_stopping"),
    ],
)
def test_mistakes_are_named(given: Any, said: str, configuration: Any) -> None:
    with pytest.raises(ValueError, match=said):
        configuration(generation_kwargs=given)


def test_options_that_apply() -> None:
    given = {"length_penalty": 2.0, "no_repeat_ngram_size": 2, "top_p": 0.9}
    check_generation_kwargs(given)
    assert applicable(given, 4, False) == {"length_penalty": 2.0, "no_repeat_ngram_size": 2}
    assert applicable(given, 1, True) == {"no_repeat_ngram_size": 2, "top_p": 0.9}
    assert applicable(None, 1, False) == {}


class Tokenizer:
    pad_token_id, eos_token_id, bos_token_id = 0, 2, 1

    def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
        return " ".join(map(str, tokens))


def test_they_reach_generate() -> None:
    """Tokens that are forbidden do not occur."""
    model = bart(0)
    answers = [
        dict(
            decode(model, TASKS["seq2seq"], Tokenizer(), [[5, 6, 2]], max_new_tokens=12, generation_kwargs=kw)
        )
        for kw in (None, {"bad_words_ids": [[token] for token in range(3, 48) if token != 9]})
    ]
    assert answers[0] != answers[1]
    assert set(answers[1][0][0].tokens) <= {0, 1, 2, 9}


def test_they_reach_samples_of_the_student(configuration: Any) -> None:
    data = [{"input_ids": r["input_ids"], "labels": [-100, -100, *r["input_ids"][2:]]} for r in rows(4)]
    args = configuration(
        lmbda=1.0, max_completion_length=4, generation_kwargs={"top_k": 1, "suppress_tokens": [9]}
    )
    trainer = DistillationTrainer(llama(), llama(1), args)
    assert trainer._on_policy is not None
    batch = trainer.data_collator(data)
    student = trainer.student
    ((first,), (again,)) = (
        trainer._on_policy.resample(iter([batch]), student, student, step) for step in range(2)
    )
    assert not (first["labels"] == 9).any()
    assert torch.equal(first["labels"], again["labels"])  # the likeliest token alone: nothing is drawn
