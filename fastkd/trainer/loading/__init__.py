"""Models and tokenizers from their names: directories, ids of the hub, directories of adapters."""

from fastkd.trainer.loading.adapters import adapter_folder, adapter_trouble
from fastkd.trainer.loading.configs import read_config
from fastkd.trainer.loading.models import (
    build_student,
    load_sides,
    load_student,
    load_teacher,
    load_teacher_model,
    settings_of_each,
)
from fastkd.trainer.loading.names import trouble_in
from fastkd.trainer.loading.tokenizers import (
    check_tokens,
    check_tokens_of,
    crossed_tokenizer,
    load_tokenizer,
    own_tokenizer,
    teacher_tokenizer,
    with_languages,
)

__all__ = [
    "adapter_folder",
    "adapter_trouble",
    "build_student",
    "check_tokens",
    "check_tokens_of",
    "crossed_tokenizer",
    "load_sides",
    "load_student",
    "load_teacher",
    "load_teacher_model",
    "load_tokenizer",
    "own_tokenizer",
    "read_config",
    "settings_of_each",
    "teacher_tokenizer",
    "trouble_in",
    "with_languages",
]
