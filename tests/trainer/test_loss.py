"""Test a batch's loss: shifted once, padding masked, equal with either head, right under autocast."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from support.tiny import VOCAB, llama, rows

from fastkd.corpora.tasks import TASKS
from fastkd.corpora.tasks.base import Collator
from fastkd.trainer.heads import find_linear_head
from fastkd.trainer.models import LinearHead
from fastkd.trainer.student import DistilledStudent
from fastkd.trainer.teachers import LiveTeacher

CAUSAL, SEQ2SEQ = TASKS["causal_lm"], TASKS["seq2seq"]

OPTIONS: dict[str, Any] = {
    "kd_ratio": 0.3,
    "divergence": "forward_kl",
    "beta": None,
    "temperature": 2.0,
    "teacher_temperature": None,
    "label_smoothing": 0.0,
}


def by_hand(
    student: Any, teacher: Any, batch: dict[str, torch.Tensor], vocab: int | None = None
) -> torch.Tensor:
    """The loss by its definition, token by token: position i predicts token i + 1."""
    with torch.no_grad():
        t = (
            teacher(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            .logits[..., :vocab]
            .double()
        )
    s = (
        student(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        .logits[..., :vocab]
        .double()
    )
    terms = []
    for b in range(len(s)):
        for i in range(s.shape[1] - 1):
            label = batch["labels"][b, i + 1]
            if label == -100:
                continue
            q, p = F.log_softmax(s[b, i] / 2, -1), F.log_softmax(t[b, i] / 2, -1)
            kd = (p.exp() * (p - q)).sum() * 4
            terms.append(0.3 * kd - 0.7 * F.log_softmax(s[b, i], -1)[label])
    return torch.stack(terms).mean()


def distilled(
    student: Any, teacher: Any, fused: bool, vocab_size: int | None = None, **options: Any
) -> DistilledStudent:
    head = find_linear_head(student) if fused else None
    assert head is None or isinstance(head, LinearHead), head
    task = SEQ2SEQ if student.config.is_encoder_decoder else CAUSAL
    side = None if teacher is None else LiveTeacher(teacher, task, fused)
    return DistilledStudent(
        student, task, head, side, {**OPTIONS, "vocab_size": vocab_size, **options}
    ).train()


def batch_of(count: int = 3, **options: Any) -> dict[str, torch.Tensor]:
    return Collator(CAUSAL, pad_token_id=0)(rows(count, **options))


@pytest.mark.parametrize("fused", [True, False])
def test_the_loss_is_the_definition_shifted_exactly_once(fused: bool) -> None:
    student, teacher, batch = llama(0), llama(1, hidden=24), batch_of()
    expected = by_hand(student, teacher, batch)
    found = distilled(student, teacher, fused)(**batch)["loss"]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_next_token_labels() -> None:
    labels = torch.tensor([[5, 6, 7], [8, -100, 9]])
    assert CAUSAL.targets(labels).tolist() == [[6, 7, -100], [-100, 9, -100]]


def test_padding_changes_nothing() -> None:
    """A sequence has the same loss and gradients alone as padded next to a longer one."""
    short, long = rows(1, seed=3, shortest=4, longest=4), rows(1, seed=4, shortest=9, longest=9)
    collate = Collator(CAUSAL, pad_token_id=0)
    model = distilled(llama(0), llama(1), True)
    alone, both = collate(short), collate([*short, *long])
    both["labels"][1] = -100
    gradients = []
    for batch in (alone, both):
        model.zero_grad()
        loss = model(**batch)["loss"]
        loss.backward()
        gradients.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_a_real_end_of_text_is_trained_on_though_it_is_also_the_padding() -> None:
    batch = Collator(CAUSAL, pad_token_id=0)([{"input_ids": [4, 5, 0]}, {"input_ids": [4, 5, 6, 7, 0]}])
    assert batch["labels"].tolist() == [[4, 5, 0, -100, -100], [4, 5, 6, 7, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]


def small(kind: str, seed: int) -> Any:
    torch.manual_seed(seed)
    shape = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    body = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
        "initializer_range": 0.5,
    }
    if kind == "gpt2":
        config = transformers.GPT2Config(
            **shape, n_embd=16, n_layer=1, n_head=2, n_positions=32, initializer_range=0.5
        )
    elif kind == "gemma2":
        config = transformers.Gemma2Config(**shape, **body, head_dim=8, final_logit_softcapping=3.0)
    elif kind == "cohere":
        config = transformers.CohereConfig(**shape, **body, logit_scale=0.25)
    elif kind == "granite":
        config = transformers.GraniteConfig(**shape, **body, logits_scaling=4.0)
    elif kind == "gpt-neox":
        del body["num_key_value_heads"]
        config = transformers.GPTNeoXConfig(**shape, **body)
    elif kind == "qwen3":
        config = transformers.Qwen3Config(**shape, **body, head_dim=8)
    elif kind == "phi":  # a head with a bias
        config = transformers.PhiConfig(**shape, **body)
    else:
        return llama(seed, tied=kind == "llama-tied")
    model = transformers.AutoModelForCausalLM.from_config(config)
    if kind == "phi":
        torch.nn.init.normal_(model.lm_head.bias)
    return model


KINDS = ["llama-tied", "llama", "gpt2", "gpt-neox", "qwen3", "gemma2", "cohere", "granite", "phi"]


@pytest.mark.parametrize("kind", KINDS)
def test_fused_head_equals_the_logits_path(kind: str) -> None:
    """The fused head includes softcaps and logit scales, which other fused losses have left out."""
    batch, found = batch_of(), []
    for fused in (True, False):
        model = distilled(small(kind, 0).eval(), small(kind, 1), fused)
        model.student.eval()  # disables dropout; the wrapper itself stays in training mode
        loss = model(**batch)["loss"]
        loss.backward()
        found.append(
            {"loss": loss.detach(), **{n: p.grad for n, p in model.named_parameters() if p.grad is not None}}
        )
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(
            value, found[1][name], rtol=2e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


def translator(kind: str, seed: int, vocab: int = VOCAB) -> Any:
    torch.manual_seed(seed)
    tokens = {"vocab_size": vocab, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 2}
    if kind.startswith("t5"):
        config = transformers.T5Config(
            **tokens, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, initializer_factor=5.0,
            tie_word_embeddings=kind == "t5-tied",
        )  # fmt: skip
        return transformers.T5ForConditionalGeneration(config)
    config = transformers.BartConfig(
        **tokens, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=32,
        bos_token_id=2, init_std=0.5,
    )  # fmt: skip
    model = transformers.BartForConditionalGeneration(config)
    model.final_logits_bias.normal_()
    return model


def pairs(count: int, seed: int = 0) -> list[dict[str, Any]]:
    return [
        {"input_ids": a["input_ids"], "labels": b["input_ids"]}
        for a, b in zip(rows(count, seed), rows(count, seed + 100), strict=True)
    ]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", ["t5-tied", "t5", "bart"])
def test_seq2seq_is_the_definition_at_the_labels_own_positions(kind: str, fused: bool) -> None:
    """The loss includes a scale before the head (T5), a bias (BART), and padding of source and target."""
    student, teacher = translator(kind, 0).double(), translator(kind, 1, vocab=VOCAB + 8).double()
    batch = Collator(SEQ2SEQ, 0)(pairs(4))
    model = distilled(student, teacher, fused, vocab_size=VOCAB)
    student.eval()
    found = model(**batch)["loss"]
    found.backward()
    terms = []
    for row in pairs(4):
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        before = torch.tensor([[2, *row["labels"][:-1]]])
        s, t = (m(input_ids=ids, decoder_input_ids=before).logits[0, :, :VOCAB] for m in (student, teacher))
        q, p = F.log_softmax(s / 2, -1), F.log_softmax(t / 2, -1)
        kd = (p.exp() * (p - q)).sum(-1) * 4
        terms.append(0.3 * kd + 0.7 * F.cross_entropy(s, labels[0], reduction="none"))
    expected = torch.cat(terms).mean()
    torch.testing.assert_close(found, expected)
    by_loss = [p.grad.clone() for p in student.parameters() if p.grad is not None]
    student.zero_grad()
    expected.backward()
    for a, b in zip(by_loss, (p.grad for p in student.parameters() if p.grad is not None), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", ["gemma2", "cohere", "granite"])
def test_the_scale_and_the_cap_are_found(kind: str) -> None:
    head = find_linear_head(small(kind, 0))
    assert isinstance(head, LinearHead)
    expected = {"gemma2": (1.0, 3.0), "cohere": (0.25, None), "granite": (0.25, None)}[kind]
    assert (head.logit_scale, head.logit_softcap) == expected


def test_a_head_that_is_more_than_linear_is_detected() -> None:
    """A scale under an unknown name must lead to the use of logits, not to a wrong loss."""

    class Doubled(transformers.LlamaForCausalLM):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            found = super().forward(*args, **kwargs)
            found.logits = found.logits * 2
            return found

    class Capped(transformers.LlamaForCausalLM):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            found = super().forward(*args, **kwargs)
            found.logits = 30 * torch.tanh(found.logits / 30)
            return found

    for kind in (Doubled, Capped):
        model = kind(llama().config)
        torch.nn.init.normal_(model.lm_head.weight, std=1e-3)  # logits too small to show a cap by themselves
        assert "not those of its linear head" in str(find_linear_head(model))


@pytest.mark.parametrize("fused", [True, False])
def test_heads_padded_to_different_widths(fused: bool) -> None:
    student, teacher, batch = llama(0, vocab=VOCAB), llama(1, vocab=VOCAB + 16), batch_of()
    expected = by_hand(student, teacher, batch, vocab=VOCAB)
    found = distilled(student, teacher, fused, vocab_size=VOCAB)(**batch)["loss"]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fused", [True, False])
def test_autocast_casts_the_product_but_not_the_loss(fused: bool) -> None:
    student, teacher, batch = llama(0), llama(1), batch_of()
    model = distilled(student, teacher, fused)
    exact = model(**batch)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch)["loss"]
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
    loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in student.parameters())
    torch.testing.assert_close(loss, exact, rtol=3e-2, atol=0)
    assert not torch.equal(loss, exact)


def test_autocast_casts_hidden_states_and_weight() -> None:
    head = find_linear_head(llama(0))
    assert isinstance(head, LinearHead)
    with torch.autocast("cpu", torch.bfloat16):
        made = head.factors(torch.randn(1, 2, 16))
    assert made.hidden.dtype == made.weight.dtype == torch.bfloat16
    assert head.factors(torch.randn(1, 2, 16)).weight.dtype == torch.float32


@pytest.mark.parametrize("fused", [True, False])
def test_without_a_teacher_it_is_cross_entropy(fused: bool) -> None:
    student, batch = llama(0), batch_of()
    found = distilled(student, None, fused, kd_ratio=0.0)(**batch)["loss"]
    torch.testing.assert_close(found, student(**batch).loss, rtol=1e-5, atol=1e-6)


def test_num_items_is_the_denominator() -> None:
    model, batch = distilled(llama(0), llama(1), True), batch_of()
    valid = int((batch["labels"][:, 1:] != -100).sum())
    whole = model(**batch)["loss"]
    torch.testing.assert_close(model(**batch, num_items_in_batch=torch.tensor(2 * valid))["loss"] * 2, whole)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_measured_sums(fused: bool, smoothing: float) -> None:
    """In evaluation the model returns right sums of its loss and metrics over the tokens."""
    student, teacher, batch = llama(0), llama(1), batch_of()
    model = distilled(student, teacher, fused, label_smoothing=smoothing)
    trained = model(**batch)["loss"]
    found = model.eval()(**batch)
    names = ("loss", "kd", "ce", "agreement", "teacher_ce", "tokens")
    loss, kd, ce, agreement, teacher_ce, tokens = (found["sums"][name].item() for name in names)
    targets = CAUSAL.targets(batch["labels"])
    valid = targets != -100
    s, t = student(**batch).logits[valid], teacher(**batch).logits[valid]
    assert tokens == valid.sum()
    assert round(agreement) == (s.argmax(-1) == t.argmax(-1)).sum()
    entropy = -(torch.softmax(s / 2, -1) * torch.log_softmax(s / 2, -1)).sum(-1).mean()
    assert math.isclose(found["sums"]["student_entropy"] / tokens, entropy.item(), rel_tol=1e-5)
    assert math.isclose(ce / tokens, F.cross_entropy(s, targets[valid]).item(), rel_tol=1e-5)
    assert math.isclose(teacher_ce / tokens, F.cross_entropy(t, targets[valid]).item(), rel_tol=1e-5)
    plain = F.kl_div((s / 2).log_softmax(-1), (t / 2).softmax(-1), reduction="batchmean") * 4
    assert math.isclose(kd / tokens, plain.item(), rel_tol=1e-4)
    assert math.isclose(loss / tokens, trained.item(), rel_tol=1e-5)
    torch.testing.assert_close(found["loss"], trained, rtol=1e-5, atol=1e-6)


def test_a_prompt_is_never_trained_on() -> None:
    """Only the completion's tokens are targets; the prompt's last token predicts the first of them."""
    batch = Collator(CAUSAL, 0)([{"input_ids": [5, 6, 7, 8, 9], "labels": [-100, -100, 7, 8, 9]}])
    assert CAUSAL.targets(batch["labels"]).tolist() == [[-100, 7, 8, 9, -100]]
    student, teacher = llama(0), llama(1)
    found = distilled(student, teacher, True)(**batch)["loss"]
    torch.testing.assert_close(found.double(), by_hand(student, teacher, batch), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt-neox", "qwen3", "gemma2"])
def test_packed_texts_do_not_attend_to_one_another(kind: str) -> None:
    """A packed row, padded next to a longer one, has the loss and gradients of its texts as separate rows."""
    texts = rows(3, seed=5, shortest=4, longest=6)
    lengths = [len(row["input_ids"]) for row in texts]
    packed = {
        "input_ids": [token for row in texts for token in row["input_ids"]],
        "labels": [token for row in texts for token in (-100, *row["input_ids"][1:])],
        "position_ids": [i for length in lengths for i in range(length)],
    }
    longer = {"input_ids": [1] * 20, "labels": [-100] * 20, "position_ids": list(range(20))}
    collate, found = Collator(CAUSAL, 0), []
    for batch in (collate(texts), collate([packed, longer])):
        model = distilled(small(kind, 0), small(kind, 1), True)
        model.student.eval()
        loss = model(**batch)["loss"]
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-4, atol=1e-6)


def test_no_labels_is_an_error() -> None:
    with pytest.raises(ValueError, match="no labels"):
        distilled(llama(0), llama(1), True)(input_ids=torch.tensor([[1, 2]]))
