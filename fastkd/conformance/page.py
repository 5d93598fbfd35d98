"""Reports as the page ``docs/conformance.md``."""

from __future__ import annotations

import importlib.metadata
import platform
import textwrap
from collections.abc import Iterator, Sequence

import torch

import fastkd
from fastkd.conformance import table
from fastkd.conformance.adapter import DENOMINATORS, T_SQUARED, Adapter
from fastkd.conformance.cases import CASES
from fastkd.conformance.loading import Missing
from fastkd.conformance.measures import TOLERANCES
from fastkd.conformance.runner import Report, Status

WIDTH = 108
COLUMNS = 6  # adapters in one table

HEAD = """
# Conformance of distillation losses

`python -m fastkd.conformance --docs docs/conformance.md` wrote this page. It runs distillation losses through
the cases that this field gets wrong, and compares each loss and its gradients with an oracle in float64
(`fastkd/conformance/oracle.py`). A loss of your own takes part with [ten lines](#an-adapter-for-your-loss).
"""

RULES = """
## How to read the table

- *passes*: every call of the case is within the tolerance of its dtype.
- **wrong**: a result is not, though the loss returned it without a word; the number is the relative error of
  the worst call: of its gradient, or of the loss if only that is wrong.
- *refuses*: the call raises. That is safe, and often right.
- `-`: the interface cannot express the case, because it has no such argument. That is no error.

A loss is judged by its own definition. Where libraries differ (the factor T^2, what a mean is over, whether
the teacher's entropy is part of the loss, whether a teacher gets a gradient), the adapter states what the
library documents, the oracle computes that, and the difference is named [below](#the-losses). Two cases ask
for more than most definitions say: with all labels ignored the loss has to be 0, since one such micro-batch
would otherwise ruin the weights; and what rows of ignored tokens hold has to make no difference.

The error of a loss is relative to its value, that of a gradient to its norm. With cross-entropy the
gradient's entries at the labels count by themselves, as they would hide all others. The tolerance is that of
the coarsest dtype among the inputs, and at least that of float32 for a loss that claims no more digits:
"""

ADAPTER = """
## An adapter for your loss

An adapter is a Python file with a tuple named `adapters`. It states how a loss is called and what it claims
to compute. The example below is complete; `python -m fastkd.conformance my_loss.py` prints its table, and
exits with 1 if the loss is wrong in a case.

```python
import torch.nn.functional as F
from fastkd.conformance import Adapter, Call, run


def loss(call: Call):
    call = call.flat  # (tokens, V) for losses that have no batch dimension
    q, p = F.log_softmax(call.student / call.temperature, -1), F.softmax(call.teacher / call.temperature, -1)
    return F.kl_div(q, p, reduction=call.reduction)


adapters = (
    Adapter(
        "mine",
        loss,
        function="my_package.my_loss",
        reductions={"batchmean": "tokens"},
        takes=("temperature",),
        t_squared="never",
        teacher_gradient=True,
    ),
)

report = run(adapters[0])
print({verdict.case.name: verdict.status.value for verdict in report.verdicts})
```

`Call` (`fastkd/conformance/adapter.py`) documents what a case passes, and `Adapter` what can be stated.
`takes` lists the arguments that the loss has; a case that needs another one is not asked.
"""


def markdown(reports: Sequence[Report], missing: Sequence[Missing], device: str = "cpu") -> str:
    """The whole page."""
    parts = [HEAD, _versions(reports, device), _tables(reports), RULES, _tolerances(), _cases()]
    parts += ["## The losses", *(_loss(report) for report in reports), _missing(missing), ADAPTER]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _versions(reports: Sequence[Report], device: str) -> str:
    packages = dict.fromkeys(package for report in reports for package in report.adapter.packages)
    found = {package: importlib.metadata.version(package) for package in packages if package != "fastkd"}
    found = {"fastkd": fastkd.__version__, "torch": torch.__version__} | found
    listed = ", ".join(f"{name} {version}" for name, version in found.items())
    where = "a CPU" if device == "cpu" else torch.cuda.get_device_name()
    return _filled(
        f"Versions: Python {platform.python_version()}, {listed}. Every call ran on {where}, with the same "
        "random inputs for all."
    )


def _filled(text: str, **options: str) -> str:
    return textwrap.fill(
        text,
        WIDTH,
        break_long_words=False,
        break_on_hyphens=False,
        **options,  # type: ignore[arg-type]
    )


def _tables(reports: Sequence[Report]) -> str:
    groups = [reports[i : i + COLUMNS] for i in range(0, len(reports), COLUMNS)]
    return "\n\n".join("\n".join(_rows(group)) for group in groups)


def _rows(reports: Sequence[Report]) -> Iterator[str]:
    yield _row("case", *(report.adapter.name for report in reports))
    yield _row(*["---"] * (len(reports) + 1))
    for index, verdict in enumerate(reports[0].verdicts):
        cells = (_cell(table.cell(report.verdicts[index])) for report in reports)
        yield _row(verdict.case.name, *cells)
    for status in Status:
        yield _row(f"*{status.value}*", *(str(report.count(status)) for report in reports))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    status, _, error = text.partition(":")
    return f"**{status}**{f':{error}' if error else ''}" if status == Status.WRONG.value else text


def _tolerances() -> str:
    dtypes = [str(dtype).removeprefix("torch.") for dtype in TOLERANCES]
    rows = [_row("inputs", *dtypes), _row(*["---"] * (len(dtypes) + 1))]
    return "\n".join([*rows, _row("tolerance", *(f"{bound:g}" for bound in TOLERANCES.values()))])


def _cases() -> str:
    rows = [_row("case", "what is asked"), _row("---", "---")]
    return "\n".join(["### The cases", "", *rows, *(_row(case.name, case.asks) for case in CASES)])


def _loss(report: Report) -> str:
    adapter = report.adapter
    about = [f"`{adapter.function}`: {table.summary(report)}.", *_definition(adapter), *adapter.notes]
    lines = [f"### {adapter.name}", "", _filled(" ".join(about))]
    found = [(name, said) for name, said in table.details(report) if not said.startswith(Status.CANNOT.value)]
    if found:
        lines.append("")
    for name, said in found:
        lines.append(_filled(f"- {name}: {_escaped(said)}", subsequent_indent="  "))
    return "\n".join(lines)


def _escaped(text: str) -> str:
    """Text of a message in which Markdown finds no markup."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>$|" else c for c in text)


def _definition(adapter: Adapter) -> Iterator[str]:
    """Sentences on what the loss claims to compute."""
    entropy = " plus the teacher's entropy" if adapter.teacher_entropy else ""
    names = ", ".join(f"`{name}`" for name in adapter.divergences)
    yield f"Definition: {names}{entropy}, {T_SQUARED[adapter.t_squared]}."
    means = "; ".join(f"`{name}`, {DENOMINATORS[kind]}" for name, kind in adapter.reductions.items())
    yield f"Reductions: {means}."
    yield f"The teacher gets {'its' if adapter.teacher_gradient else 'no'} gradient."
    if adapter.in_float32:
        yield "Its loss has the digits of float32, also from float64."
    if adapter.from_hidden:
        sides = " and ".join(adapter.from_hidden)
        yield f"It takes hidden states of the {sides}: the logits, in front of an identity matrix."


def _missing(missing: Sequence[Missing]) -> str:
    if not missing:
        return ""
    absent = (_filled(f"- {_escaped(f'{x.name}: {x.why}')}.", subsequent_indent="  ") for x in missing)
    return "\n".join(["### Not run here", "", *absent])
