"""The quality of answers: classes are scored by confusion matrices, numbers by errors, texts by BLEU."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastkd.corpora.labels import IGNORE_INDEX

Confusion = list[list[int]]


def confusion(true: Sequence[int], predicted: Sequence[int], classes: int) -> Confusion:
    """Counts: row = the label, column = the prediction. Negative labels (none given) are not counted."""
    counts = Counter(zip(true, predicted, strict=True))
    return [[counts[i, j] for j in range(classes)] for i in range(classes)]


def classification(matrix: Confusion, names: Sequence[str]) -> dict[str, Any]:
    """``accuracy``, ``macro_f1``, ``f1`` of each class by name, and the ``confusion`` itself.

    F1 is 0 for a class that is never predicted correctly. The macro mean is over the classes that occur among
    the labels or the predictions, as in scikit-learn.
    """
    total = sum(map(sum, matrix))
    right = sum(matrix[i][i] for i in range(len(matrix)))
    f1: dict[str, float | None] = {}
    for i, name in enumerate(names):
        both = sum(matrix[i]) + sum(row[i] for row in matrix)
        f1[name] = 2 * matrix[i][i] / both if both else None
    known = [value for value in f1.values() if value is not None]
    return {
        "accuracy": right / total if total else None,
        "macro_f1": sum(known) / len(known) if known else None,
        "f1": f1,
        "classes": list(names),
        "confusion": matrix,
    }


def multi_label(true: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """``micro_f1`` over all labels of all texts, ``macro_f1``, ``f1`` of each label by name, ``exact_match``
    (the fraction of texts whose labels are all right) and ``accuracy`` (that of single labels).

    Args:
        true: ``(texts, labels)`` of 0 and 1; negative entries (none given) are not counted.
        predicted: ``(texts, labels)``, whether the model gives the text the label.
        names: those of the labels.
    """
    known = true >= 0
    wanted = (true == 1) & known
    given = predicted.astype(bool) & known
    hits, sizes = (wanted & given).sum(0), (wanted.sum(0) + given.sum(0))
    f1 = {name: 2 * int(hits[i]) / int(sizes[i]) if sizes[i] else None for i, name in enumerate(names)}
    occurring = [value for value in f1.values() if value is not None]
    whole = known.all(1)
    right = wanted == given
    return {
        "accuracy": float(right[known].mean()) if known.any() else None,
        "exact_match": float(right[whole].all(1).mean()) if whole.any() else None,
        "micro_f1": 2 * int(hits.sum()) / int(sizes.sum()) if sizes.sum() else None,
        "macro_f1": sum(occurring) / len(occurring) if occurring else None,
        "f1": f1,
        "classes": list(names),
    }


def regression(true: np.ndarray, predicted: np.ndarray) -> dict[str, float | None]:
    """``mse``, ``mae``, and the correlations ``pearson`` and ``spearman`` (ties share their mean rank).

    Correlations are None where one side is constant. Labels of -100 or NaN (none given) are not counted.

    Args:
        true, predicted: arrays of as many numbers.
    """
    true, predicted = true.astype(float).ravel(), predicted.astype(float).ravel()
    known = (true != IGNORE_INDEX) & ~np.isnan(true)
    true, predicted = true[known], predicted[known]
    if not len(true):
        return dict.fromkeys(("mse", "mae", "pearson", "spearman"))
    return {
        "mse": float(np.square(predicted - true).mean()),
        "mae": float(np.abs(predicted - true).mean()),
        "pearson": _correlation(true, predicted),
        "spearman": _correlation(_ranks(true), _ranks(predicted)),
    }


def _correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    one, other = one - one.mean(), other - other.mean()
    size = math.sqrt(float((one @ one) * (other @ other)))
    return float(one @ other) / size if size > 0 else None


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return ranks


def texts(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """``bleu`` and ``chrf`` (0 to 100, of the whole set: Papineni et al. 2002, Popovic 2015), ``rouge1``,
    ``rouge2``, ``rougeL`` (F1, 0 to 1, mean over the answers: Lin 2004) and ``exact_match`` (a fraction).

    Spaces at either end are ignored. :func:`signatures` describes how the scores were computed.

    Raises:
        ValueError: no answers, or not one reference for each.
    """
    if not answers or len(answers) != len(references):
        raise ValueError(f"{len(answers)} answers and {len(references)} references cannot be compared")
    answers, references = [text.strip() for text in answers], [text.strip() for text in references]
    bleu, chrf = _sacrebleu(references)
    rouge = _rouge(references)
    found = {
        "bleu": bleu.corpus_score(answers, [references]).score,
        "chrf": chrf.corpus_score(answers, [references]).score,
    }
    each = [rouge.score(target, said) for target, said in zip(references, answers, strict=True)]
    for kind in ("rouge1", "rouge2", "rougeL"):
        found[kind] = sum(score[kind].fmeasure for score in each) / len(each)
    found["exact_match"] = sum(a == b for a, b in zip(answers, references, strict=True)) / len(answers)
    return found


def signatures(references: Sequence[str]) -> dict[str, str]:
    """The settings to quote with the scores for these references, so that others can repeat the scores."""
    from importlib.metadata import version

    bleu, chrf = _sacrebleu(references)
    found = {}
    for name, metric in (("bleu", bleu), ("chrf", chrf)):
        metric.corpus_score([references[0]], [[references[0]]])  # a signature needs a reference
        found[name] = str(metric.get_signature())
    words = "its own words, Porter stemmer" if _is_latin(references) else "Unicode words"
    found["rouge"] = f"rouge-score {version('rouge-score')}, F1, {words}"
    return found


def _sacrebleu(references: Sequence[str]) -> tuple[Any, Any]:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    return BLEU(tokenize=_bleu_tokenizer(references)), CHRF()


def _rouge(references: Sequence[str]) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ["rouge1", "rouge2", "rougeL"]
    if _is_latin(references):
        return RougeScorer(kinds, use_stemmer=True)
    return RougeScorer(kinds, tokenizer=_UnicodeWords())


class _UnicodeWords:
    """A tokenizer for other scripts, in which rouge-score finds no words: its own are runs of a-z and 0-9."""

    _WORD = re.compile(r"[぀-ヿ㐀-鿿豈-﫿]|[^\W_぀-ヿ㐀-鿿豈-﫿]+")

    def tokenize(self, text: str) -> list[str]:
        return self._WORD.findall(unicodedata.normalize("NFKC", text).lower())


def _letters(references: Sequence[str]) -> Counter[str]:
    """Counts of letters by script: latin, han, kana, other."""
    found: Counter[str] = Counter()
    for letter, count in Counter("".join(references)).items():
        if not letter.isalpha():
            continue
        name = unicodedata.name(letter, "")
        if "CJK" in name:
            found["han"] += count
        elif name.startswith(("HIRAGANA", "KATAKANA")):
            found["kana"] += count
        else:
            found["latin" if name.startswith("LATIN") else "other"] += count
    return found


def _is_latin(references: Sequence[str]) -> bool:
    found = _letters(references)
    return 2 * found["latin"] >= sum(found.values())


def _bleu_tokenizer(references: Sequence[str]) -> str:
    """The tokenizer of sacrebleu: 13a, unless the language does not separate words by spaces."""
    found = _letters(references)
    if 2 * (found["han"] + found["kana"]) <= sum(found.values()):
        return "13a"
    return "char" if found["kana"] else "zh"


def sentence_scorer(metric: str, references: Sequence[str]) -> Callable[[str, str], float]:
    """A function that scores one answer against one reference: the more alike, the higher.

    Args:
        metric: ``bleu`` (smoothed, over the n-gram orders that a short sentence has: Chen & Cherry 2014),
            ``chrf`` or ``rougeL`` (F1).
        references: some of them, which show how the language separates words.
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    if metric == "rougeL":
        rouge = _rouge(references)
        return lambda answer, reference: rouge.score(reference, answer)["rougeL"].fmeasure
    scorer: Any = CHRF()
    if metric == "bleu":
        scorer = BLEU(tokenize=_bleu_tokenizer(references), effective_order=True)
    return lambda answer, reference: scorer.sentence_score(answer, [reference]).score
