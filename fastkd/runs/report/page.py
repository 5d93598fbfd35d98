"""Makes ``report.html``, one file that needs nothing but a browser."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

import yaml

from fastkd.runs.report.charts import figure
from fastkd.runs.report.curves import NAMES, ROLES, charts, series
from fastkd.runs.report.notes import notes
from fastkd.runs.report.seed_tables import section as seeds
from fastkd.runs.report.seeds import shown
from fastkd.runs.report.tables import (
    COLUMNS,
    WRITING,
    Column,
    Rows,
    cells,
    parts,
    rows,
    writing_rows,
)
from fastkd.runs.report.texts import mistakes, samples
from fastkd.runs.report.verdict import verdict

# With more classes than this a confusion table is unreadable.
MOST_CLASSES = 20
TITLES = {"train": "Training", "distill": "Distillation", "evaluate": "Evaluation", "demo": "Demo"}


def page(report: dict[str, Any]) -> str:
    """The report as an HTML document: no script, font or image is loaded from anywhere.

    Args:
        report: the content of the JSON file. Everything in it is treated as text, never as HTML.
    """
    style = (files(__package__) / "page.css").read_text("utf-8")
    script = (files(__package__) / "page.js").read_text("utf-8")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
    title = TITLES.get(str(report.get("command")), "Report")
    subject = (report.get("configuration") or {}).get("output_dir")
    sections = [
        _section("Warnings", _warnings(report)),
        _section("Results", _results(shown(report))),
        _section("Seeds", seeds(report, _table), "seeds"),
        _section("Written answers", _writing(shown(report))),
        _section("Classes", _classes(report)),
        _section("Curves", "".join(map(figure, charts(report))), "curves"),
        _section("Misclassified texts", mistakes(report.get("mistakes") or [])),
        _section("Sample answers", samples(report.get("samples") or [])),
        _section("Time and memory", _cost(report)),
        _section("Settings that differ from the defaults", _settings(report)),
        _section("Versions and machine", _versions(report)),
        _section("Repeat this run", _repeat(report), "repeat"),
    ]
    name = f"<span>{escape(str(subject))}</span>" if subject else ""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{escape(title)}{escape(f' of {subject}' if subject else '')} - fastkd</title>"
        f"<style>{style}</style></head>\n<body><main>\n"
        f'<header><p class="kind">fastkd <b>{escape(title.lower())}</b>{name}</p>'
        f"<h1>{escape(verdict(report))}</h1>{_when(report)}</header>\n"
        + "\n".join(filter(None, sections))
        + f"\n</main><script>{script}</script></body></html>\n"
    )


def _section(title: str, body: str, kind: str = "") -> str:
    if not body:
        return ""
    name = title.lower().replace(" ", "-")
    extra = f' class="{kind}"' if kind else ""
    return f'<section id="{name}"><h2>{escape(title)}</h2><div{extra}>{body}</div></section>'


def _when(report: dict[str, Any]) -> str:
    facts = (
        [str(report["written"]).replace("T", " ").replace("+00:00", " UTC")] if "written" in report else []
    )
    machine = report.get("machine") or {}
    if machine:
        facts += [str(machine.get("device")), f"{machine.get('backend')} backend"]
    return f'<p class="when">{escape(" · ".join(facts))}</p>' if facts else ""


def _warnings(report: dict[str, Any]) -> str:
    found = report.get("warnings") or []
    return (
        f'<ul class="notes">{"".join(f"<li>{escape(str(one))}</li>" for one in found)}</ul>' if found else ""
    )


def _results(report: dict[str, Any]) -> str:
    said = "".join(f"<li>{escape(note)}</li>" for note in notes(report))
    return _table(rows(report), COLUMNS) + (f'<ul class="notes">{said}</ul>' if said else "")


def _writing(report: dict[str, Any]) -> str:
    found = writing_rows(report)
    if not found:
        return ""
    notes = [str(note) for note in (report.get("signatures") or {}).values()]
    quoted = "".join(f"<li><code>{escape(note)}</code></li>" for note in notes)
    return _table(found, WRITING) + (f'<ul class="notes">{quoted}</ul>' if quoted else "")


def _table(rows: Rows, columns: Sequence[Column]) -> str:
    if not rows:
        return ""
    head, *body = cells(rows, columns)
    if len(head) == 1:
        return ""
    made = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    lines = []
    for name, *values in body:
        model = name.partition(",")[0]
        label = f'<i class="{ROLES.get(model, "other")}"></i>{escape(name)}'
        lines.append(
            f'<tr><th scope="row">{label}</th>' + "".join(f"<td>{escape(v)}</td>" for v in values) + "</tr>"
        )
    return (
        f'<div class="wide"><table class="numbers"><thead><tr>{made}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _classes(report: dict[str, Any]) -> str:
    known = {name: part["classes"] for name, part in parts(report).items() if part.get("classes")}
    if not known:
        return ""
    first = next(iter(known.values()))["classes"]
    head = "".join(f'<th scope="col">{escape(NAMES[name])}</th>' for name in known)
    body = []
    for label in first:
        values = [scores["f1"].get(label) for scores in known.values()]
        shown = "".join(f"<td>{'-' if value is None else f'{value:.3f}'}</td>" for value in values)
        body.append(f'<tr><th scope="row">{escape(str(label))}</th>{shown}</tr>')
    made = (
        '<div class="wide"><table class="numbers"><thead><tr><th scope="col">F1 of the class</th>'
        f"{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )
    if len(first) <= MOST_CLASSES:
        made += "".join(_confusion(name, part) for name, part in known.items() if "confusion" in part)
    return made


def _confusion(name: str, scores: dict[str, Any]) -> str:
    labels = scores["classes"]
    head = "".join(f'<th scope="col">{escape(str(label))}</th>' for label in labels)
    body = []
    for label, counts in zip(labels, scores["confusion"], strict=True):
        total = max(1, sum(counts))
        shown = "".join(f'<td style="--share:{count / total:.2f}">{count}</td>' for count in counts)
        body.append(f'<tr><th scope="row">{escape(str(label))}</th>{shown}</tr>')
    return (
        f'<h3><i class="{ROLES[name]}"></i>Confusion matrix: {escape(NAMES[name])}</h3>'
        '<div class="wide"><table class="confusion"><thead><tr><th scope="col">label \\ predicted</th>'
        f"{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _cost(report: dict[str, Any]) -> str:
    made = []
    for name, part in parts(report).items():
        facts = []
        if part.get("steps") is not None:
            facts.append(("steps", f"{part['steps']:,}"))
        if times := series(part.get("history") or [], "train_runtime"):
            facts.append(("training", _duration(times[-1][1])))
        if part.get("seconds_per_step") is not None:
            facts.append(("a step, median", f"{part['seconds_per_step']:.3f} s"))
        if part.get("seconds") is not None:
            facts.append(("evaluation", _duration(part["seconds"])))
        if part.get("peak_memory_mb") is not None:
            facts.append(("peak memory", f"{part['peak_memory_mb']:,.0f} MB"))
        if part.get("fused_head") is not None:
            facts.append(("fused head", "yes" if part["fused_head"] else "no"))
        if facts:
            shown = "".join(f"<dt>{escape(what)}</dt><dd>{escape(value)}</dd>" for what, value in facts)
            made.append(
                f'<div><h3><i class="{ROLES[name]}"></i>{escape(NAMES[name])}</h3><dl>{shown}</dl></div>'
            )
    return f'<div class="facts">{"".join(made)}</div>' if made else ""


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _settings(report: dict[str, Any]) -> str:
    changed = report.get("settings") or {}
    if not changed:
        return ""
    defaults = report.get("defaults") or {}
    body = "".join(
        f'<tr><th scope="row">{escape(str(name))}</th><td>{escape(_value(value))}</td>'
        f"<td>{escape(_value(defaults.get(name)))}</td></tr>"
        for name, value in changed.items()
    )
    return (
        '<div class="wide"><table class="settings"><thead><tr><th scope="col">field</th>'
        '<th scope="col">here</th><th scope="col">default</th></tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _value(value: Any) -> str:
    if value is None:
        return "unset"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _versions(report: dict[str, Any]) -> str:
    known = {**(report.get("versions") or {}), **(report.get("machine") or {})}
    shown = "".join(
        f"<div><dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd></div>"
        for name, value in known.items()
    )
    return f'<dl class="versions">{shown}</dl>' if shown else ""


def _repeat(report: dict[str, Any]) -> str:
    made = ""
    if report.get("repeat"):
        made += _block("The command", str(report["repeat"]), "")
    if report.get("configuration"):
        text = yaml.safe_dump(report["configuration"], sort_keys=False, allow_unicode=True)
        data = base64.b64encode(text.encode()).decode()
        link = f'<a download="config.yaml" href="data:text/yaml;base64,{data}">Save config.yaml</a>'
        made += _block("The configuration, whole", text, link)
    return made


def _block(title: str, text: str, link: str) -> str:
    return (
        f'<div class="block"><div class="bar"><h3>{escape(title)}</h3>{link}'
        f'<button type="button" class="copy" hidden>Copy</button></div>'
        f'<pre tabindex="0"><code>{escape(text)}</code></pre></div>'
    )
