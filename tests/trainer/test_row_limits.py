"""Test that rows which do not fit a model are refused before the first step; and padding, and streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from support.stored import bart, bert, tokenizer
from support.tiny import llama, rows

from fastkd.corpora.tasks import TASKS
from fastkd.trainer import DistillationConfig, DistillationTrainer
from fastkd.trainer.row_limits import extent, windows

Configuration = Callable[..., DistillationConfig]
SIZES = {
    "vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16,
}  # fmt: skip


def gpt2(seed: int = 0, positions: int = 8) -> Any:
    torch.manual_seed(seed)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=48,
            n_positions=positions,
            n_embd=16,
            n_layer=1,
            n_head=2,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def roberta() -> Any:
    config = transformers.RobertaConfig(**SIZES, max_position_embeddings=34, pad_token_id=1)
    return transformers.RobertaForSequenceClassification(config)


def opt() -> Any:
    config = transformers.OPTConfig(
        vocab_size=48, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16,
        max_position_embeddings=32, word_embed_proj_dim=16,
    )  # fmt: skip
    return transformers.OPTForCausalLM(config)


def t5() -> Any:
    config = transformers.T5Config(vocab_size=48, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return transformers.T5ForConditionalGeneration(config)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: gpt2(positions=32), (32, None)),
        (opt, (32, None)),
        (roberta, (32, None)),
        (bert, (40, None)),
        (bart, (40, 40)),
        (t5, (None, None)),
        (llama, (None, None)),
    ],
)
def test_windows_are_those_that_the_models_can_read(make: Callable[[], Any], expected: Any) -> None:
    """A row of that length passes through the model, and one more token does not."""
    model = make()
    assert windows(model) == expected
    source = expected[0]
    if source is None:
        return
    more = {"decoder_input_ids": torch.full((1, 2), 5)} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        model(input_ids=torch.full((1, source), 5), **more)
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, source + 1), 5), **more)


def test_extents_of_lists_and_data_sets_agree() -> None:
    data = [
        {"input_ids": [0, 0, 5, 9], "attention_mask": [0, 0, 1, 1], "labels": [-100, -100, 5, 9]},
        {"input_ids": [7, 3, 4, 0], "attention_mask": [1, 1, 1, 0], "labels": [-100, 3, 4, -100]},
    ]
    task = TASKS["causal_lm"]
    found = extent(data, task)
    assert found == extent(Dataset.from_list(data), task)
    assert found == extent(Dataset.from_list([*data, *data]).select([3, 0]), task)
    assert found is not None and (found.longest, found.tokens, found.labels) == (3, (0, 9), (3, 9))
    packed = {"input_ids": [5, 6, 7, 8], "position_ids": [0, 1, 2, 0]}
    found = extent([packed], task)
    assert found is not None and found.longest == 3
    pair = {"input_ids": [5], "labels": [3, 4, -100]}
    found = extent([pair], TASKS["seq2seq"])
    assert found is not None and found.longest_target == 2


LONG = {"input_ids": [5] * 9}


@pytest.mark.parametrize("form", [list, Dataset.from_list])
@pytest.mark.parametrize(
    ("task", "models", "row", "message"),
    [
        (
            "causal_lm",
            (gpt2, llama),
            LONG,
            "training data has a row of 9 tokens and the student 8 positions: ",
        ),
        (
            "causal_lm",
            (llama, gpt2),
            LONG,
            "a row of 9 tokens and the teacher 8 positions: set max_length: 8",
        ),
        (
            "causal_lm",
            (llama, llama),
            {"input_ids": [5, 48]},
            "the token 48 and the student has embeddings for 48",
        ),
        ("causal_lm", (llama, llama), {"input_ids": [5, -1]}, "the token -1 and the student"),
        (
            "causal_lm",
            (llama, llama),
            {"input_ids": [5, 6], "labels": [5, 50]},
            "the label 50 and the student 48",
        ),
        (
            "causal_lm",
            (llama, llama),
            {"input_ids": [5, 6], "labels": [5, -1]},
            "the label -1 and the student 48",
        ),
        (
            "seq2seq",
            (bart, bart),
            {"input_ids": [5], "labels": [6] * 41},
            "a target of 41 tokens and the student 40 positions: set max_target_length: 40",
        ),
        (
            "classification",
            (bert, bert),
            {"input_ids": [5], "labels": 5},
            "label 5 of row 0 .* is not one of the student's 5 classes",
        ),
    ],
)
def test_rows_that_do_not_fit(
    configuration: Configuration, task: str, models: Any, row: dict[str, Any], message: str, form: Any
) -> None:
    with pytest.raises(ValueError, match=message):
        DistillationTrainer(
            models[0](0), models[1](1), configuration(task=task), train_dataset=form([row] * 2)
        )


def test_rows_beyond_the_training_of_a_rotary_model(configuration: Configuration, caplog: Any) -> None:
    DistillationTrainer(llama(0), llama(1), configuration(), train_dataset=[{"input_ids": [5] * 33}])
    assert "a row of 33 tokens, and the student was trained on 32 at most: max_length: 32" in caplog.text


def test_columns_of_encoded_rows_that_nobody_reads(configuration: Configuration, caplog: Any) -> None:
    data = [{**row, "completion_mask": [0, 1], "labels": row["input_ids"]} for row in rows(4)]
    DistillationTrainer(llama(0), llama(1), configuration(), train_dataset=Dataset.from_list(data))
    assert "train_dataset is encoded already; nobody reads the column completion_mask" in caplog.text


def decoder(seed: int, pad: int | None) -> Any:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        **SIZES, num_key_value_heads=2, num_labels=3, pad_token_id=pad, bos_token_id=0, eos_token_id=0,
        initializer_range=0.5,
    )  # fmt: skip
    return transformers.LlamaForSequenceClassification(config)


@pytest.mark.parametrize("pads", [(2, 2), (2, 3), (None, None), (None, 3)])
def test_a_classifier_finds_the_end_of_each_text(configuration: Configuration, pads: Any) -> None:
    """A decoder reads a text's last token, whatever else is in the batch and whichever token pads it."""
    data = [{"input_ids": [5 + i] * (1 + i % 4), "labels": i % 3} for i in range(8)]
    found = []
    for size in (1, 8):
        args = configuration(task="classification", per_device_eval_batch_size=size)
        trainer = DistillationTrainer(
            decoder(0, pads[0]), decoder(1, pads[1]), args, train_dataset=data, eval_dataset=data
        )
        found.append(trainer.evaluate())
    for name in ("eval_kd", "eval_ce", "eval_teacher_ce"):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-5)


@pytest.mark.parametrize("text", [True, False])
def test_streams(configuration: Configuration, text: bool) -> None:
    """A stream trains as the data set does, whether it holds text or tokens."""
    encoded = [{"input_ids": row["input_ids"]} for row in rows(16)]
    data = Dataset.from_list([{"text": "abcdefgh"[i % 5 :]} for i in range(16)] if text else encoded)

    args = configuration(logging_steps=1, train_sampling_strategy="sequential")

    def losses(given: Any) -> list[float]:
        trainer = DistillationTrainer(llama(0), llama(1), args, None, given, None, tokenizer())
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    assert losses(data.to_iterable_dataset()) == pytest.approx(losses(data), rel=1e-6)
