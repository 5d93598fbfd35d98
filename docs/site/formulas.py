"""Renders the formulas of a page while the site is built: a reader needs neither a script nor a server.

KaTeX, which ``make docs`` installs with the other packages of the site, raises for a formula that it cannot
read.
"""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

KATEX = Path(sys.prefix) / "node_modules" / "katex" / "dist"
FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\s*(\\\(|\\\[)(.*?)(?:\\\)|\\\])\s*</\1>', flags=re.DOTALL
)
RENDER = """
const katex = require(process.argv[1]);
const formulas = JSON.parse(require("fs").readFileSync(0, "utf8"));
const html = formulas.map(([text, display]) =>
  katex.renderToString(text, {displayMode: display, throwOnError: true, strict: "error"}));
process.stdout.write(JSON.stringify(html));
"""


def on_files(files: Files, *, config: Any) -> Files:
    """Add the style sheet and the fonts of KaTeX."""
    if not KATEX.is_dir():
        raise PluginError(f"{KATEX} is missing: make docs installs it, which needs npm")
    for path in (KATEX / "katex.min.css", *sorted(KATEX.glob("fonts/*.woff2"))):
        name = f"assets/katex/{path.relative_to(KATEX).as_posix()}"
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_post_page(output: str, *, page: Any, **_: Any) -> str:
    """Replace each formula by what KaTeX makes of it."""
    formulas = [(html.unescape(text), opening == "\\[") for _, opening, text in FORMULA.findall(output)]
    if not formulas:
        return output
    try:
        done = subprocess.run(
            ["node", "-e", RENDER, str(KATEX / "katex.js")],
            input=json.dumps(formulas),
            capture_output=True,
            text=True,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        raise PluginError(f"{page.file.src_uri}: {error.stderr}") from error
    rendered = iter(json.loads(done.stdout))
    return FORMULA.sub(lambda match: f'<{match[1]} class="formula">{next(rendered)}</{match[1]}>', output)
