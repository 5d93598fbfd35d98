"""Digests of what a run reads, so that a run which resumes another one knows whether it has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from fastkd.corpora.store.fingerprints import rows_digest, tensors_digest, tokenizer_fingerprint
from fastkd.trainer.teachers import CachedTeacher, LiveTeacher, ServedTeacher
from fastkd.trainer.teachers.several import SeveralTeachers

# The digests by what they are of; None where there is nothing, or nothing that can be read twice.
Contents = dict[str, str | None]


def contents(raw: Mapping[str, Any], tokenizer: Any, teacher: Any) -> Contents:
    """The digests of the rows, the tokenizer and the teacher.

    Args:
        raw: the rows of ``train_file`` and ``eval_file`` as they were read.
        tokenizer: the tokenizer that encodes them, with its chat template.
        teacher: a model, a cache, or anything else, whose digest is None.
    """
    return {
        "the data of train_file": rows_digest(raw.get("train_file")),
        "the data of eval_file": rows_digest(raw.get("eval_file")),
        "the tokenizer": _tokenizer_digest(tokenizer),
        "the teacher": _teacher_digest(teacher),
    }


def student_contents(student: Any) -> Contents:
    """The digest of the student's weights that are not trained: a checkpoint of an adapter does not hold the
    model under it.

    Args:
        student: a plain model, or one with an adapter.
    """
    frozen = {name: p for name, p in student.named_parameters() if not p.requires_grad}
    return {"the model under the adapter": _digest(frozen, "hashing the model")}


def _tokenizer_digest(tokenizer: Any) -> str:
    template = str(getattr(tokenizer, "chat_template", None))
    return hashlib.sha256(f"{tokenizer_fingerprint(tokenizer)} {template}".encode()).hexdigest()


def _teacher_digest(teacher: Any) -> str | None:
    if isinstance(teacher, SeveralTeachers):
        digests = {name: _teacher_digest(one) for name, one in teacher.teachers.items()}
        return hashlib.sha256(repr(digests).encode()).hexdigest()
    if isinstance(teacher, LiveTeacher):
        teacher = teacher.model
    if isinstance(teacher, (CachedTeacher, ServedTeacher)):
        return teacher.digest()
    return (
        _digest(teacher.state_dict(), "hashing the teacher") if isinstance(teacher, PreTrainedModel) else None
    )


def _digest(state: Mapping[str, Any], title: str) -> str | None:
    """The digest of tensors; None without any, and where some are offloaded and have no data here."""
    if not state or any(getattr(tensor, "is_meta", False) for tensor in state.values()):
        return None
    return tensors_digest(state, title)
