"""Check rules about the sources: which part may import which, and what must stay in one module.

Each rule is a function from a file's name and text to its violations. A rule is therefore also tested on
snippets, to show that it finds a violation, before it is applied to the tree.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
Rule = Callable[[str, str], Iterator[str]]

# The parts that each part of fastkd must not import: imports only go inwards.
COMMANDS = ("cli", "demo", "bench", "conformance")
OUTERMOST = ("corpora", "served", "trainer", "runs", *COMMANDS)
MIDDLE = ("losses", "modules", "teachers")
# The adapters for other libraries use the losses, and nothing of fastkd but the benchmarks uses them.
ADAPTERS = "integrations"
FORBIDDEN = {
    ADAPTERS: ("divergences", "backends", "ops", *OUTERMOST),
    "cli": (ADAPTERS,),
    "demo": (ADAPTERS,),
    "runs": (ADAPTERS, *COMMANDS),
    "trainer": (ADAPTERS, "runs", *COMMANDS),
    "served": (ADAPTERS, "trainer", "runs", *COMMANDS),
    "corpora": (ADAPTERS, "served", "trainer", "runs", *COMMANDS),
    "files": (ADAPTERS, "divergences", "backends", "ops", *MIDDLE, *OUTERMOST),
    "directories": (ADAPTERS, "divergences", "backends", "ops", *MIDDLE, *OUTERMOST),
    "divergences": (ADAPTERS, "backends", "ops", *MIDDLE, *OUTERMOST),
    "backends": (ADAPTERS, "ops", *MIDDLE, *OUTERMOST),
    "ops": (ADAPTERS, *MIDDLE, *OUTERMOST),
    **{name: (ADAPTERS, *OUTERMOST) for name in MIDDLE},
}
# The modules that define a configuration, and everything of fastkd that each may import.
SETTINGS = {
    "fastkd/trainer/config.py": (
        "fastkd.kd_loss",
        "fastkd.corpora.generation.check_generation_kwargs",
        "fastkd.trainer.field_values.at_home",
        "fastkd.trainer.field_values.mapping_of",
        "fastkd.trainer.matches.parse_matches",
        "fastkd.trainer.seeds.parse_seeds",
        "fastkd.trainer.teacher_names.check_teachers",
        "fastkd.trainer.teacher_names.named",
        "fastkd.trainer.zero",
    ),
    "fastkd/trainer/field_values.py": (),
    "fastkd/trainer/matches.py": (),
    "fastkd/trainer/seeds.py": (),
    "fastkd/trainer/teacher_names.py": (),
    "fastkd/corpora/generation.py": (),
    "fastkd/trainer/zero.py": (),
}
ENVIRONMENT = ("FASTKD_BACKEND", "FASTKD_CPU_ISA")
MAX_ENVIRONMENT = 3


def part(path: str) -> str:
    """The part of fastkd with this file: ``ops`` for both ``fastkd/ops/dense.py`` and ``fastkd/ops.py``."""
    return Path(path).parts[1].removesuffix(".py")


def imported(path: str, text: str) -> Iterator[tuple[int, str]]:
    """The line and the full name of every import, with relative imports resolved and each imported name."""
    package = Path(path).parent.parts
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"


def import_direction(path: str, text: str) -> Iterator[str]:
    for line, name in imported(path, text):
        names = name.split(".")
        if names[0] == "fastkd" and len(names) > 1 and names[1] in FORBIDDEN.get(part(path), ()):
            yield f"{path}:{line} imports {name}"


def plain_settings(path: str, text: str) -> Iterator[str]:
    """A configuration can be read without models, tasks or the trainer."""
    if path not in SETTINGS:
        return
    for line, name in imported(path, text):
        if name.split(".")[0] == "fastkd" and name not in SETTINGS[path]:
            yield f"{path}:{line} imports {name}"


def teacher_texts(path: str, text: str) -> Iterator[str]:
    """Only ``TeacherSource`` knows which texts of the field ``teacher`` have a meaning of their own."""
    if path == "fastkd/trainer/teachers/source.py" or part(path) not in OUTERMOST:
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and node.value in ("base", "cache:"):
            yield f"{path}:{node.lineno} parses teacher: {node.value!r}"


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def import_cycles(texts: dict[str, str]) -> list[set[str]]:
    """The sets of modules that import each other, by imports of any kind: also those inside a function and
    those for annotations alone (``TYPE_CHECKING``).

    Importing a module runs the packages around it first. That is no import that the module asks for, so it
    is not counted.
    """
    modules = {module_name(path) for path in texts} | {"fastkd._C"}
    graph: dict[str, set[str]] = {}
    for path, text in texts.items():
        found = set()
        for _, name in imported(path, text):
            while name and name not in modules:  # an attribute of a module
                name = name.rpartition(".")[0]
            found.add(name)
        graph[module_name(path)] = found - {"", module_name(path)}

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        rest = list(graph[start])
        while rest:
            if (name := rest.pop()) not in seen:
                seen.add(name)
                rest += graph.get(name, ())
        return seen

    reach = {name: reached(name) for name in graph}
    circular = [name for name in sorted(graph) if name in reach[name]]
    cycles: list[set[str]] = []
    for name in circular:
        if not any(name in cycle for cycle in cycles):
            cycles.append({other for other in circular if other in reach[name] and name in reach[other]})
    return cycles


def native_addresses(path: str, text: str) -> Iterator[str]:
    if path == "fastkd/backends/native.py":
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and node.attr == "data_ptr":
            yield f"{path}:{node.lineno} takes a data_ptr"


def environment_reads(path: str, text: str) -> Iterator[str]:
    if path == "fastkd/_settings.py":
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb"):
            yield f"{path}:{node.lineno} reads the environment"
    for line, name in imported(path, text):
        if name in ("os.environ", "os.getenv", "os.environb"):
            yield f"{path}:{line} reads the environment"


def environment_names(path: str, text: str) -> Iterator[str]:
    constants = {str(n.value) for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Constant)}
    found = sorted(c for c in constants if re.fullmatch(r"FASTKD_[A-Z_]+", c))
    if len(found) > MAX_ENVIRONMENT:
        yield f"{path} knows {len(found)} variables: {', '.join(found)}"


def device_synchronisation(path: str, text: str) -> Iterator[str]:
    if part(path) in OUTERMOST:
        return
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner = node.func.value
        of_torch = isinstance(owner, ast.Name) and owner.id == "torch"
        if node.func.attr in ("item", "tolist") or (of_torch and node.func.attr == "equal"):
            yield f"{path}:{node.lineno} calls {node.func.attr}, which waits for the device"


def torch_in_csrc(path: str, text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(r'\s*#\s*include\s*[<"](torch|ATen|c10|caffe2)\b', line):
            yield f"{path}:{number} includes torch: {line.strip()}"


def openings(path: str, text: str) -> Iterator[str]:
    """Comments and docstrings that open without a subject, which CONTRIBUTING forbids."""
    # An inner line of a comment may begin with any word: it continues a sentence.
    mark = "#" if path.endswith(".py") else "//"
    before = ""
    for number, line in enumerate(text.splitlines(), 1):
        opens = not before.lstrip().startswith(mark) or before.rstrip().endswith(".")
        if opens and re.match(rf'\s*("""|{mark}) ?(What|Of|Such|Those)\b', line):
            yield f"{path}:{number} opens without a subject: {line.strip()}"
        before = line


def sources(folder: str, *suffixes: str) -> list[str]:
    paths = sorted(p for p in (ROOT / folder).rglob("*") if p.suffix in suffixes)
    found = [p.relative_to(ROOT).as_posix() for p in paths]
    assert found, f"no sources in {folder}"
    return found


PYTHON_RULES: list[Rule] = [
    import_direction,
    plain_settings,
    teacher_texts,
    native_addresses,
    environment_reads,
    environment_names,
    device_synchronisation,
]


@pytest.mark.parametrize("rule", PYTHON_RULES, ids=lambda rule: rule.__name__)
def test_python_sources_keep_the_rule(rule: Rule) -> None:
    broken = [v for path in sources("fastkd", ".py") for v in rule(path, (ROOT / path).read_text())]
    assert not broken, "\n".join(broken)


def test_no_import_cycle() -> None:
    assert not import_cycles({path: (ROOT / path).read_text() for path in sources("fastkd", ".py")})


def test_csrc_does_not_include_torch() -> None:
    paths = sources("csrc", ".h", ".cuh", ".cpp", ".cu")
    broken = [v for path in paths for v in torch_in_csrc(path, (ROOT / path).read_text())]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("folder", ["csrc", "fastkd", "bench", "hub", "tests"])
def test_comments_open_with_a_subject(folder: str) -> None:
    paths = sources(folder, ".py", ".h", ".cuh", ".cpp", ".cu")
    broken = [v for path in paths for v in openings(path, (ROOT / path).read_text())]
    assert not broken, "\n".join(broken)


def test_the_kernels_are_where_the_rules_look() -> None:
    """The exempt modules exist and do what only they may do; otherwise the rules would guard nothing."""
    native = (ROOT / "fastkd/backends/native.py").read_text()
    settings = (ROOT / "fastkd/_settings.py").read_text()
    assert list(native_addresses("fastkd/elsewhere.py", native))
    assert list(environment_reads("fastkd/elsewhere.py", settings))
    assert all(name in settings for name in ENVIRONMENT)
    teachers = (ROOT / "fastkd/trainer/teachers/source.py").read_text()
    assert list(teacher_texts("fastkd/runs/elsewhere.py", teachers))
    assert all((ROOT / path).exists() for path in SETTINGS)


def test_make_gpu_finds_the_files_with_cases_for_a_gpu() -> None:
    """The makefile selects files by a pattern, which must match the cases of every folder that has some."""
    command = ["make", "-n", "gpu-test", "GPU_PYTHON=true"]
    recipe = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = set(re.findall(r"tests/\S+\.py", recipe))
    assert {"tests/losses/test_parity.py", "tests/gpu/test_gpu.py", "tests/losses/test_sparse.py"} <= found
    assert "tests/docs/test_readme.py" not in found


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (import_direction, "fastkd/backends/x.py", "from fastkd.ops import dense"),
        (import_direction, "fastkd/backends/triton/x.py", "from ...losses import kd_loss"),
        (import_direction, "fastkd/backends/x.py", "from .. import ops"),
        (import_direction, "fastkd/ops/x.py", "import fastkd.losses.dense"),
        (import_direction, "fastkd/ops/x.py", "def f():\n    from fastkd import trainer"),
        (import_direction, "fastkd/losses/x.py", "from fastkd.cli import main"),
        (import_direction, "fastkd/modules.py", "from fastkd.demo.run import go"),
        (import_direction, "fastkd/runs/x.py", "from fastkd.cli import main"),
        (import_direction, "fastkd/trainer/x.py", "def f():\n    from fastkd import runs"),
        (import_direction, "fastkd/corpora/tasks/x.py", "from fastkd.trainer.config import A"),
        (import_direction, "fastkd/losses/x.py", "from fastkd.corpora import rows"),
        (import_direction, "fastkd/served/x.py", "from fastkd.trainer.config import A"),
        (import_direction, "fastkd/files.py", "from fastkd.losses import kd_loss"),
        (import_direction, "fastkd/losses/x.py", "from fastkd.conformance.oracle import kd_loss"),
        (import_direction, "fastkd/integrations/x.py", "from fastkd.ops import dense"),
        (import_direction, "fastkd/integrations/x.py", "def f():\n    from fastkd.trainer import config"),
        (import_direction, "fastkd/losses/x.py", "from fastkd.integrations.trl import use_fastkd"),
        (import_direction, "fastkd/trainer/x.py", "from fastkd.integrations import trl"),
        (plain_settings, "fastkd/trainer/config.py", "from fastkd.trainer.matching import Matching"),
        (plain_settings, "fastkd/trainer/config.py", "def f():\n    from fastkd.corpora import tasks"),
        (plain_settings, "fastkd/trainer/matches.py", "from fastkd import kd_loss"),
        (teacher_texts, "fastkd/runs/x.py", "live = args.teacher != 'base'"),
        (teacher_texts, "fastkd/cli/x.py", "args.teacher.startswith('cache:')"),
        (native_addresses, "fastkd/ops/x.py", "p = t.data_ptr()"),
        (native_addresses, "fastkd/backends/triton/x.py", "f = t.data_ptr"),
        (environment_reads, "fastkd/ops/x.py", "import os\nos.environ.get('A')"),
        (environment_reads, "fastkd/cli/x.py", "import os\nos.getenv('A')"),
        (environment_reads, "fastkd/cli/x.py", "from os import environ as e"),
        (environment_names, "fastkd/_settings.py", "a = ['FASTKD_A', 'FASTKD_B', 'FASTKD_C', 'FASTKD_D']"),
        (device_synchronisation, "fastkd/losses/x.py", "n = count.item()"),
        (device_synchronisation, "fastkd/ops/x.py", "x = t.tolist()"),
        (device_synchronisation, "fastkd/backends/x.py", "import torch\ntorch.equal(a, b)"),
        (openings, "fastkd/x.py", '"""Of the rows, the largest."""'),
        (openings, "fastkd/x.py", "# The sum.\n# What it leaves."),
        (openings, "csrc/x.h", "  // Such rows are rare."),
        (torch_in_csrc, "csrc/x.h", "#include <torch/extension.h>"),
        (torch_in_csrc, "csrc/x.h", '  # include "ATen/ATen.h"'),
        (torch_in_csrc, "csrc/x.h", "#include <c10/cuda/CUDAStream.h>"),
    ],
)
def test_each_rule_bites(rule: Rule, path: str, text: str) -> None:
    """Each rule finds the violation in a snippet that breaks it."""
    assert list(rule(path, text))


@pytest.mark.parametrize(
    "second",
    [
        "import fastkd.a",
        "def f():\n    from fastkd.a import x",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from fastkd.a import x",
        "from . import a",
    ],
)
def test_the_rule_on_cycles_bites(second: str) -> None:
    texts = {"fastkd/a.py": "from fastkd.b import y", "fastkd/b.py": second, "fastkd/c.py": "import fastkd.a"}
    assert import_cycles(texts) == [{"fastkd.a", "fastkd.b"}]
    longer = {"fastkd/a.py": "import fastkd.c", "fastkd/b.py": second, "fastkd/c.py": "import fastkd.b"}
    assert import_cycles(longer) == [{"fastkd.a", "fastkd.b", "fastkd.c"}]


def test_the_rule_on_cycles_lets_the_rest_pass() -> None:
    texts = {
        "fastkd/__init__.py": "from fastkd.a import x",
        "fastkd/a.py": "from fastkd import _C\nimport fastkd.b\nfrom fastkd.b import a",
        "fastkd/b.py": "import a, torch",
    }
    assert not import_cycles(texts)


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (
            import_direction,
            "fastkd/ops/x.py",
            "from fastkd import backends\nfrom fastkd.spec import LossSpec",
        ),
        (import_direction, "fastkd/trainer/x.py", "from fastkd.losses import kd_loss\nimport fastkd.ops"),
        (import_direction, "fastkd/backends/triton/x.py", "from ..base import Backend"),
        (import_direction, "fastkd/integrations/x.py", "from fastkd import kd_loss\nimport trl"),
        (
            import_direction,
            "fastkd/runs/x.py",
            "from fastkd import files, trainer\nimport fastkd.corpora",
        ),
        (plain_settings, "fastkd/trainer/config.py", "from fastkd import kd_loss\nimport torch"),
        (teacher_texts, "fastkd/trainer/teachers/source.py", "a = 'base', 'cache:'"),
        (teacher_texts, "fastkd/runs/x.py", "a = {'teacher': 'cache:DIR'}"),
        (native_addresses, "fastkd/backends/native.py", "t.data_ptr()"),
        (native_addresses, "fastkd/ops/x.py", '"""Never calls data_ptr()."""'),
        (environment_reads, "fastkd/_settings.py", "import os\nos.environ.get('A')"),
        (device_synchronisation, "fastkd/trainer/x.py", "loss.item()"),
        (device_synchronisation, "fastkd/ops/x.py", "x.equal_to(y)\nfor k, v in d.items(): pass"),
        (openings, "csrc/x.h", "// It is the sum of\n// Those rows that are read."),
        (torch_in_csrc, "csrc/x.h", "#include <cmath>\n// no torch/extension.h here"),
    ],
)
def test_each_rule_lets_the_rest_pass(rule: Rule, path: str, text: str) -> None:
    assert not list(rule(path, text))
