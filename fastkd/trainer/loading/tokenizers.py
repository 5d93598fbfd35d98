"""The tokenizers of student and teacher, and the check that they number the same tokens alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from fastkd.corpora.languages import set_languages
from fastkd.corpora.vocabulary import require_other_tokens, require_same_tokens
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.loading.adapters import base_name
from fastkd.trainer.loading.configs import read_config, require_name
from fastkd.trainer.loading.names import expanded, reason, trouble_in
from fastkd.trainer.teachers import TeacherSource

# Patterns of the files in which tokenizers of all kinds are saved.
_FILES = ("*token*", "vocab*", "*.model", "*.spm", "merges.txt", "tekken.json")


def load_tokenizer(args: DistillationConfig) -> PreTrainedTokenizerBase:
    """The student's tokenizer, or the teacher's if the student (one from scratch) has none yet.

    Raises:
        ValueError: neither has one, or a model that cannot be read.
    """
    name = require_name("model", args.model)
    found = own_tokenizer("model", name, args)
    if found is None:
        found = teacher_tokenizer(args)
    if found is None:
        raise ValueError(
            f"model {name!r} has no tokenizer: save one beside its config.json, such as the teacher's"
        )
    return with_languages(found, args)


def teacher_tokenizer(args: DistillationConfig) -> PreTrainedTokenizerBase | None:
    """The tokenizer of the model that ``teacher`` names; None without a model, or if it has none.

    Raises:
        ValueError: a teacher or a tokenizer that cannot be read.
    """
    source = TeacherSource.parse(args.teacher)
    return own_tokenizer("teacher", source.name, args) if source.is_model else None


def with_languages(tokenizer: PreTrainedTokenizerBase, args: DistillationConfig) -> PreTrainedTokenizerBase:
    """The tokenizer; that of a multilingual encoder-decoder with the languages of the configuration."""
    if args.task == "seq2seq":
        set_languages(tokenizer, args)
    return tokenizer


def own_tokenizer(field: str, name: str, args: DistillationConfig) -> PreTrainedTokenizerBase | None:
    """The tokenizer that was saved with a model, or with the model under an adapter; None without one.

    Raises:
        ValueError: a model or a tokenizer that cannot be read.
    """
    names = dict.fromkeys((name, base_name(field, name)))
    for place in names:
        if (found := _at(field, place, args)) is not None:
            return found
    return None


def _at(field: str, name: str, args: DistillationConfig) -> PreTrainedTokenizerBase | None:
    folder = Path(expanded(name))
    if folder.is_dir() and not _has_tokenizer(folder):
        return None
    try:
        return AutoTokenizer.from_pretrained(expanded(name), trust_remote_code=args.trust_remote_code)
    except Exception as error:  # damaged files of a tokenizer raise errors of many kinds
        if folder.is_dir():
            has_config = (folder / "config.json").is_file()
            why = (trouble_in(folder, field, weights=False) if has_config else None) or reason(error)
            raise ValueError(f"{field} {name!r}: its tokenizer could not be read: {why}") from error
        read_config(field, name, args)  # raises an error if there is no such model
        return None


def _has_tokenizer(folder: Path) -> bool:
    return any(path.is_file() for pattern in _FILES for path in folder.glob(pattern))


def check_tokens(args: DistillationConfig, tokenizer: Any) -> PreTrainedTokenizerBase | None:
    """The teacher's tokenizer where ``cross_tokenizer`` lets it be another one; None otherwise.

    Raises:
        ValueError: without ``cross_tokenizer``, a token number that means another token to ``teacher`` than
            in ``tokenizer``; with it, a teacher that has no tokenizer or the same one.
    """
    theirs = teacher_tokenizer(args)
    if args.cross_tokenizer is not None and args.teacher is not None:
        return with_languages(require_other_tokens(tokenizer, theirs), args)
    if theirs is not None:
        require_same_tokens(tokenizer, theirs)
    return None


def check_tokens_of(teacher: Any, tokenizer: Any, args: DistillationConfig) -> None:
    """As :func:`check_tokens`, for a teacher that is loaded already.

    Its tokenizer is looked for where the model came from. Without one, there is nothing to compare.
    """
    theirs = None if tokenizer is None else _beside(teacher, args)
    if theirs is not None:
        require_same_tokens(tokenizer, theirs)


def crossed_tokenizer(teacher: Any, tokenizer: Any, args: DistillationConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a teacher that is loaded already, for a run with ``cross_tokenizer``.

    Raises:
        ValueError: no tokenizer of the student or the teacher, or the same one.
    """
    if tokenizer is None:
        raise ValueError("cross_tokenizer compares tokenizers: give the student's as processing_class")
    return with_languages(require_other_tokens(tokenizer, _beside(teacher, args)), args)


def _beside(teacher: Any, args: DistillationConfig) -> PreTrainedTokenizerBase | None:
    """The tokenizer that was saved where a model came from; None if none can be read there."""
    name = getattr(teacher, "name_or_path", None)
    if not isinstance(name, str) or not name:
        return None
    folder = Path(name)
    try:
        if not _has_tokenizer(folder) if folder.is_dir() else not _is_cached(name):
            return None
        made: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name, trust_remote_code=args.trust_remote_code
        )
    except Exception:  # damaged files of a tokenizer raise errors of many kinds
        return None
    return made


def _is_cached(name: str) -> bool:
    """Whether a name is that of a model of the hub that was loaded before."""
    return isinstance(try_to_load_from_cache(name, "config.json"), str)
