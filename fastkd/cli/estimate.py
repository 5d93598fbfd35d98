"""``fastkd estimate CONFIG.yaml``: memory, time per step and cache sizes, before the run."""

from __future__ import annotations

import json

from fastkd.cli.settings import help_text, read_settings

ABOUT = """Estimate what a run will need in each process: peak memory and what needs it, settings that
would need less, time per step, cache sizes. Models are built from their config.json without weights
and a step is run on tensors without data; some thousand rows are read for their lengths. A teacher in a
directory of this machine, with at most 1 GiB of weights, is run on up to 64 rows to measure its caches.

  --processes N   as if N processes trained together (default: those of this launch)
  --no-time       do not measure this machine's speed
  --no-weights    load no teacher: the bytes of a sampled cache are assumed
  --json          print JSON (default: text)"""


def main(argv: list[str]) -> int:
    if not argv or {"-h", "--help"} & set(argv):
        print(help_text("estimate", ABOUT))
        return 0 if argv else 2
    processes, argv = _take_processes(argv)
    flags = {"--json", "--no-time", "--no-weights"}
    chosen = flags & set(argv)
    args = read_settings([argument for argument in argv if argument not in flags])
    from fastkd.runs.estimate import estimate
    from fastkd.runs.estimate.text import text

    measured = "--no-weights" not in chosen
    found = estimate(args, processes, timed="--no-time" not in chosen, measured=measured)
    print(json.dumps(found.to_dict(), indent=2) if "--json" in chosen else text(found, args))
    return 0


def _take_processes(argv: list[str]) -> tuple[int | None, list[str]]:
    rest = list(argv)
    for i, argument in enumerate(rest):
        name, equals, value = argument.partition("=")
        if name == "--processes":
            value = value if equals else "".join(rest[i + 1 : i + 2])
            if not value.isdigit() or int(value) < 1:
                raise ValueError(f"--processes must be a whole number from 1, not {value!r}")
            del rest[i : i + (1 if equals else 2)]
            return int(value), rest
    return None, rest
