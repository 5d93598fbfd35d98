"""Opens the output of ``fastkd generate`` as a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastkd.corpora.local_files import directory_message
from fastkd.corpora.store.manifest import GENERATED, NAME, Manifest

if TYPE_CHECKING:
    from datasets import Dataset


def open_generated(field: str, folder: Path) -> Dataset:
    """The rows of a generated set, after all its files have been compared with their checksums.

    Args:
        field: name of the setting that ``folder`` comes from, for error messages.
        folder: directory of the generated set.

    Raises:
        ValueError: no generated set, an incomplete one, or one that is damaged.
    """
    from datasets import load_dataset

    if not (folder / NAME).exists():
        raise ValueError(f"{field}: {directory_message(folder)}")
    try:
        manifest = Manifest.read(folder)
        if manifest.kind != GENERATED:
            raise ValueError(
                f"{folder} is a cache, not a generated set: give its parent as teacher: cache:DIR"
            )
        manifest.require_complete("generate")
        manifest.verify(f"checking {folder.name}")
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error
    files = [str(folder / shard.name) for shard in manifest.shards]
    return load_dataset("parquet", data_files=files, split="train")


def generated_manifest(given: Any) -> Manifest | None:
    """The manifest of the generated set that ``train_file`` or ``eval_file`` names; None if it names none.

    Raises:
        ValueError: a manifest that cannot be read.
    """
    if not isinstance(given, str) or not (Path(given).expanduser() / NAME).is_file():
        return None
    manifest = Manifest.read(Path(given).expanduser())
    return manifest if manifest.kind == GENERATED else None
