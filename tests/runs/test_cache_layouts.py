"""Test caches from data sets in the layouts of axolotl and DistillKit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from support import packed_logprobs as pack, stored
from support.caches import step
from support.tiny import VOCAB, llama
from transformers import AutoModelForCausalLM

from fastkd import SparseTeacher, kd_loss
from fastkd.cli import main
from fastkd.corpora.rows import load_rows
from fastkd.runs.train import load_data
from fastkd.trainer import DistillationConfig, DistillationTrainer
from fastkd.trainer.teachers import CachedTeacher

K = 5
WORDS = ["ab", "cde", "fgab", "hi", "jkl mn"]
EXACT = {"d": VOCAB, "k": K, "exact_k": K, "delta_encoding": False, "residual_bins": []}
BINS = {"d": VOCAB, "k": K, "exact_k": 2, "exact_dtype": "bfloat16", "delta_encoding": True,
        "polynomial_terms": [0, 1],
        "residual_bins": [{"scale_dtype": "float16", "element_bits": 7, "num_elements": 3}]}  # fmt: skip
LEGACY = {"vocab_size": VOCAB, "k": K, "exact_k": K, "polynomial_degree": 0}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A run on 12 chats, whose template ends without a token of its own."""
    given = stored.workplace(tmp_path)
    monkeypatch.chdir(tmp_path)
    chats = [
        [{"role": "user", "content": WORDS[i % 5]}, {"role": "assistant", "content": f"{WORDS[i % 4]} x{i}"}]
        for i in range(12)
    ]
    Path("chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    return given | {"train_file": "chats.jsonl", "max_steps": 2, "save_strategy": "no"}


def settings(work: dict[str, Any], **fields: Any) -> DistillationConfig:
    path = Path("run.yaml")
    path.write_text(yaml.safe_dump(work | fields))
    return DistillationConfig(**{**work, "output_dir": "out", **fields})


def tops(ids: list[int]) -> tuple[list[list[int]], list[list[float]]]:
    """The teacher's K most likely tokens after each token, and their log-probabilities."""
    teacher = AutoModelForCausalLM.from_pretrained("teacher")
    with torch.no_grad():
        found = teacher(torch.tensor([ids])).logits[0].double().log_softmax(-1).topk(K)
    return found.indices.tolist(), found.values.tolist()


Numbers = list[list[tuple[list[int], list[float]]]]


def axolotl(version: int) -> Any:
    """A writer of axolotl's layouts: the chat's columns, and entries of the answer's tokens alone."""

    def write(rows: list[Any], chats: list[Any]) -> Numbers:
        lines, kept = [], []
        for row, chat in zip(rows, chats, strict=True):
            ids, labels = list(row["input_ids"]), list(row["labels"])
            begin = next(i for i, label in enumerate(labels) if label != -100)
            columns, values = tops(ids)
            entries = list(zip(columns, values, strict=True))[begin - 1 : -1]
            line = {"messages": chat["messages"]}
            if version == 1:
                line["kept_logprobs"] = [
                    [{"token": f"token_id:{c}", "logprob": v} for c, v in zip(*one, strict=True)]
                    for one in entries
                ]
            else:
                line["target_token_ids"] = [one[0] for one in entries]
                line["logprobs"] = [one[1] for one in entries]
            lines.append(line)
            kept.append([([], [])] * (begin - 1) + entries)
        Path("given").mkdir(exist_ok=True)
        Path("given/a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return kept

    return write


def distillkit(form: str, last: bool = False, packed: bool = False) -> Any:
    """A writer of DistillKit's layouts."""

    def write(rows: list[Any], chats: Any = None) -> Numbers:
        config = {"exact": EXACT, "bins": BINS, "legacy": LEGACY}.get(form)
        table: list[dict[str, Any]] = []
        kept = []
        for row in rows:
            ids = list(row["input_ids"])
            columns, values = tops(ids)
            end = len(ids) if last or packed else len(ids) - 1
            columns, values = columns[:end], values[:end]
            line: dict[str, Any] = {"input_ids": ids}
            if form == "plain":
                line |= {"token_ids": columns, "top_values": values}
            elif form == "legacy":
                line |= {
                    "packed_indices": [pack.words(one, 6) for one in columns],
                    "exact_values": values,
                    "coeffs": [[] for _ in values],
                }
            else:
                assert config is not None
                made = [pack.compressed(one, config) for one in values]
                line["compressed_logprobs"] = [one for one, _ in made]
                line["bytepacked_indices"] = [pack.bits(one, 6) for one in columns]
                values = [back for _, back in made]
            table.append(line)
            kept.append(list(zip(columns, values, strict=True))[: len(ids) - 1])
        if packed:
            table = [
                {
                    **{name: [x for line in two for x in line[name]] for name in two[0]},
                    "attention_mask": [i + 1 for i, line in enumerate(two) for _ in line["input_ids"]],
                }
                for two in (table[i : i + 2] for i in range(0, len(table), 2))
            ]
        Path("given").mkdir(exist_ok=True)
        if config is not None:
            Path("given/compression_config.yaml").write_text(yaml.safe_dump(config))
        half = len(table) // 2
        for i, part in enumerate((table[:half], table[half:])):
            pq.write_table(pa.Table.from_pylist(part), f"given/data_{i}.parquet")
        return kept

    return write


def expected(rows: list[Any], numbers: Numbers, student: Any) -> torch.Tensor:
    """The loss of all rows from the numbers themselves, in float64."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row, known in zip(rows, numbers, strict=True):
        ids = torch.tensor(row["input_ids"])
        labels = torch.tensor(row["labels"])
        logits = student(ids[None]).logits[0].double()
        for i in range(len(ids) - 1):
            if labels[i + 1] == -100:
                continue
            columns, values = known[i]
            teacher = SparseTeacher(
                torch.tensor(columns)[None], torch.tensor(values).double()[None], tail="bucket"
            )
            total = total + kd_loss(logits[i : i + 1], teacher, labels[i + 1 : i + 2], kd_ratio=0.5)
            count += 1
    return total / count


LAYOUTS = {
    "axolotl 1": axolotl(1),
    "axolotl 2": axolotl(2),
    "exact": distillkit("exact"),
    "bins": distillkit("bins"),
    "legacy": distillkit("legacy", last=True),
    "plain": distillkit("plain"),
    "packed": distillkit("exact", packed=True),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_loss_is_that_of_the_numbers(name: str, work: dict[str, Any]) -> None:
    """The student's loss and gradients with the cache are those of a ``SparseTeacher`` of those numbers."""
    args = settings(work)
    raw = load_rows("train_file", args)
    rows = list(load_data(args).train)
    numbers = LAYOUTS[name](rows, list(raw))
    tokens = "axolotl" not in name
    if tokens:  # DistillKit's sets have no text, and are their own training data
        args = settings(work, train_file=sorted(map(str, Path("given").glob("*.parquet"))))
        rows = [{**row, "labels": row["input_ids"]} for row in rows]
    assert main(["cache", "run.yaml", "--from", "given", "--output-dir", "cached"]) == 0
    data = load_data(args)
    assert sorted(row["input_ids"] for row in data.train) == sorted(list(row["input_ids"]) for row in rows)
    args.per_device_train_batch_size, args.kd_ratio = len(rows), 0.5
    made = DistillationTrainer(
        llama(0), CachedTeacher(Path("cached")), args, None, data.train, None, data.tokenizer
    )
    loss, gradients = step(made)
    student = llama(0)
    wanted = expected(rows, numbers, student)
    wanted.backward()
    theirs = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
    assert loss == pytest.approx(wanted.item(), rel=1e-3)
    assert (gradients - theirs).norm() < 2e-3 * theirs.norm()


def test_a_run_on_tokens(work: dict[str, Any]) -> None:
    """``distill`` trains on ``input_ids`` from the cache, with rows cut to ``max_length``."""
    rows = list(load_data(settings(work)).train)
    distillkit("exact")(rows)
    files = sorted(map(str, Path("given").glob("*.parquet")))
    settings(work, train_file=files[0], eval_file=files[1], max_length=6)
    assert main(["cache", "run.yaml", "--from", "given/*.parquet", "--output-dir", "cached"]) == 0
    assert main(["distill", "run.yaml", "--teacher", "cache:cached", "--output-dir", "out"]) == 0
    assert json.loads(Path("out/report.json").read_text())["student"]["eval"]["kd"] > 0
    assert main(["doctor", "run.yaml", "--teacher", "cache:cached", "--output-dir", "out2"]) == 0
    assert main(["evaluate", "run.yaml", "--model", "out", "--output-dir", "looked"]) == 0
    assert main(["generate", "run.yaml", "--output-dir", "written"]) == 1


def told(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(["cache", "run.yaml", "--output-dir", "cached", *command]) == 1
    return " ".join(capsys.readouterr().err.split())


def damaged(change: Any) -> None:
    """Alter the third row of the first file."""
    table = pq.read_table("given/data_0.parquet").to_pylist()
    change(table[2])
    pq.write_table(pa.Table.from_pylist(table), "given/data_0.parquet")


def test_rows_that_cannot_be_right(work: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    args = settings(work)
    rows = list(load_data(args).train)

    def refused(form: str, change: Any, said: str) -> None:
        distillkit(form)(rows)
        damaged(change)
        settings(work, train_file="given/*.parquet")
        found = told(["--from", "given"], capsys)
        assert said in found and "data_0.parquet', row 3" in found, found

    refused("plain", lambda row: row["top_values"].__setitem__(1, [-0.1] * K),
            "token 3: the probabilities sum to 4.524, more than 1")  # fmt: skip
    refused(
        "plain", lambda row: row["top_values"][0].__setitem__(0, float("nan")), "token 2: NaN is no log-p"
    )
    refused("plain", lambda row: row["token_ids"][0].__setitem__(0, VOCAB),
            f"has token {VOCAB}, and the teacher's vocabulary is {VOCAB}: it is another model's")  # fmt: skip
    refused(
        "plain", lambda row: row["top_values"][0].pop(), "top_values has 4 numbers at its first place and 5"
    )
    refused("plain", lambda row: row["input_ids"].append(3), "tokens have")
    refused("exact", lambda row: [one.append(0) for one in row["compressed_logprobs"]],
            "has 21 numbers for each token, and compression_config.yaml describes 20")  # fmt: skip
    refused("exact", lambda row: [one.pop() for one in row["bytepacked_indices"]], "bytepacked_indices has 3")
    refused("legacy", lambda row: [one.pop() for one in row["exact_values"]], "exact_values has 4")


def test_log_probabilities_of_other_tokens(work: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers that are one place off their tokens fit the tokens beside much better, which is noticed."""
    args = settings(work, max_length=24)
    rows = [{"input_ids": [(7 * i + j * j) % 40 + 1 for j in range(20)]} for i in range(8)]
    for off, wrong in ((1, False), (2, True), (0, True)):
        lines = []
        for row in rows:
            ids = row["input_ids"]
            after = [ids[min(i + off, 19)] for i in range(20)]
            values = [[-0.2, -3.0]] * 20
            lines.append({"input_ids": ids, "token_ids": [[x, 0] for x in after], "top_values": values})
        Path("a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        settings(work, train_file="a.jsonl")
        if wrong:
            said = told(["--from", "a.jsonl"], capsys)
            side = "before" if off == 0 else "after"
            assert f"the tokens one place {side} them 0.82: they belong to other tokens" in said
        else:
            assert main(["cache", "run.yaml", "--from", "a.jsonl", "--output-dir", "right"]) == 0
    assert args.max_length == 24


def test_chats_that_do_not_fit(work: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    args = settings(work)
    raw, rows = list(load_rows("train_file", args)), list(load_data(args).train)
    axolotl(1)(rows, raw)
    lines = [json.loads(line) for line in Path("given/a.jsonl").read_text().splitlines()]

    def refused(change: Any, said: str) -> None:
        altered = json.loads(json.dumps(lines))
        change(altered[2])
        Path("given/a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in altered))
        found = told(["--from", "given"], capsys)
        assert said in found, found

    refused(lambda row: row["kept_logprobs"][0][0].update(token="the"),
            "a.jsonl', row 3: the token 'the' is not written as token_id:N")  # fmt: skip
    refused(lambda row: row["kept_logprobs"].__setitem__(1, []), "row 3, token")
    refused(lambda row: row.update(kept_logprobs=row["kept_logprobs"] * 9), "the row has")
    refused(lambda row: row["kept_logprobs"].pop(0), "row 3 is trained from its token")
    refused(
        lambda row: row["messages"][0].update(content="other"), "1 of the 12 rows of train_file have no line"
    )

    settings(work, max_length=4)  # the prompts are cut, so that the answers' tokens have another context
    refused(
        lambda row: row.update(kept_logprobs=row["kept_logprobs"]),
        "of the 12 rows of train_file have no line in cache_from",
    )


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (None, "compression_config.yaml cannot be read, and says how the log-probabilities"),
        ("k: [", "compression_config.yaml is no YAML"),
        ("3", "must hold the settings of the compression by name"),
        (yaml.safe_dump(LEGACY), "describes another compression than that of the columns"),
        (yaml.safe_dump({**EXACT, "temperature": 2.0}), "temperature is 2.0, and a cache holds"),
    ],
)
def test_settings_of_the_compression(
    config: str | None, said: str, work: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    distillkit("exact")([{"input_ids": [3, 4, 5, 6]}] * 2)
    path = Path("given/compression_config.yaml")
    path.unlink() if config is None else path.write_text(config)
    settings(work, train_file="given/*.parquet")
    assert said in told(["--from", "given"], capsys)


def test_files_without_a_known_layout(work: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    settings(work)
    assert "cache_from has the columns messages, and the layouts that are known are" in told(
        ["--from", "chats.jsonl"], capsys
    )
    Path("empty").mkdir()
    assert "'empty' has no file of .parquet" in told(["--from", "empty"], capsys)
