"""Run the recipes of docs/trainer.md in order, as a reader types them; check every configuration in docs/."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from support.recipes import BLOCK, DOCS, SHORT, commands, save_model, short, write_configurations
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from fastkd.cli import main
from fastkd.cli.settings import read_settings

ROOT = Path(__file__).parents[2]
ASK = re.search(
    r"^```python notest\n# ask\.py\n(.*?)^```$", (DOCS / "trainer.md").read_text("utf-8"), re.M | re.S
)
# Has the parts of vLLM that the page's ask.py calls, so that the script runs where vLLM is not installed.
VLLM = """
from types import SimpleNamespace

import torch
from transformers import AutoModelForCausalLM


class SamplingParams:
    def __init__(self, max_tokens, prompt_logprobs):
        self.prompt_logprobs = prompt_logprobs


class LLM:
    def __init__(self, model, max_logprobs):
        self.model = AutoModelForCausalLM.from_pretrained(model)

    def generate(self, prompts, asked):
        for prompt in prompts:
            ids = prompt["prompt_token_ids"]
            with torch.no_grad():
                logprobs = self.model(torch.tensor([ids])).logits[0].log_softmax(-1)
            known = [None]
            for token, row in zip(ids[1:], logprobs):
                columns = dict.fromkeys([*row.topk(asked.prompt_logprobs).indices.tolist(), token])
                known.append({i: SimpleNamespace(logprob=float(row[i])) for i in columns})
            yield SimpleNamespace(prompt_token_ids=ids, prompt_logprobs=known)
"""
COMMANDS = commands("trainer.md")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the files that the page assumes: a student, a teacher, some chats, and its YAML files."""
    folder = tmp_path_factory.mktemp("recipes")
    for name, hidden, layers in (("teacher", 24, 2), ("other-teacher", 32, 1), ("student", 16, 1)):
        save_model(folder / name, hidden, layers)
    chats = [{"prompt": f"{i} plus {i}? ", "completion": str(2 * i)} for i in range(24)]
    (folder / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    routed = [{**chat, "teacher": ("math", "chat")[i % 2]} for i, chat in enumerate(chats)]
    (folder / "routed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in routed))
    with_logprobs(folder, chats)
    write_configurations("trainer.md", folder)
    assert ASK is not None
    (folder / "ask.py").write_text(ASK[1])
    (folder / "vllm.py").write_text(VLLM)
    before, threads = Path.cwd(), torch.get_num_threads()
    os.chdir(folder)
    torch.set_num_threads(1)
    yield folder
    torch.set_num_threads(threads)
    os.chdir(before)


def with_logprobs(folder: Path, chats: list[dict[str, str]]) -> None:
    """Chats with log-probabilities as axolotl reads them, and tokens with those of DistillKit."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "student")
    lines, packed = [], []
    for chat in chats:
        answer = [*tokenizer(chat["completion"])["input_ids"], 0]
        entries = [[{"token": f"token_id:{x}", "logprob": -0.5}] for x in answer]
        lines.append(json.dumps({**chat, "logprobs": entries}) + "\n")
        ids = [*tokenizer(chat["prompt"])["input_ids"], *answer]
        packed.append(
            {"input_ids": ids, "token_ids": [[x] for x in ids[1:]], "top_values": [[-0.5]] * len(ids[1:])}
        )
    (folder / "with-logprobs.jsonl").write_text("".join(lines))
    (folder / "logits").mkdir()
    pq.write_table(pa.Table.from_pylist(packed), folder / "logits" / "data_0.parquet")


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith(("fastkd ", "python "))])
def test_recipe(workplace: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    program, *arguments = shlex.split(command, comments=True)
    if program == "python":
        subprocess.run([sys.executable, *arguments], cwd=workplace, check=True, timeout=300)
        return
    status = main([*arguments, *short(arguments[0])])
    printed = capsys.readouterr()
    # The doctor may report findings about a teacher that was never trained.
    assert status == 0 or (arguments[0] == "doctor" and status == 1), printed.err
    options = dict(itertools.pairwise(arguments))
    folder = Path(options.get("--output-dir", "out-features" if "features.yaml" in command else "out"))
    if "--seeds" in options:
        assert {"report.json", "report.html"} <= {path.name for path in folder.iterdir()}
        folder /= "seed-42"
    if arguments[0] == "distill":
        assert {
            "report.json",
            "report.html",
            "config.json" if "lora" not in command else "adapter_config.json",
        } <= {path.name for path in folder.iterdir()}
        if "lora" not in command:
            AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("torchrun ")])
def test_recipe_of_many_processes(workplace: Path, command: str) -> None:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    launcher = [sys.executable, "-m", "torch.distributed.run", *shlex.split(command)[1:], *SHORT]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(
        launcher, cwd=workplace, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert (workplace / "out-processes" / "report.json").exists()


def test_every_command_has_its_recipe() -> None:
    from fastkd.cli import COMMANDS as ALL

    used = {shlex.split(command)[1] for command in COMMANDS if command.startswith("fastkd ")}
    assert set(ALL) - {"demo", "env", "bench", "train"} <= used


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_every_configuration_in_the_documentation_is_valid(page: Path, tmp_path: Path) -> None:
    for kind, text in BLOCK.findall(page.read_text("utf-8")):
        if kind != "yaml":
            continue
        fields: dict[str, Any] = yaml.safe_load(text)
        # bf16 needs a GPU, and would be refused on other machines.
        fields.pop("bf16", None)
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(fields))
        read_settings([str(path), "--use-cpu"])
