"""Test the loss of ``cross_tokenizer: gold`` against plain loops in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from support import crossed
from support.crossed import ROWS, STUDENT, TEACHER
from support.vocabularies import tokenizer
from torch import Tensor

from fastkd.corpora.shared_tokens import same_tokens
from fastkd.corpora.spans import SINGLE, SPANS, SPLIT, TEACHER_IDS, TEACHER_SPANS
from fastkd.corpora.token_bytes import TokenBytes, comparable, token_bytes
from fastkd.trainer import DistillationTrainer, sorted_distance as module
from fastkd.trainer.crossed import first
from fastkd.trainer.crossed_distributions import GoldLoss, Tokens
from fastkd.trainer.sorted_distance import sorted_distance

Sides = tuple[list[Any], list[Any]]  # bytes, and None for the end of a text
# Vocabularies by what they have in common. Each side has a token twice in "twice", as some tokenizers have.
VOCABULARIES: dict[str, Sides] = {
    "some": ([b"a", b"b", b"ab", b"c", None], [b"b", b"ca", None, b"a", b"bb", b"cc", b"aa"]),
    "nothing": ([b"a", b"b", b"c"], [b"aa", b"bb", b"cc", b"dd"]),
    "everything": ([b"a", b"b", None], [b"b", None, b"a"]),
    "all of the student's": ([b"a", b"b"], [b"b", b"c", b"a", b"ab"]),
    "all of the teacher's": ([b"b", b"c", b"a", b"ab"], [b"a", b"b"]),
    "one": ([b"a", b"b"], [b"b", b"c", b"d"]),
    "twice": ([b"a", b"b", b"a", b"c"], [b"b", b"a", b"b", b"d", b"e"]),
}


def vocabulary(tokens: list[Any]) -> TokenBytes:
    return TokenBytes(tokens, frozenset(), frozenset(), True, lambda given: None)


def loss_of(sides: Sides, divergence: str = "forward_kl", temperature: float = 1.0) -> GoldLoss:
    made = same_tokens(*(vocabulary(tokens) for tokens in sides))
    options = {"divergence": divergence, "alpha": None, "beta": None}
    return GoldLoss(Tokens.of(made.student), Tokens.of(made.teacher), made.count, options, temperature)


def logits_of(sides: Sides, rows: int = 6, padding: tuple[int, int] = (2, 1)) -> tuple[Tensor, Tensor]:
    """Logits of both sides, with columns beyond the tokens."""
    draw = torch.Generator().manual_seed(5)
    own, given = (
        torch.randn(rows, len(tokens) + more, generator=draw, dtype=torch.float64) * 2
        for tokens, more in zip(sides, padding, strict=True)
    )
    return own.requires_grad_(), given


def gradient(value: Tensor, of: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(value, of)
    return found


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "tvd"])
@pytest.mark.parametrize("name", VOCABULARIES)
def test_spans_of_one_token_and_of_several(name: str, divergence: str, temperature: float) -> None:
    sides = VOCABULARIES[name]
    term = loss_of(sides, divergence, temperature)
    own, given = logits_of(sides)
    present = torch.tensor([True, False, True, True, False, True])
    for single, compare in ((True, term.of_single_tokens), (False, term.of_others)):
        wanted = own.new_zeros(()) + 0 * own.sum()
        for row in present.nonzero().flatten().tolist():
            wanted = wanted + crossed.gold(own[row], given[row], sides, single, temperature, divergence)
        found = compare(own, given, present)
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)
        mine = gradient(found, own)
        torch.testing.assert_close(mine, gradient(wanted, own), rtol=1e-6, atol=1e-7)
        assert not mine[~present].any() and not mine[:, len(sides[0]) :].any()


@pytest.mark.parametrize("name", VOCABULARIES)
def test_sides_that_agree_have_no_loss(name: str) -> None:
    """The teacher gives its own tokens what the student gives to those of the same rank."""
    sides = VOCABULARIES[name]
    shared = [token for token in sides[0] if token in sides[1]]
    draw = torch.Generator().manual_seed(2)
    of_token = {token: float(torch.randn((), generator=draw)) for token in shared}
    own_rest, other_rest = (iter(torch.linspace(-1, 1, 9).tolist()) for _ in range(2))
    own = torch.tensor([[of_token[t] if t in of_token else next(own_rest) for t in sides[0]]])
    given = torch.tensor([[of_token[t] if t in of_token else next(other_rest) for t in sides[1]]])
    alone = [sum(t not in of_token for t in side) for side in sides]
    twice = any(len({*side}) < len(side) for side in sides)
    found = loss_of(sides).of_single_tokens(own, given, torch.tensor([True]))
    assert float(found) >= -1e-6
    assert (abs(float(found)) < 1e-6) == (alone[0] == alone[1] and not twice)


def test_the_loss_is_never_negative_where_the_student_keeps_to_shared_tokens() -> None:
    """The sum of the terms p log(p / q) over shared tokens alone would be."""
    sides = VOCABULARIES["some"]
    mine, theirs = [0, 1, 4], [3, 0, 2]  # the columns of the tokens that both have
    own, given = torch.full((1, 5), -9.0), torch.full((1, 7), 4.0)
    own[0, mine], given[0, theirs] = 3.0, 0.0
    q, p = own.softmax(-1), given.softmax(-1)
    assert float((p[0, theirs] * (p[0, theirs] / q[0, mine]).log()).sum()) < 0
    found = float(loss_of(sides).of_single_tokens(own, given, torch.tensor([True])))
    lost = float(p[0, [1, 4, 5, 6]].sum() - q[0, [2, 3]].sum())
    assert found >= lost > 0.9


def test_a_temperature_keeps_the_size_of_the_gradient() -> None:
    sides = VOCABULARIES["some"]
    own, given = logits_of(sides)
    present = torch.ones(6, dtype=torch.bool)
    for single in (True, False):
        sizes = []
        for temperature in (50.0, 500.0):
            term = loss_of(sides, temperature=temperature)
            compare = term.of_single_tokens if single else term.of_others
            sizes.append(float(gradient(compare(own, given, present), own).norm()))
        assert sizes[1] == pytest.approx(sizes[0], rel=0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_and_extreme_logits(dtype: torch.dtype) -> None:
    sides = VOCABULARIES["some"]
    term = loss_of(sides)
    present = torch.ones(6, dtype=torch.bool)
    for factor in (1.0, 300.0):
        own, given = ((side.detach() * factor).to(dtype) for side in logits_of(sides))
        own.requires_grad_()
        exact = own.detach().double().requires_grad_()
        for single, compare in ((True, term.of_single_tokens), (False, term.of_others)):
            found = compare(own, given, present)
            mine = gradient(found, own)
            assert found.dtype == torch.float32 and mine.dtype == dtype
            assert found.isfinite() and mine.isfinite().all()
            if factor == 1:
                wanted = sum(
                    crossed.gold(exact[row], given[row], sides, single, 1.0, "forward_kl") for row in range(6)
                )
                assert isinstance(wanted, Tensor)
                torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
                close = (
                    {"rtol": 1e-2, "atol": 1e-2} if dtype != torch.float32 else {"rtol": 1e-4, "atol": 1e-5}
                )
                torch.testing.assert_close(mine.double(), gradient(wanted, exact), **close)


def test_shared_tokens_far_below_the_others_are_compared() -> None:
    """Their own probabilities would be 0 in float32."""
    sides = VOCABULARIES["some"]
    own, given = torch.zeros(1, 5), torch.zeros(1, 7)
    own[0, 2], given[0, 1] = 500.0, 500.0
    own[0, 0] = 1.0
    found = float(loss_of(sides).of_single_tokens(own, given, torch.tensor([True])))
    p, q = torch.tensor([0.0, 0.0, 0.0]).softmax(0), torch.tensor([1.0, 0.0, 0.0]).softmax(0)
    assert found == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-5)


def test_rows_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    own, given = (torch.randn(11, columns, generator=draw) for columns in (40, 50))
    own.requires_grad_()
    whole = sorted_distance(own, given, 1.5)
    monkeypatch.setattr(module, "CHUNK", 270)
    parts = sorted_distance(own, given, 1.5)
    weights = torch.arange(11.0)
    assert torch.equal(whole, parts)
    assert torch.equal(gradient((whole * weights).sum(), own), gradient((parts * weights).sum(), own))


def test_no_rows_and_no_columns() -> None:
    own = torch.randn(0, 4, requires_grad=True)
    assert gradient(sorted_distance(own, torch.randn(0, 6), 1.0).sum(), own).shape == (0, 4)
    own = torch.randn(3, 4, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    found = sorted_distance(own, torch.randn(3, 6), 1.0, none, none)
    assert not found.any() and not gradient(found.sum(), own).any()


def test_the_classes_are_tokens_of_the_same_bytes() -> None:
    one, other = comparable(token_bytes(tokenizer("metaspace")), token_bytes(tokenizer(TEACHER)))
    made = same_tokens(one, other)
    names: dict[int, set[Any]] = {}
    for side, numbers in ((one, made.student), (other, made.teacher)):
        for token, number in zip(side.tokens, numbers, strict=True):
            if number >= 0:
                names.setdefault(number, set()).add(token)
            else:
                assert not (token in one.tokens and token in other.tokens)
    assert {*names} == {*range(made.count)} and all(len(tokens) == 1 for tokens in names.values())
    assert made.shared == sum(token in other.tokens for token in one.tokens)


def test_the_first_of_the_spans_that_are_wanted() -> None:
    wanted = torch.tensor([False, True, False, True, True])
    assert first(wanted, 3).tolist() == [1, 3, 4]
    assert first(wanted, 4).tolist()[:3] == [1, 3, 4] and len(first(wanted, 4)) == 4


def trainer_of(tmp_path: Path, configuration: Any, **fields: Any) -> DistillationTrainer:
    teacher = crossed.teacher(tmp_path / "teacher")
    args = configuration(cross_tokenizer="gold", max_length=64, kd_ratio=1.0, **fields)
    data = Dataset.from_list(ROWS)
    return DistillationTrainer(crossed.student(), teacher, args, None, data, None, tokenizer(STUDENT))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("fused_head", ["auto", "false"])
def test_a_batch(tmp_path: Path, configuration: Any, fused_head: str, temperature: float) -> None:
    trainer = trainer_of(tmp_path, configuration, fused_head=fused_head, temperature=temperature)
    batch = dict(trainer.data_collator([trainer.train_dataset[i] for i in range(4)]))
    batch["labels"][1, -6:] = -100  # masked after the batch was made
    found = trainer.model.train()(**batch, num_items_in_batch=7)
    found["loss"].backward()
    plain = crossed.student()
    own = plain(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.double()
    with torch.no_grad():
        given = trainer._teacher.model(  # type: ignore[union-attr]
            batch[TEACHER_IDS], attention_mask=batch["teacher_attention_mask"]
        ).logits
    tokens = comparable(token_bytes(tokenizer(STUDENT)), token_bytes(tokenizer(TEACHER)))
    wanted, counts = torch.zeros((), dtype=torch.float64), {True: 0, False: 0}
    for row in range(4):
        mine, theirs = (batch[name][row].tolist() for name in (SPANS, TEACHER_SPANS))
        for number in range(max(mine) + 1):
            single = mine.count(number) == theirs.count(number) == 1
            counts[single] += 1
            here, there = mine.index(number) - 1, theirs.index(number) - 1
            if batch["labels"][row, here + 1] == -100:
                continue
            sides = tokens[0].tokens, tokens[1].tokens
            wanted = wanted + crossed.gold(
                own[row, here], given[row, there], sides, single, temperature, "forward_kl"
            )
    wanted = wanted / 7
    wanted.backward()
    assert counts == {True: batch[SINGLE], False: batch[SPLIT]} and min(counts.values()) > 5
    assert float(found["loss"]) == pytest.approx(wanted.item(), rel=1e-5)
    for one, other in zip(trainer.student.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5)


def test_a_batch_whose_spans_are_all_of_one_kind_sorts_no_more(
    tmp_path: Path, configuration: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(tmp_path, configuration)
    called: list[tuple[str, int]] = []
    for name in ("of_single_tokens", "of_others"):
        real = getattr(GoldLoss, name)

        def counted(
            term: GoldLoss, student: Tensor, *rest: Tensor, name: str = name, real: Any = real
        ) -> Tensor:
            called.append((name, len(student)))
            return real(term, student, *rest)

        monkeypatch.setattr(GoldLoss, name, counted)
    rows = [dict(trainer.train_dataset[i]) for i in range(2)]
    batch = trainer.data_collator(rows)
    trainer.model.train()(**batch)
    assert called == [("of_single_tokens", batch[SINGLE]), ("of_others", batch[SPLIT])]
    called.clear()
    for row in rows:
        keep = {
            number
            for number in range(max(row[SPANS]) + 1)
            if row[SPANS].count(number) == row[TEACHER_SPANS].count(number) == 1
        }
        for name in (SPANS, TEACHER_SPANS):
            row[name] = [number if number in keep else -100 for number in row[name]]
    trainer.model.train()(**trainer.data_collator(rows))
    assert [name for name, _ in called] == ["of_single_tokens"]
