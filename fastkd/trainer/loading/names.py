"""Names of models: directories and ids of the hub. States in one sentence why one of them cannot be read."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants, errors
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from fastkd.trainer.seeds import named_seeds, seed_folder, seeds_in

LFS = b"version https://git-lfs"
INDEX = "model.safetensors.index.json"
INIT_KWARGS = {"model": "model_init_kwargs", "teacher": "teacher_model_init_kwargs"}
# A longer header of a safetensors file is none (the limit of safetensors itself).
_LONGEST_HEADER = 100_000_000


def expanded(name: str) -> str:
    """The name, with ``~`` replaced by the home directory."""
    return str(Path(name).expanduser()) if name.startswith("~") else name


def refusal(field: str, name: str, error: Exception, weights: bool = True) -> ValueError:
    """An error that states why a model could not be read.

    Args:
        field: ``model`` or ``teacher``, whose value ``name`` is.
        error: the error that a library raised.
        weights: whether the weights were to be read, and not the configuration or the tokenizer alone.
    """
    folder = Path(expanded(name))
    said = f"{field} {name!r} could not be loaded"
    if folder.is_dir():
        return ValueError(f"{said}: {trouble_in(folder, field, weights) or reason(error)}")
    if folder.exists():
        return ValueError(f"{said}: it is a file, and a model is a directory with config.json and weights")
    if is_path(name):
        return ValueError(f"{said}: there is no such directory{_nearest(name)}")
    return ValueError(f"{said}: there is no such directory here{_nearest(name)}, and {_from_hub(error)}")


def reason(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip()


def trouble_in(folder: Path, field: str, weights: bool = True) -> str | None:
    """The reason why a directory holds no model that can be read; None if the files look whole.

    Only names, sizes and headers of the files are read.
    """
    for path in sorted(folder.iterdir()):
        if path.is_file() and _starts_with(path, LFS):
            return f"{path.name} is only the pointer that git-lfs left in its place: run git lfs pull there"
    config = folder / "config.json"
    if not config.is_file():
        if seeds := seeds_in(folder):
            one = str(seed_folder(folder, seeds[0]))
            return (
                f"it holds the runs of {named_seeds(seeds)}: name the model of one of them, such as {one!r}"
            )
        inner = sorted(path.parent.name for path in folder.glob("*/config.json"))
        meant = f"; did you mean {str(folder / inner[0])!r}?" if inner else ""
        return f"the directory has no config.json{meant}"
    try:
        json.loads(config.read_text("utf-8"))
    except ValueError as error:
        return f"its config.json is not valid JSON ({error})"
    return _trouble_with_weights(folder, field) if weights else None


def _trouble_with_weights(folder: Path, field: str) -> str | None:
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        pickled = sorted(path.name for pattern in ("*.bin", "*.pt") for path in folder.glob(pattern))
        if pickled:
            return (
                f"it has pickled weights only ({pickled[0]}), which can run code: convert them to "
                f"safetensors, or, if you trust them, set {INIT_KWARGS[field]}: {{use_safetensors: false}}"
            )
        mend = (
            "set model_init: scratch to start from random ones, or give a trained model"
            if field == "model"
            else "give the directory of a trained model"
        )
        return f"the directory has a config.json and no weights (model.safetensors): {mend}"
    for path in found:
        if (trouble := _cut_off(path)) is not None:
            return f"{path.name} {trouble}: copy or download it again"
    index = folder / INDEX
    if index.is_file():
        try:
            wanted = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError):
            return f"{INDEX} is damaged: copy or download it again"
        if absent := sorted(wanted - {path.name for path in found}):
            return f"{INDEX} names {absent[0]}, which is missing: copy or download it again"
    return None


def _cut_off(path: Path) -> str | None:
    """The reason why a safetensors file is not whole; None if its size is the one that its header states."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or 8 + length > size or length > _LONGEST_HEADER:
            return f"is cut off or no safetensors file ({size:,} bytes)"
        try:
            header = json.loads(file.read(length))
            ends = [part["data_offsets"][1] for name, part in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return "has a damaged header"
    whole = 8 + length + max(ends, default=0)
    return None if size == whole else f"is cut off: it has {size:,} of {whole:,} bytes"


def _starts_with(path: Path, start: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(start)) == start


def is_path(name: str) -> bool:
    """Whether a name can only be a directory's, and no id of the hub."""
    if name.startswith((".", "/", "~")):
        return True
    try:
        validate_repo_id(name)
    except errors.HFValidationError:
        return True
    return False


def _nearest(name: str) -> str:
    """A question after the directory whose name is most like this one, if there is one."""
    whole = name.rstrip("/")
    beside = Path(expanded(whole)).parent
    wanted = Path(whole).name
    if not beside.is_dir():
        return f" (nor {str(beside)!r})" if is_path(name) else ""
    there = [path.name for path in beside.iterdir() if path.is_dir()]
    near = difflib.get_close_matches(wanted, there, n=1)
    return f"; did you mean {whole[: len(whole) - len(wanted)] + near[0]!r}?" if near else ""


def _from_hub(error: Exception) -> str:
    """The reason why the hub did not give a model."""
    kinds = tuple(type(cause) for cause in _causes(error))

    def is_a(kind: type[BaseException]) -> bool:
        return any(issubclass(found, kind) for found in kinds)

    if is_a(errors.GatedRepoError):
        return "the hub's model asks for permission: request it on the model's page, then run hf auth login"
    if is_a(errors.RepositoryNotFoundError):
        return "the hub has no model of this name (a private one needs hf auth login)"
    if constants.HF_HUB_OFFLINE:
        return "the hub is not asked (HF_HUB_OFFLINE is set) and the local cache does not have the model"
    if is_a(errors.LocalEntryNotFoundError) or is_a(ConnectionError) or is_a(TimeoutError):
        return "the hub cannot be reached and the local cache does not have the model"
    return f"from the hub: {reason(error)}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
