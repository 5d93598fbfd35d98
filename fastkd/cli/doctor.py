"""``fastkd doctor CONFIG.yaml``: finds what would go wrong in a run before it starts."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

from fastkd.cli.settings import help_text, read_settings

if TYPE_CHECKING:
    from fastkd.runs.doctor import Finding

ABOUT = """Look for what would go wrong in a run: an error stops it or makes it train on something wrong,
a warning is probably not intended, a note is good to know. The exit code is 1 if there is an error.

  --fast   read no weights (so teacher and student are not compared on a few rows), read only the
           manifest of a cache, and estimate no memory
  --json   print JSON (default: text)"""

WIDTH = 100


def main(argv: list[str]) -> int:
    if not argv or {"-h", "--help"} & set(argv):
        print(help_text("doctor", ABOUT))
        return 0 if argv else 2
    flags = {"--fast", "--json"}
    chosen = flags & set(argv)
    args = read_settings([argument for argument in argv if argument not in flags])
    from fastkd.runs.doctor import examined

    found, looked_at = examined(args, fast="--fast" in chosen)
    if "--json" in chosen:
        print(json.dumps({"findings": [asdict(f) for f in found], "looked_at": looked_at}, indent=2))
    else:
        print(_text(found, looked_at))
    return int(any(finding.severity == "error" for finding in found))


def _text(found: list[Finding], looked_at: str) -> str:
    lines = [f"looked at {looked_at}" if looked_at else "no data was looked at", ""]
    for finding in found:
        lines += _wrapped(f"{finding.severity:<8} ", finding.found)
        if finding.remedy:
            lines += _wrapped(" " * 9 + "-> ", finding.remedy)
        lines.append("")
    counts = Counter(finding.severity for finding in found)
    said = [
        f"{n} {name}{'' if n == 1 else 's'}" for name in ("error", "warning", "note") if (n := counts[name])
    ]
    lines.append(", ".join(said) if said else "nothing found")
    return "\n".join(lines)


def _wrapped(opening: str, text: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=opening,
        subsequent_indent=" " * len(opening),
        break_long_words=False,
        break_on_hyphens=False,
    )
