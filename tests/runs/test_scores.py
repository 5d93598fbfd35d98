"""Compare the scores of classifiers and texts with values by hand and with the libraries' own."""

from __future__ import annotations

import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from fastkd.runs import scores

SAID = ["the cat sat on the mat", "a dog ran away quickly", "nothing"]
MEANT = ["the cat sat on a mat", "the dogs ran away", "something else entirely"]


def test_classification_by_hand() -> None:
    true = [0, 0, 0, 1, 1, 2, -100, 3]
    predicted = [0, 0, 1, 1, 0, 2, 2, 2]
    matrix = scores.confusion(true, predicted, 5)
    assert matrix == [[2, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 0, 0], [0] * 5]
    found = scores.classification(matrix, ["a", "b", "c", "d", "never"])
    assert found["accuracy"] == 4 / 7
    assert found["f1"] == {
        "a": pytest.approx(2 / 3), "b": 0.5, "c": pytest.approx(2 / 3), "d": 0.0, "never": None,
    }  # fmt: skip
    # As in sklearn.metrics.f1_score(average="macro"), the mean is over the classes that occur.
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1 / 2 + 2 / 3 + 0) / 4)


def test_classification_of_nothing() -> None:
    found = scores.classification(scores.confusion([-100], [0], 2), ["a", "b"])
    assert found["accuracy"] is None and found["macro_f1"] is None


def test_texts_are_the_libraries_scores() -> None:
    found = scores.texts([f" {text}\n" for text in SAID], MEANT)
    assert found["bleu"] == BLEU().corpus_score(SAID, [MEANT]).score
    assert found["chrf"] == CHRF().corpus_score(SAID, [MEANT]).score
    rouge = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for kind in ("rouge1", "rouge2", "rougeL"):
        each = [rouge.score(target, said)[kind].fmeasure for target, said in zip(MEANT, SAID, strict=True)]
        assert found[kind] == pytest.approx(sum(each) / 3)
    # By hand: the first two texts have 6 words each, and all but one (a / the) match.
    assert rouge.score(MEANT[0], SAID[0])["rouge1"].fmeasure == pytest.approx(5 / 6)
    assert found["exact_match"] == 0
    same = scores.texts(MEANT, MEANT)
    assert same["bleu"] == pytest.approx(100) and same["rougeL"] == 1 and same["exact_match"] == 1


def test_signatures_state_how_scores_were_computed() -> None:
    found = scores.signatures(MEANT)
    assert "tok:13a" in found["bleu"] and "version:" in found["bleu"]
    assert "nc:6" in found["chrf"] and found["rouge"].startswith("rouge-score ")


@pytest.mark.parametrize(
    ("said", "meant", "tokenizer"),
    [
        ("我喜欢吃苹果。", "我喜欢吃红苹果。", "zh"),
        ("私はりんごが好きです", "私は赤いりんごが好きです", "char"),
        ("кошка сидит на ковре", "кошка сидит на диване", "13a"),
    ],
)
def test_other_scripts_have_words_too(said: str, meant: str, tokenizer: str) -> None:
    """rouge-score's own tokenizer keeps only Latin words, so it would find these texts empty and give 0."""
    found = scores.texts([said], [meant])
    assert 0.5 < found["rouge1"] < 1 and found["bleu"] > 20
    assert f"tok:{tokenizer}" in scores.signatures([meant])["bleu"]
    assert "Unicode" in scores.signatures([meant])["rouge"]
    assert scores.texts([meant], [meant])["rouge1"] == 1


def test_references_without_letters_are_plain_text() -> None:
    assert "tok:13a" in scores.signatures(["42", "1 + 1"])["bleu"]
    assert scores.texts(["42"], ["42"])["exact_match"] == 1


@pytest.mark.parametrize("answers", [[], ["one"]])
def test_texts_need_a_reference_each(answers: list[str]) -> None:
    with pytest.raises(ValueError, match="answers and 3 references cannot be compared"):
        scores.texts(answers, MEANT)
