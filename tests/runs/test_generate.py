"""Test sequence-level distillation: the teacher's answers as a data set."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from datasets import Dataset
from support import chats, stored
from support.stored import Crash, bart, crash_at, files, prompts, redigested, settings
from support.tiny import llama

from fastkd.cli import main
from fastkd.corpora.decode import decode
from fastkd.corpora.prompts import prompt_ids
from fastkd.corpora.rows import load_rows
from fastkd.corpora.store import Manifest, open_generated
from fastkd.corpora.tasks import TASKS
from fastkd.runs.generate import generate_rows
from fastkd.runs.scores import sentence_scorer


def options(**fields: Any) -> Any:
    fixed = {"max_length": 24, "max_completion_length": 6, "num_beams": 3, "per_device_eval_batch_size": 4}
    return settings(**{**fixed, **fields})


def teacher() -> Any:
    return llama(1, hidden=24)


def write(folder: Path, rows: Any = None, model: Any = None, **fields: Any) -> Dataset:
    rows = prompts(20) if rows is None else rows
    rows = rows if isinstance(rows, Dataset) else Dataset.from_list(rows)
    generate_rows(model or teacher(), stored.tokenizer(), rows, folder, options(**fields), shard_rows=6)
    return open_generated("train_file", folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a generated set of the mode; each is made only once."""
    done: dict[str, Path] = {}

    def make(mode: str) -> Path:
        if mode not in done:
            done[mode] = tmp_path_factory.mktemp(mode)
            write(done[mode], generation_mode=mode)
        return done[mode]

    return make


def test_best_beams_with_everything_else_kept(made: Callable[[str], Path]) -> None:
    """Mode 'beam' writes the best beam as the completion and keeps the other columns."""
    found, given = open_generated("train_file", made("beam")), prompts(20)
    assert found["prompt"][:] == [row["prompt"] for row in given]
    assert found["tag"][:] == [row["tag"] for row in given]
    assert found["reference"][:] == [row["completion"] for row in given]
    tokens = stored.tokenizer()
    asked = [prompt_ids(row["prompt"], tokens) for row in given]
    # Prompts are decoded one at a time here; batches must give the same answers.
    best = dict(
        decode(teacher(), TASKS["causal_lm"], tokens, asked, num_beams=3, max_new_tokens=6, batch_size=1)
    )
    assert found["completion"][:] == [best[i][0].text for i in range(20)]
    assert found["completion"][:] != found["reference"][:]


@pytest.mark.parametrize("metric", ["bleu", "chrf", "rougeL"])
def test_interpolation_chooses_the_beam_nearest_to_the_reference(tmp_path: Path, metric: str) -> None:
    found = write(tmp_path, generation_mode="interpolate", interpolate_metric=metric)
    score, tokens = sentence_scorer(metric, found["reference"][:]), stored.tokenizer()
    asked = [prompt_ids(row["prompt"], tokens) for row in prompts(20)]
    beams = decode(
        teacher(), TASKS["causal_lm"], tokens, asked, num_beams=3, num_return_sequences=3, max_new_tokens=6
    )
    moved = 0
    for number, answers in beams:
        reference, chosen = found["reference"][number], found["completion"][number]
        scores = [score(answer.text, reference) for answer in answers]
        assert score(chosen, reference) == max(scores)
        assert chosen == answers[scores.index(max(scores))].text  # the likeliest of equal scores
        moved += chosen != answers[0].text
    if metric == "chrf":  # it compares letters; a random model writes none of the reference's words
        assert moved


def test_sentence_scores() -> None:
    near, far = "the cat sat on a mat", "dogs bark"
    for metric in ("bleu", "chrf", "rougeL"):
        score = sentence_scorer(metric, [near])
        assert score(near, near) > score("the cat sat on mats", near) > score(far, near)
    # Short sentences have no 4-grams, but do not all score 0.
    assert sentence_scorer("bleu", ["ab cd"])("ab cd", "ab cd") > 99


def test_samples_depend_on_the_seed_and_the_temperature(made: Callable[[str], Path], tmp_path: Path) -> None:
    first = open_generated("train_file", made("sample"))["completion"][:]
    again = write(tmp_path / "a", generation_mode="sample")["completion"][:]
    other = write(tmp_path / "b", generation_mode="sample", seed=1)["completion"][:]
    cold = write(tmp_path / "c", generation_mode="sample", sampling_temperature=1e-3)["completion"][:]
    greedy = write(tmp_path / "d", generation_mode="beam", num_beams=1)["completion"][:]
    assert first == again != other
    assert cold == greedy != first
    # Equal prompts have independent draws, also in different shards.
    same = write(tmp_path / "e", [prompts(1)[0]] * 20, generation_mode="sample")["completion"][:]
    assert len(set(same)) > 10


@pytest.mark.parametrize("mode", ["beam", "sample"])
def test_resumes_after_a_crash_at_any_write(
    made: Callable[[str], Path], mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = files(made(mode))
    moment, crashed = 2, 0
    while True:
        folder = tmp_path / str(moment)
        try:
            with crash_at(moment, monkeypatch):
                write(folder, generation_mode=mode)
            break
        except Crash:
            crashed += 1
        if (folder / "manifest.json").exists() and not Manifest.read(folder).complete:
            with pytest.raises(ValueError, match="of 20 rows: run the same fastkd generate again"):
                open_generated("train_file", folder)
        write(folder, generation_mode=mode)
        assert files(folder) == expected
        moment += 9
    assert crashed >= 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_beams": 2}, r"other settings, num_beams \(3, now 2\):"),
        (
            {"generation_mode": "sample"},
            r"settings, generation_mode \(beam, now sample\), num_beams \(3, now unset\), "
            r"sampling_temperature \(unset, now 1.0\), seed",
        ),
        ({"max_completion_length": 5}, r"other settings, max_completion_length \(\d+, now 5\):"),
        ({"model": llama(2, hidden=24)}, "other settings, teacher_weights:"),
        ({"rows": prompts(19)}, "other settings, data:"),
        ({"rows": prompts(20)[::-1]}, "other settings, data:"),
    ],
)
def test_does_not_resume_with_other_settings(
    made: Callable[[str], Path], change: dict[str, Any], message: str
) -> None:
    before = files(made("beam"))
    with pytest.raises(ValueError, match=message):
        write(made("beam"), **change)
    assert files(made("beam")) == before


def test_provenance(made: Callable[[str], Path]) -> None:
    content = json.loads((made("interpolate") / "manifest.json").read_text())
    assert content["kind"] == "generated" and content["rows"] == 20
    source = content["made_from"]
    assert source["generation_mode"] == "interpolate" and source["num_beams"] == 3
    assert source["interpolate_metric"] == "bleu"
    for name in ("teacher_weights", "tokenizer", "data"):
        assert len(source[name]) == 64
    assert {"torch", "transformers", "fastkd"} <= set(content["notes"]["versions"])
    hashes = []
    for shard in content["shards"]:
        metadata = pq.read_schema(made("interpolate") / shard["name"]).metadata
        hashes += json.loads(metadata[b"fastkd"])["input_rows"]
    assert len(set(hashes)) == 20 and all(len(row) == 32 for row in hashes)


def test_conversations_keep_their_turns(tmp_path: Path) -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": "ab"},
                {"role": "assistant", "content": "cd"},
                {"role": "user", "content": f"e{letter}"},
                {"role": "assistant", "content": "gh"},
            ]
        }
        for letter in "abcdefg"
    ]
    found = write(tmp_path, rows)
    for row, given in zip(found, rows, strict=True):
        assert row["messages"][:3] == given["messages"][:3]
        assert row["messages"][3]["role"] == "assistant" and row["messages"][3]["content"] != "gh"
        assert len(row["messages"]) == 4 and row["reference"] == "gh"


def test_conversations_keep_thinking_and_calls(tmp_path: Path) -> None:
    """The content is all that the teacher wrote, markers included; it replaces the data's calls."""
    opened = chats.PLAIN.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    tokenizer = chats.tokenizer(opened)
    model, ids = llama(vocab=len(tokenizer), positions=128), tokenizer("2</think>four</s>")["input_ids"]
    count = len(tokenizer("<|im_start|>user\na?<|im_end|>\n<|im_start|>assistant\n<think>\n")["input_ids"])
    model.model.embed_tokens.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    seen: list[int] = []
    model.lm_head.register_forward_hook(
        lambda _, __, out: out.index_fill(-1, torch.tensor([ids[min(len(seen) - 1, len(ids) - 1)]]), 1e4)
    )
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    said = {"role": "assistant", "content": None, "tool_calls": [call]}
    rows = Dataset.from_list([{"messages": [*chats.talk("a?"), said]}])
    args = options(max_length=64, max_completion_length=20, num_beams=1)
    generate_rows(model, tokenizer, rows, tmp_path, args)
    (row,) = open_generated("train_file", tmp_path)
    assert seen[0] == count
    assert row["messages"][1]["content"] == "<think>\n2</think>four"
    assert not row["messages"][1]["tool_calls"]
    (trained,) = TASKS["causal_lm"].tokenize(Dataset.from_list([row]), tokenizer, args, "train_file")
    assert chats.said(tokenizer, trained) == "2</think>four<|im_end|>\n"


def test_translations(tmp_path: Path) -> None:
    rows = [{"source": row["prompt"], "target": row["completion"]} for row in prompts(10)]
    found = write(tmp_path, rows, bart(), task="seq2seq", max_target_length=4)
    assert found["reference"][:] == [row["target"] for row in rows]
    assert found["target"][:] != found["reference"][:]
    assert max(len(text) for text in found["target"]) <= 4


def test_only_interpolation_needs_more_than_prompts(tmp_path: Path) -> None:
    """Rows need references only in mode 'interpolate', which chooses the answer nearest to them."""
    rows = [{"prompt": row["prompt"]} for row in prompts(10)]
    found = write(tmp_path / "a", rows)
    assert found.column_names == ["prompt", "completion"]
    assert found["completion"][:] == write(tmp_path / "b", prompts(10))["completion"][:]
    with pytest.raises(ValueError, match="has the columns prompt and no answers"):
        write(tmp_path / "c", rows, generation_mode="interpolate")


def test_rows_without_an_answer_are_left_out(tmp_path: Path) -> None:
    rows = prompts(8)
    rows[2]["completion"] = ""
    assert write(tmp_path, rows)["tag"][:] == [f"row {i}" for i in (0, 1, 3, 4, 5, 6, 7)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "ab"}], "has no prompts: it needs the columns prompt.completion"),
        ([{"body": "ab"}], "has the columns body, but causal_lm reads"),
        ([{"prompt": "ab", "completion": "c", "reference": "d"}], "has a column 'reference' already"),
        ([{"prompt": "ab", "completion": ""}], "holds no prompt with an answer"),
    ],
)
def test_data_that_cannot_be_answered(tmp_path: Path, rows: list[dict[str, str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write(tmp_path, rows)


def test_no_damaged_byte_is_read(tmp_path: Path) -> None:
    write(tmp_path)
    for path in sorted(tmp_path.glob("*.parquet")):
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 3] ^= 1
        for content in (bytes(flipped), whole[:-1], None):
            path.unlink()
            if content is not None:
                path.write_bytes(content)
            with pytest.raises(ValueError, match=f"train_file: .*{path.name} is missing, cut or altered"):
                open_generated("train_file", tmp_path)
            path.write_bytes(whole)
    redigested(tmp_path, lambda content: content["shards"][0].update(name="../x/00000.parquet"))
    with pytest.raises(ValueError, match="eval_file: .*is not a file of this directory"):
        open_generated("eval_file", tmp_path)


def test_directories_that_are_no_generated_sets(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train_file: .* is an empty directory"):
        open_generated("train_file", tmp_path)
    (tmp_path / "part.csv").write_text("text\na\n")
    with pytest.raises(ValueError, match=r"a directory without a manifest.json: give .*/\*.csv"):
        open_generated("train_file", tmp_path)


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: Any) -> None:
    """`fastkd generate`, then `fastkd distill` on its data with the same configuration; mistakes give a
    one-sentence error."""
    given = stored.workplace(tmp_path)
    lines = (tmp_path / "data.jsonl").read_text().replace('"prompt"', '"question"')
    (tmp_path / "data.jsonl").write_text(lines)
    given |= {"max_steps": 3, "save_strategy": "no", "num_beams": 2, "column_mapping": {"prompt": "question"}}
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump({**given, "output_dir": str(tmp_path / "out")}))
    folder = str(tmp_path / "written")

    with caplog.at_level(logging.WARNING):
        assert main(["generate", str(config), "--mode", "interpolate", "--output-dir", folder]) == 0
    assert f"train_file: {folder}" in capsys.readouterr().out
    assert "answers were cut at 6 tokens" in caplog.text
    content = json.loads((Path(folder) / "manifest.json").read_text())
    assert list(content["notes"]["source"]["sha256"]) == ["data.jsonl"]
    assert content["notes"]["cut"] > 0

    assert main(["distill", str(config), "--train_file", folder]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["student"]["steps"] == 3
    assert load_rows("train_file", options(train_file=folder)).num_rows == 24
    capsys.readouterr()
    for arguments, message in (
        (["--task", "classification"], "but classification reads text+label"),
        (["--teacher", "cache:x"], "but only a model can generate text"),
        (["--teacher", "null"], "teacher is not set"),
        (["--mode=best"], "generation_mode must be beam or sample or interpolate, not 'best'"),
        (
            ["--output-dir", folder],
            "begun with other settings, generation_mode (interpolate, now beam), interp",
        ),
        (["--output-dir", str(tmp_path / "teacher")], "is also the directory of teacher"),
        (["--output-dir", str(tmp_path)], "holds other files: give another output_dir"),
    ):
        assert main(["generate", str(config), *arguments]) == 1
        assert message in capsys.readouterr().err
