"""The seeds of a configuration whose runs are repeated, and the directories of these runs."""

from __future__ import annotations

from pathlib import Path

# numpy, which the trainer seeds too, takes no larger number.
LARGEST = 2**32 - 1
_ADVICE = "give a number of runs such as 3, or a list of seeds such as 1,2,7"


def parse_seeds(given: list[int] | int | str) -> list[int] | int:
    """The field ``seeds``: a number of runs, or the seeds themselves.

    Args:
        given: as a person wrote it; ``1,2,7`` is text to YAML.

    Raises:
        ValueError: it is neither, or a seed occurs twice or is out of range.
    """
    if isinstance(given, str):
        parts = [part.strip() for part in given.split(",")]
        if not all(part.isdecimal() for part in parts):
            raise ValueError(f"seeds is {given!r}: {_ADVICE}")
        given = int(parts[0]) if len(parts) == 1 else [int(part) for part in parts]
    for value in given if isinstance(given, list) else [given]:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"seeds holds {value!r}: {_ADVICE}")
    if isinstance(given, int):
        if given < 1:
            raise ValueError(f"seeds is {given}, and there must be at least 1 run: {_ADVICE}")
        return given
    if not given:
        raise ValueError(f"seeds is an empty list: {_ADVICE}")
    for seed in given:
        if not 0 <= seed <= LARGEST:
            raise ValueError(f"seeds holds {seed}: a seed is a whole number from 0 to {LARGEST}")
        if given.count(seed) > 1:
            raise ValueError(f"seeds holds {seed} more than once: give each seed once")
    return given


def seeds_of(given: list[int] | int | str, first: int) -> list[int]:
    """The seeds themselves.

    Args:
        given: the field ``seeds``.
        first: the field ``seed``, from which a number of runs counts.
    """
    seeds = parse_seeds(given)
    return seeds if isinstance(seeds, list) else [first + i for i in range(seeds)]


def seed_folder(output_dir: str | Path, seed: int) -> Path:
    """The directory of the run with one of several seeds."""
    return Path(output_dir) / f"seed-{seed}"


def seeds_in(folder: Path) -> list[int]:
    """The seeds whose runs a directory holds, in order."""
    names = [path.parent.name.removeprefix("seed-") for path in folder.glob("seed-*/run.json")]
    return sorted(int(name) for name in names if name.isdecimal())


def named_seeds(seeds: list[int]) -> str:
    """The seeds in words: ``seed 42``, or ``seeds 42, 43 and 44``."""
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    return f"seeds {', '.join(map(str, seeds[:-1]))} and {seeds[-1]}"
