"""Run the commands of docs/choosing.md, and compare its numbers with those of the page that it names."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.recipes import DOCS, byte_tokenizer, commands, save_model, short, write_configurations
from transformers import LlamaConfig, LlamaForSequenceClassification

from fastkd.cli import main
from fastkd.cli.fields_read import refuse_foreign

PAGE = (DOCS / "choosing.md").read_text("utf-8")
COMMANDS = commands("choosing.md")
# A served teacher needs a server.
RUN_HERE = [command for command in COMMANDS if "served.yaml" not in command]


def save_classifier(folder: Path, layers: int) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=2, pad_token_id=0, id2label={0: "even", 1: "odd"},
    )  # fmt: skip
    torch.manual_seed(layers)
    LlamaForSequenceClassification(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the files that the page assumes."""
    folder = tmp_path_factory.mktemp("choosing")
    for name, layers in (("teacher", 8), ("other-teacher", 1)):
        save_model(folder / name, 24, layers)
    for name, layers in (("classifier", 2), ("small-classifier", 1)):
        save_classifier(folder / name, layers)
    sums = [{"prompt": f"{i} plus {i}? ", "completion": str(2 * i)} for i in range(24)]
    parities = [{"text": str(i), "label": ("even", "odd")[i % 2]} for i in range(24)]
    files = {
        "chats": sums,
        "held-out": sums[:4],
        "routed": [{**row, "teacher": ("math", "chat")[i % 2]} for i, row in enumerate(sums)],
        "labelled": parities[:8],
        "unlabelled": [{"text": row["text"]} for row in parities[8:]],
        "held-out-texts": parities[:4],
    }
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_configurations("choosing.md", folder)
    before, threads = Path.cwd(), torch.get_num_threads()
    os.chdir(folder)
    torch.set_num_threads(1)
    fresh = "new fresh --architecture llama --train-file chats.jsonl --vocab-size 300"
    assert main(shlex.split(f"{fresh} --layers 1 --hidden-size 16")) == 0
    # The page makes the student after its first command; it makes the same one again.
    assert main(shlex.split("new student config.yaml --layers 6")) == 0
    yield folder
    torch.set_num_threads(threads)
    os.chdir(before)


@pytest.mark.slow
@pytest.mark.parametrize("command", RUN_HERE)
def test_command(workplace: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, *arguments = shlex.split(command)
    if arguments[0] == "estimate":
        arguments.append("--no-time")
    status = main([*arguments, *short(arguments[0])])
    # The doctor may report findings about a teacher that was never trained.
    assert status == 0 or (arguments[0] == "doctor" and status == 1), capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_read_their_options(command: str) -> None:
    _, name, *arguments = shlex.split(command)
    refuse_foreign(name, arguments)


def test_numbers_are_those_of_the_results() -> None:
    """A decimal number in a paragraph that leads to a section of the results is in that section."""
    results = re.split(r"^## ", (DOCS / "results.md").read_text("utf-8"), flags=re.MULTILINE)
    sections = {part.partition("\n")[0].lower().replace(" ", "-"): part for part in results}
    checked = 0
    for paragraph in PAGE.split("\n\n"):
        named = re.findall(r"results\.md#([\w-]+)", paragraph)
        if named and not paragraph.startswith("|"):
            text = "".join(sections[name] for name in named)
            numbers = re.findall(r"\d+\.\d+", paragraph)
            assert [number for number in numbers if number not in text] == []
            checked += len(numbers)
    assert checked > 20
