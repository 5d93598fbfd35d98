"""Test models that are given by name: their weights, their dtype, and the sentence if one cannot be read."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from os.path import expanduser
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from huggingface_hub import errors
from safetensors.torch import load_file, save_file
from support.families import bert, gpt2
from support.stored import tokenizer
from support.tiny import llama, rows

from fastkd.trainer import DistillationConfig, DistillationTrainer, checkpoints
from fastkd.trainer.loading import adapters, load_student, load_teacher_model, load_tokenizer
from fastkd.trainer.loading.names import refusal

Configuration = Callable[..., DistillationConfig]
WEIGHTS = "model.safetensors"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a student and a teacher."""
    monkeypatch.chdir(tmp_path)
    llama(0).save_pretrained("student")
    llama(1, hidden=24).save_pretrained("teacher")
    return tmp_path


def damage(folder: str, change: Callable[[str], str | None]) -> None:
    """Rename the weights of a model; those that become None are removed."""
    path = Path(folder) / WEIGHTS
    kept = {change(key): value for key, value in load_file(path).items() if change(key)}
    save_file({str(key): value for key, value in kept.items()}, path, {"format": "pt"})


def test_missing_weights_are_refused_with_their_names(place: Path, configuration: Configuration) -> None:
    args = configuration(model="student", teacher="teacher")
    damage("student", lambda key: None if "up_proj" in key else key)
    damage("teacher", lambda key: key.replace("model.", "backbone.body.", 1))
    for trained in (False, True):
        with pytest.raises(ValueError, match=r"model 'student': 1 of .* is missing .*mlp\.up_proj\.weight"):
            load_student(args, trained)
    with pytest.raises(
        ValueError, match=r"teacher 'teacher': .* are missing .*backbone\.body\.\S+ .*key_mapping"
    ):
        load_teacher_model(args)


def test_a_renamed_checkpoint_can_be_mapped(place: Path, configuration: Configuration) -> None:
    damage("teacher", lambda key: key.replace("model.", "backbone.body.", 1))
    kwargs = {"key_mapping": {r"^backbone\.body\.": "model."}}
    teacher = load_teacher_model(configuration(teacher="teacher", teacher_model_init_kwargs=kwargs))
    ids = torch.tensor([[3, 4, 5]])
    torch.testing.assert_close(teacher(ids).logits, llama(1, hidden=24)(ids).logits)


def test_the_second_name_of_tied_weights_is_not_missing(
    place: Path, configuration: Configuration, caplog: pytest.LogCaptureFixture
) -> None:
    assert "lm_head.weight" not in load_file("student/model.safetensors")
    with caplog.at_level(logging.WARNING):
        load_student(configuration(model="student"))
    assert not caplog.records


def test_a_student_may_lack_the_classification_head(
    place: Path, configuration: Configuration, caplog: pytest.LogCaptureFixture
) -> None:
    """An encoder gets a new head, which is said; a teacher and a measured model need a trained one."""
    fields = {"task": "classification", "model": "encoder", "teacher": "encoder"}
    bert(0).bert.save_pretrained("encoder")
    args = configuration(**fields, class_names=["bad", "fair", "good"])
    assert load_student(args).config.num_labels == 3
    assert "no trained classification head: classifier.bias, classifier.weight" in caplog.text
    load_student(args)
    assert caplog.text.count("no trained classification head") == 1  # a run loads its student several times
    for load in (load_teacher_model, lambda args: load_student(args, trained=True)):
        with pytest.raises(ValueError, match=r"classifier\.weight.*train the model for this task first"):
            load(args)
    damage("encoder", lambda key: None if "layer.0.output" in key else key)
    with pytest.raises(ValueError, match="missing from its files"):
        load_student(args)


def test_weights_of_another_size_name_the_model_and_the_field(
    place: Path, configuration: Configuration
) -> None:
    config = json.loads(Path("student/config.json").read_text())
    Path("student/config.json").write_text(json.dumps({**config, "vocab_size": 50}))
    message = r"model 'student': \S+ has the shape \(48, 16\) in its files and \(50, 16\)"
    with pytest.raises(ValueError, match=f"{message}.*vocab_size.*model_init_kwargs"):
        load_student(configuration(model="student"))
    kwargs = {"ignore_mismatched_sizes": True}
    student = load_student(configuration(model="student", model_init_kwargs=kwargs))
    assert student.config.vocab_size == 50


def test_spare_weights_are_said(
    place: Path, configuration: Configuration, caplog: pytest.LogCaptureFixture
) -> None:
    llama(0, layers=2).save_pretrained("deep")
    student = load_student(configuration(model="deep", model_init_kwargs={"num_hidden_layers": 1}))
    assert len(student.model.layers) == 1
    assert "have no place in LlamaForCausalLM and are left out: model.layers.1." in caplog.text


def cut(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])


def pointer(folder: Path) -> None:
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123\n")


def shards(folder: Path) -> None:
    shutil.rmtree(folder)
    llama(0, layers=2).save_pretrained(folder, max_shard_size="4KB")
    next(folder.glob("model-00002-*.safetensors")).unlink()


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut": (cut, r"model\.safetensors is cut off: it has [\d,]+ of [\d,]+ bytes: copy or download it again"),
    "shorter than its header": (
        lambda f: (f / WEIGHTS).write_bytes(b"abc"),
        "cut off or no safetensors file",
    ),
    "git-lfs": (pointer, r"model\.safetensors is only the pointer that git-lfs left .* run git lfs pull"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), r"a config\.json and no weights \(model\.safetensors\)"),
    "no config": (lambda f: (f / "config.json").unlink(), r"the directory has no config\.json"),
    "config": (lambda f: (f / "config.json").write_text("{"), r"config\.json is not valid JSON"),
    "shard": (shards, r"index\.json names model-00002-\S+, which is missing"),
}


@pytest.mark.parametrize("field", ["model", "teacher"])
@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_directories(place: Path, configuration: Configuration, name: str, field: str) -> None:
    change, message = DAMAGES[name]
    args = configuration(model="student", teacher="teacher")
    change(place / getattr(args, field))
    with pytest.raises(ValueError, match=f"^{field} '.*{message}"):
        load_student(args) if field == "model" else load_teacher_model(args)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./studnet", r"there is no such directory; did you mean '\./student'\?"),
        ("a/b/c", r"there is no such directory \(nor 'a/b'\)"),
        ("~/no such model", "there is no such directory"),
        ("rows.jsonl", "it is a file, and a model is a directory"),
        (".", r"the directory has no config\.json; did you mean 'student'\?"),
    ],
)
def test_names_that_are_no_model(place: Path, configuration: Configuration, name: str, message: str) -> None:
    Path("rows.jsonl").write_text("{}\n")
    for load, field in ((load_student, "model"), (load_teacher_model, "teacher")):
        with pytest.raises(ValueError, match=f"^{field} '{expanduser(name)}' could not be loaded: {message}"):
            load(configuration(model=name, teacher=name))


def test_a_name_begins_at_home(place: Path, configuration: Configuration, monkeypatch: Any) -> None:
    monkeypatch.setenv("HOME", str(place))
    assert load_student(configuration(model="~/student")).num_parameters() == llama(0).num_parameters()


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (errors.LocalEntryNotFoundError("no"), "the hub cannot be reached"),
        (ConnectionError("no"), "the hub cannot be reached"),
        (errors.RepositoryNotFoundError.__new__(errors.RepositoryNotFoundError), "no model of this name"),
        (errors.GatedRepoError.__new__(errors.GatedRepoError), "asks for permission"),
        (RuntimeError("no"), "from the hub: it failed"),
    ],
)
def test_the_hub_does_not_give_a_model(
    place: Path, cause: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    error = OSError("it failed")
    error.__cause__ = cause
    said = str(refusal("teacher", "studnet", error))
    assert said.startswith(
        "teacher 'studnet' could not be loaded: there is no such directory here; did you mean"
    )
    assert message in said


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"load_in_4bit": True},
            r"no setting 'load_in_4bit': write quantization_config: \{load_in_4bit: true\}",
        ),
        ({"dtpye": "bfloat16"}, "no setting 'dtpye'"),
        ({"dtype": "bfloat"}, "dtype 'bfloat' is no floating-point dtype of torch; did you mean 'bfloat16'"),
    ],
)
def test_keywords_that_do_not_fit(
    place: Path, configuration: Configuration, kwargs: Any, message: str
) -> None:
    fields = {"model_init_kwargs": kwargs, "teacher_model_init_kwargs": kwargs}
    args = configuration(model="student", teacher="teacher", **fields)
    with pytest.raises(ValueError, match=f"^model_init_kwargs.*{message}"):
        load_student(args)
    with pytest.raises(ValueError, match=f"^teacher_model_init_kwargs.*{message}"):
        load_teacher_model(args)


def test_a_student_from_scratch_takes_keywords_too(place: Path, configuration: Configuration) -> None:
    fields = {"model": "student", "model_init": "scratch"}
    kwargs = {"dtype": "bfloat16", "attn_implementation": "eager", "num_hidden_layers": 3}
    student = load_student(configuration(**fields, model_init_kwargs=kwargs))
    assert student.dtype == torch.bfloat16 and len(student.model.layers) == 3
    assert student.config._attn_implementation == "eager"
    with pytest.raises(ValueError, match=r"model_init_kwargs: .* no field 'layers'"):
        load_student(configuration(**fields, model_init_kwargs={"layers": 3}))


def test_a_16_bit_student_is_trained_in_float32_and_saved_as_it_was(
    place: Path, configuration: Configuration
) -> None:
    """The result has the dtype of the student's files; a checkpoint keeps the weights exactly."""
    llama(0).to(torch.bfloat16).save_pretrained("student")
    args = configuration(model="student", save_strategy="steps", save_steps=4)
    trainer = DistillationTrainer("student", llama(1), args, train_dataset=rows(16))
    trainer.train()
    assert trainer.student.dtype == torch.float32
    trainer.save_model()
    exact = load_file(place / "out/checkpoint-4" / WEIGHTS)
    saved = load_file(place / "out" / WEIGHTS)
    assert exact.keys() == saved.keys() == load_file("student/model.safetensors").keys()
    for name, value in saved.items():
        assert value.dtype == torch.bfloat16 and exact[name].dtype == torch.float32
        assert torch.equal(value, exact[name].bfloat16())
    assert any(not torch.equal(value, value.bfloat16().float()) for value in exact.values())
    dtypes = [
        json.loads((place / where / "config.json").read_text())["dtype"]
        for where in ("out", "out/checkpoint-4")
    ]
    assert dtypes == ["bfloat16", "float32"]


@pytest.mark.parametrize(("dtype", "expected"), [("float32", torch.float32), ("auto", torch.bfloat16)])
def test_a_given_dtype_is_that_of_training_and_saving(
    place: Path, configuration: Configuration, dtype: str, expected: torch.dtype
) -> None:
    llama(0).to(torch.bfloat16).save_pretrained("student")
    args = configuration(model="student", model_init_kwargs={"dtype": dtype})
    trainer = DistillationTrainer(load_student(args), llama(1), args, train_dataset=rows(8))
    assert trainer.student.dtype == expected
    trainer.save_model()
    assert {x.dtype for x in load_file(place / "out" / WEIGHTS).values()} == {expected}


def test_the_trainer_takes_names(place: Path, configuration: Configuration) -> None:
    """The tokenizer saved with the student is used; ``base`` and ``cache:DIR`` mean the same as in a file."""
    tokenizer().save_pretrained("student")
    data = [{"text": "ab cde"}] * 8
    trainer = DistillationTrainer(
        "student", "teacher", configuration(), train_dataset=Dataset.from_list(data)
    )
    trainer.train()
    assert trainer.state.global_step == 4
    with pytest.raises(ValueError, match="there is no cache in nowhere"):
        DistillationTrainer(llama(0), "cache:nowhere", configuration(), train_dataset=rows(4))
    with pytest.raises(ValueError, match="teacher: base is the student without its adapter"):
        DistillationTrainer("student", "base", configuration(), train_dataset=rows(4))


def test_a_teacher_with_other_tokens_is_refused(place: Path, configuration: Configuration) -> None:
    other = tokenizer(letters=["<end>", *(chr(122 - i) for i in range(26))])
    other.save_pretrained("teacher")
    message = "26 of 27 token numbers mean another token to the teacher"
    args = configuration(model="student", teacher="teacher")
    teacher = load_teacher_model(args)
    with pytest.raises(ValueError, match=message):
        DistillationTrainer(llama(0), teacher, args, train_dataset=rows(4), processing_class=tokenizer())
    tokenizer().save_pretrained("teacher")
    DistillationTrainer(llama(0), teacher, args, train_dataset=rows(4), processing_class=tokenizer())


def test_the_tokenizer_is_the_students_or_the_teachers(place: Path, configuration: Configuration) -> None:
    args = configuration(model="student", teacher="teacher")
    with pytest.raises(ValueError, match="model 'student' has no tokenizer"):
        load_tokenizer(args)
    tokenizer("Z").save_pretrained("teacher")
    assert load_tokenizer(args).eos_token == "Z"
    tokenizer().save_pretrained("student")
    assert load_tokenizer(args).eos_token == "<end>"
    Path("student/tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="model 'student': its tokenizer could not be read"):
        load_tokenizer(args)
    with pytest.raises(ValueError, match=r"did you mean '\./student'"):
        load_tokenizer(configuration(model="./studnet", teacher="teacher"))


def test_a_checkpoint_without_a_weight_is_refused(place: Path, configuration: Configuration) -> None:
    """Resuming reports a missing weight, but not the second name of a tied one."""
    args = configuration(save_strategy="steps", save_steps=2, max_steps=2)
    DistillationTrainer(gpt2(0), llama(1), args, train_dataset=rows(16)).train()
    more = configuration(max_steps=4)
    folder = str(place / "out/checkpoint-2")
    again = DistillationTrainer(gpt2(5), llama(1), more, train_dataset=rows(16))
    again.train(resume_from_checkpoint=folder)
    assert again.state.global_step == 4
    damage(folder, lambda key: None if "mlp.c_fc.weight" in key else key)
    checkpoints.seal(Path(folder))  # a file that changed after it was written would be refused first
    with pytest.raises(
        ValueError, match=r"the checkpoint lacks 1 of the student's weights \(\S*mlp\.c_fc\.weight\)"
    ):
        DistillationTrainer(gpt2(5), llama(1), more, train_dataset=rows(16)).train(
            resume_from_checkpoint=folder
        )


def test_a_hub_that_cannot_be_reached_is_asked_once(
    place: Path, configuration: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's client repeats each question for half a minute, and a run has several about a model."""
    asked: list[tuple[str, str]] = []

    def unreachable(name: str, file: str) -> str:
        asked.append((name, file))
        raise errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(adapters, "hf_hub_download", unreachable)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    # Answers hold for five minutes of the clock: neither its ticking nor an earlier test's answer matters.
    monkeypatch.setattr(adapters, "_REMEMBERED", float("inf"))
    adapters._asked.cache_clear()
    args = configuration(model="studnet")
    for load in (load_tokenizer, load_student):
        with pytest.raises(ValueError, match="did you mean 'student'.*, and the hub cannot be reached"):
            load(args)
    assert asked == [("studnet", "config.json")]
