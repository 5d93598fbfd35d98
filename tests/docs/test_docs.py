"""Test the promises of docs/: every divergence has its section, snippets run, links and numbers are real."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import fastkd
from fastkd.backends.record import bytes_per_token
from fastkd.divergences import DIVERGENCES, Pair
from fastkd.losses.checks import row_spec

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
PROSE = [
    *PAGES,
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(ROOT / name for name in ("bench/README.md", "bench/NOTES.md", "hub/README.md", "tests/gpu/README.md")),
]
LOSSES = (ROOT / "docs" / "losses.md").read_text()

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def sections(text: str) -> dict[str, str]:
    """Each heading with the text from it to the next heading."""
    parts = re.split(r"^#{1,3} ", text, flags=re.MULTILINE)
    return {title.strip(): body for title, _, body in (part.partition("\n") for part in parts)}


def anchor(title: str) -> str:
    """The anchor that GitHub derives from a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", without_code(page.read_text()), flags=re.MULTILINE)
    return {anchor(title) for title in titles}


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_every_divergence_has_its_section(divergence: str) -> None:
    section = sections(LOSSES).get(divergence)
    assert section, f"docs/losses.md has no section '### {divergence}'"
    assert "```math" in section
    for part in ("*Gradient.*", "*Sweeps.*", "*Tails.*", "*When.*", "*Source.*"):
        assert part in section, f"the section of {divergence} lacks {part}"


def test_the_table_of_choices_names_every_divergence() -> None:
    table, _, _ = sections(LOSSES)["How to choose"].partition("The divergences differ in size")
    assert [name for name in DIVERGENCES if f"`{name}`" not in table] == []


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_table_of_infinities_is_true(name: str) -> None:
    """At the default parameters, one of the divergence's rows says where the formula is infinite."""
    (table,) = re.findall(r"^\| \| student \$-\\infty\$.*\n((?:\|.*\n)+)", LOSSES, flags=re.MULTILINE)
    rows = [row.split("|")[1:4] for row in table.splitlines() if f"`{name}`" in row]
    assert rows, f"the table of infinities does not name {name}"
    p, q = torch.tensor([[0.5, 0.2, 0.3, 0.0]]).log(), torch.tensor([[0.3, 0.4, 0.2, 0.1]]).log()
    divergence = DIVERGENCES[name]
    numbers = divergence.default("alpha"), divergence.default("beta")
    label = torch.tensor([[True, False, False, False]])
    found = []
    for log_p, log_q in ((q, p), (p, q)):  # the student lacks a column, the teacher lacks a column
        pair = Pair(log_p.double(), log_q.double(), (log_p - log_q).double(), *numbers, label)
        found.append(bool(divergence.formula(pair).value.isinf()))
    stated = [["D = \\infty" in cell for cell in row[1:]] for row in rows]
    if name != "log_acceptance":  # its row has a condition
        assert found in stated, f"{name} is infinite: {found}; the table says {stated}"


def test_the_contents_name_every_divergence() -> None:
    contents = LOSSES[: LOSSES.index("## The definition")]
    assert [name for name in DIVERGENCES if f"[{name}](#{name})" not in contents] == []


def test_the_docstring_names_every_divergence() -> None:
    assert fastkd.kd_loss.__doc__ is not None
    assert [name for name in DIVERGENCES if f'``"{name}"``' not in fastkd.kd_loss.__doc__] == []


def test_the_map_names_files_that_exist() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    named = re.findall(r"`([\w/]+\.(?:py|h|cuh|cu|cpp))`", page)
    files = [
        path.as_posix() for folder in ("fastkd", "csrc", "tests") for path in (ROOT / folder).rglob("*.*")
    ]
    assert len(named) > 20
    assert [name for name in named if not any(path.endswith(f"/{name}") for path in files)] == []


@every_page
def test_python_snippets_run(page: Path) -> None:
    snippets = re.findall(r"^```python\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert snippets or "```yaml" in page.read_text() or page.name == "results.md"
    if any("fastkd.trainer" in snippet for snippet in snippets):
        pytest.importorskip("transformers")
    scope: dict[str, object] = {}
    for snippet in snippets:  # later snippets use the names that earlier ones defined
        exec(compile(snippet, page.name, "exec"), scope)


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    missing = []
    for file, name in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", without_code(page.read_text())):
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (name and name not in anchors(target)):
            missing.append(f"{file}#{name}")
    assert not missing


@every_page
def test_inline_math_survives_markdown(page: Path) -> None:
    """Markdown treats a backslash before punctuation as an escape, so ``\\,`` would show as a comma."""
    for line in without_code(page.read_text()).splitlines():
        assert line.count("$") % 2 == 0, line
        for formula in re.findall(r"\$[^$]+\$", line):
            assert not re.search(r"\\[^a-zA-Z]", formula), formula


def test_bytes_over_the_network() -> None:
    table = sections(LOSSES)["A vocabulary over several processes"]
    rows = re.findall(r"^\| (.+) \| (\d+)(?: \+ 8 K)? \|$", table, flags=re.MULTILINE)
    stated = {name: int(number) for names, number in rows for name in names.replace("`", "").split(", ")}
    assert set(DIVERGENCES) <= set(stated)
    extra = {
        "label_smoothing": int(re.search(r"plus (\d+) with `label_smoothing`", table)[1]),  # type: ignore[index]
        "metrics": int(re.search(r"and (\d+) with `return_metrics`", table)[1]),  # type: ignore[index]
    }

    def bytes_of(divergence: str, *, metrics: bool = False, **options: float) -> int:
        settings = dict(
            kd_ratio=1.0,
            divergence=divergence,
            alpha=None,
            beta=None,
            temperature=1.0,
            teacher_temperature=None,
            t_squared=True,
            ignore_index=-100,
            label_smoothing=0.0,
            z_loss=0.0,
            vocab_size=100,
        )
        return bytes_per_token(row_spec(**{**settings, **options}), metrics)  # type: ignore[arg-type]

    for divergence in DIVERGENCES:
        assert bytes_of(divergence) == stated[divergence]
        assert bytes_of(divergence, label_smoothing=0.1) == stated[divergence] + extra["label_smoothing"]
        assert bytes_of(divergence, metrics=True) == stated[divergence] + extra["metrics"]
    assert bytes_of("forward_kl", kd_ratio=0.0) == stated["none (kd_ratio=0)"]


@pytest.mark.parametrize("page", PROSE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_prose_fits_in_110_columns(page: Path) -> None:
    """Tables, code, headings, links without a space, and what ``bench/readme.py`` writes have any width."""
    text = re.sub(r"^<!-- bench: begin.*?end -->$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = [line for line in without_code(text).splitlines() if not line.lstrip().startswith(("|", "#"))]
    wide = [line for line in lines if len(line) > 110 and " " in line.strip()]
    assert not wide, "\n".join(["lines of more than 110 columns:", *wide])
