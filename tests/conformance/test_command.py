"""The command loads adapters by name and by file, prints the table, and writes the page of the docs."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest
from support.wrong_losses import adapter_of, right

from fastkd.conformance import Status, page, run, table
from fastkd.conformance.adapter import Adapter
from fastkd.conformance.cases import CASES
from fastkd.conformance.command import main
from fastkd.conformance.loading import SHIPPED, Missing, load
from fastkd.conformance.measures import TOLERANCES

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "conformance.md"

MINE = """
import torch.nn.functional as F
from fastkd.conformance import Adapter

def loss(call):
    call = call.flat
    return F.kl_div(F.log_softmax(call.student, -1), F.softmax(call.teacher, -1), reduction="batchmean")

adapters = (
    Adapter("mine", loss, "my_loss", reductions={"mean": "tokens"}, teacher_gradient=True),
)
"""

OURS = """
from dataclasses import replace
from fastkd.conformance.adapters.fastkd_loss import adapters as all

adapters = (replace(all[0], divergences=("forward_kl",)),)
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def rows(markdown: str) -> dict[str, list[str]]:
    """The first cell of each table row with the cells that follow, those of several tables joined."""
    found: dict[str, list[str]] = {}
    for line in markdown.splitlines():
        if line.startswith("| "):
            name, *cells = (cell.strip() for cell in line.strip("|").split(" | "))
            found.setdefault(name, []).extend(cells)
    return found


def test_a_users_file(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(mine), "torch"]) == 1
    said = capsys.readouterr().out
    assert re.search(r"^case +mine +plain torch$", said, flags=re.MULTILINE)
    assert re.search(r"^near-identical bfloat16 +wrong: gradient \d+ %( +|$)", said, flags=re.MULTILINE)
    assert re.search(r"^temperature 3 +- +passes$", said, flags=re.MULTILINE)
    assert "  temperature 3: cannot express: no temperature" in said
    assert re.search(r"^mine: \d+ passes, 3 wrong, \d+ cannot express$", said, flags=re.MULTILINE)


def test_the_exit_code_is_0_if_nothing_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "forward_kl.py"
    path.write_text(OURS)
    assert main([str(path)]) == 0
    assert "second derivatives: refuses: forward_kl: RuntimeError" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [("x = 1", "defines no tuple named 'adapters'"), ("import nowhere_to_be_found", "nowhere_to_be_found")],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises((ValueError, ImportError), match=message):
        main([str(path)])


def test_a_near_name_is_suggested() -> None:
    with pytest.raises(ValueError, match="did you mean 'torchdistill'"):
        load("torchdistil")


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_adapter_loads_or_says_why_not(name: str) -> None:
    for found in load(name):
        if isinstance(found, Missing):
            assert "not installed" in found.why or "GPU" in found.why or "cannot be imported" in found.why
        else:
            assert isinstance(found, Adapter) and found.packages and found.function


def test_every_file_of_adapters_is_shipped() -> None:
    files = {path.stem for path in (ROOT / "fastkd/conformance/adapters").glob("*.py")} - {"__init__"}
    assert files == {module for module, _, _ in SHIPPED.values()}


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHIPPED, "absent", ("absent_loss", "Absent", "absent-package"))
    (found,) = load("absent")
    assert isinstance(found, Missing) and found.name == "Absent"
    assert found.why.endswith("(pip install absent-package)")


def test_the_written_page(mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It has a row and an explanation for every case, the versions, and each outcome in its own words."""
    written = tmp_path / "page.md"
    main([str(mine), "torch", "--docs", str(written)])
    text = written.read_text()
    assert str(written) in capsys.readouterr().out
    cells = rows(text)
    for case in CASES:
        assert len(cells[case.name]) == 3 and cells[case.name][2] == case.asks
    assert cells["temperature 3"][:2] == ["-", "passes"]
    assert cells["all labels ignored"][1] == "**wrong**: loss NaN"
    assert f"torch {importlib.metadata.version('torch')}" in " ".join(text.split())
    assert "### mine" in text and "### plain torch" in text
    assert "- all labels ignored: wrong: forward\\_kl: loss NaN" in text


def test_the_page_tells_what_a_message_cannot_break() -> None:
    def loss(call: object) -> object:
        raise ValueError("a|b `c` <d> [e](f) " + "long " * 60)

    report = run(adapter_of(loss), CASES[:1])  # type: ignore[arg-type]
    text = page.markdown([report], [Missing("Absent", "needs a GPU")])
    assert r"a\|b \`c\` \<d\> \[e\](f)" in text
    assert "- Absent: needs a GPU." in text
    assert max(map(len, text.splitlines())) < 160


def test_no_adapter_at_all() -> None:
    assert table.text([], [Missing("Absent", "why")]).strip() == "Absent: why"


def test_a_table_of_many_adapters_is_split() -> None:
    reports = [run(adapter_of(right), CASES[:2])] * (page.COLUMNS + 2)
    text = page.markdown(reports, [])
    assert text.count("| case | tested |") == 2
    assert len(rows(text)["definition"]) == len(reports) + 1


def test_the_committed_page_is_of_these_cases() -> None:
    """It was written by the command, for every library that ships, with the cases and tolerances of now."""
    text = PAGE.read_text()
    cells = rows(text)
    libraries = [heading for _, heading, _ in SHIPPED.values()]
    columns = len(cells["case"]) - 1
    for case in CASES:
        assert len(cells[case.name]) == columns + 1, f"run the command again: {case.name}"
        assert cells[case.name][-1] == case.asks
    assert all(f"### {name}" in text or f"- {name}: " in text for name in libraries if "Triton" not in name)
    assert [f"{bound:g}" for bound in TOLERANCES.values()] == cells["tolerance"]
    ours = cells["case"].index("fastkd")
    outcomes = {cells[case.name][ours] for case in CASES}
    assert outcomes == {Status.PASSES.value, Status.REFUSES.value}
    for status in Status:
        assert all(number.isdigit() for number in cells[f"*{status.value}*"])
