"""The teachers that write answers for ``fastkd generate``: a model on this machine, or one behind a URL."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from transformers import PreTrainedModel

from fastkd.corpora.decode import Answer, Question, continuation, decode, end_tokens
from fastkd.corpora.tasks import TASKS
from fastkd.corpora.vocabulary import too_narrow
from fastkd.runs.shards import MadeBy, seed_of
from fastkd.served import under_way
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.teachers import LiveTeacher, ServedTeacher


class Writer(Protocol):
    """A teacher that answers questions.

    Attributes:
        made_by: its name and digest, for the manifest.
        settings: its own settings that change what it writes.
    """

    @property
    def made_by(self) -> MadeBy: ...

    @property
    def settings(self) -> dict[str, Any]: ...

    def answers(
        self, asked: Sequence[Question], first: int, several: bool
    ) -> Iterator[tuple[int, list[Answer]]]:
        """The number of each question, and its answers, the best first.

        Args:
            asked: the questions.
            first: the number of the first of them in the data, which seeds samples.
            several: whether to give all beams, or the best answer alone.
        """
        ...


class ModelWriter:
    """A model on this machine.

    Args:
        teacher: frozen in place and put into eval mode.
        tokenizer: its own.
        args: the settings.

    Raises:
        ValueError: a tokenizer with more tokens than the model.
    """

    def __init__(self, teacher: PreTrainedModel, tokenizer: Any, args: DistillationConfig) -> None:
        self.teacher, self.tokenizer, self.args = teacher, tokenizer, args
        model = LiveTeacher(teacher, TASKS[args.task], fused=False)
        if (trouble := too_narrow(len(tokenizer), {"teacher": model.columns})) is not None:
            raise ValueError(f"{trouble}: save the teacher's own tokenizer beside it")
        model.to(args.device)

    @property
    def made_by(self) -> MadeBy:
        return MadeBy.model(self.teacher, self.args)

    @property
    def settings(self) -> dict[str, Any]:
        settings = self.teacher.generation_config.to_diff_dict()
        settings.pop("transformers_version", None)
        return {"generation_config": dict(json.loads(json.dumps(settings, default=str)))}

    def answers(
        self, asked: Sequence[Question], first: int, several: bool
    ) -> Iterator[tuple[int, list[Answer]]]:
        args, sampled = self.args, self.args.generation_mode == "sample"
        yield from decode(
            self.teacher,
            TASKS[args.task],
            self.tokenizer,
            [question.ids for question in asked],
            num_beams=1 if sampled else args.num_beams,
            do_sample=sampled,
            temperature=args.sampling_temperature,
            max_new_tokens=longest(args),
            num_return_sequences=args.num_beams if several else 1,
            batch_size=args.per_device_eval_batch_size,
            seed=seed_of(args.seed, first) if sampled else None,
            generation_kwargs=args.generation_kwargs,  # type: ignore[arg-type]
        )


class ServedWriter:
    """A model behind a URL, which is asked for many answers at a time.

    Args:
        teacher: the server's model.
        tokenizer: the student's, which must have the same tokens.
        args: the settings.

    Raises:
        ValueError: another tokenizer, or settings that only `transformers` has.
    """

    def __init__(self, teacher: ServedTeacher, tokenizer: Any, args: DistillationConfig) -> None:
        if args.generation_kwargs:
            raise ValueError("generation_kwargs are options of transformers, which a server does not have")
        if not teacher.model.has_beams and args.generation_mode != "sample" and args.num_beams > 1:
            raise ValueError(
                f"a server of {teacher.model.server_name} has no beam search: set num_beams: 1, or "
                "generation_mode: sample"
            )
        teacher.compare_tokens(tokenizer)
        self.teacher, self.tokenizer, self.args = teacher, tokenizer, args

    @property
    def made_by(self) -> MadeBy:
        return MadeBy(self.teacher.model.name, {"served": self.teacher.digest()})

    @property
    def settings(self) -> dict[str, Any]:
        return {}

    def answers(
        self, asked: Sequence[Question], first: int, several: bool
    ) -> Iterator[tuple[int, list[Answer]]]:
        seed = seed_of(self.args.seed, first)

        def sent(numbered: tuple[int, Question]) -> tuple[list[int], Future[Any]]:
            number, question = numbered
            prompt, room = self._fitted(question.ids)
            return prompt, self.teacher.model.write_later(prompt, room, **self._decoding(seed + number))

        for (number, _), (prompt, found) in under_way(enumerate(asked), sent, self.args.teacher_requests):
            answers = self._answers(prompt, found.result())
            yield number, answers if several else answers[:1]

    def _decoding(self, seed: int) -> dict[str, Any]:
        if self.args.generation_mode == "sample":
            return {"temperature": self.args.sampling_temperature, "seed": seed % 2**31}
        if self.args.num_beams == 1:
            return {"temperature": 0.0}
        return {"temperature": 0.0, "use_beam_search": True, "n": self.args.num_beams}

    def _fitted(self, prompt: list[int]) -> tuple[list[int], int]:
        """A prompt that leaves room for an answer, and that room. A prompt is cut at its beginning."""
        room = longest(self.args)
        if (whole := self.teacher.model.longest) is None:
            return prompt, room
        prompt = prompt[-(whole - 1) :]
        return prompt, min(room, whole - len(prompt))

    def _answers(self, prompt: list[int], given: Any) -> list[Answer]:
        ends = end_tokens(None, self.tokenizer)
        answers = []
        for tokens, complete in self.teacher.model.answers_in(given):
            said = tokens[:-1] if complete and tokens and tokens[-1] in ends else tokens
            answers.append(Answer(tokens, continuation(self.tokenizer, prompt, said), complete))
        return answers


def longest(args: DistillationConfig) -> int:
    """The longest answer in tokens; for seq2seq, one that training would not cut."""
    most = args.max_completion_length
    return min(most, args.max_target_length) if args.task == "seq2seq" else most
