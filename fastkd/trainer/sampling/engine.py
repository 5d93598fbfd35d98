"""Sampling with vLLM in the same process, whose weights are replaced by the student's before each sampling.

The weights go through vLLM's own loading (``reload_weights``), under the names of a saved checkpoint, so that
it fuses, packs and converts them as it would those of a file.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import random
import re
from collections.abc import Iterator, Sequence
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import distributed

from fastkd import _settings
from fastkd.corpora.contexts import evaluating, seeded
from fastkd.corpora.window import positions
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.heads import output_width
from fastkd.trainer.precision import autocast, half_precision
from fastkd.trainer.sampling.base import Draw
from fastkd.trainer.sampling.weights import check_mergeable, checkpoint_weights, plain_model

# The share of a GPU that the engine may fill if sampler_kwargs says nothing: the rest is for training.
MEMORY_SHARE = 0.3
# The lowest temperature at which vLLM draws; it would raise a lower one to it.
_COLDEST = 0.01
# Tokens at which the engine is compared with the student, and by how many nats their log-probabilities may
# differ on average, since 16-bit weights are multiplied in another order.
_PROBED, _SAME = 24, 0.2
# Engines of runs that have ended, by what they were made of. Ending one would also end the process group
# that it shares with the processes of a distributed run.
_KEPT: dict[str, Any] = {}


class VllmSampler:
    """A sampler that runs vLLM in this process, beside the student.

    Args:
        args: provides ``sampler_kwargs``, the length limits and the precision.
    """

    def __init__(self, args: DistillationConfig) -> None:
        self.args = args
        self._engine: Any = None
        self._key = ""
        self._window = 0
        self._owns_group = False

    def start(self, student: Any) -> None:
        """Make the engine, and give it the student's weights once.

        Raises:
            ValueError: a quantised student, an adapter that cannot be merged, or a model or arguments that
                vLLM refuses.
        """
        if self._engine is not None:
            return
        if getattr(plain_model(student), "is_quantized", False):
            raise ValueError(
                "sampler: vllm needs a student whose weights are not quantised: set sampler: transformers"
            )
        check_mergeable(student)
        given = self._arguments(student)
        self._window = int(given["max_model_len"])
        config = copy.deepcopy(plain_model(student).config)
        config.architectures = [type(plain_model(student)).__name__]
        self._key = json.dumps([config.to_dict(), given], default=str, sort_keys=True)
        self._owns_group = not (distributed.is_available() and distributed.is_initialized())
        try:
            with _random_state_kept(student.device):
                self._engine = _KEPT.pop(self._key, None) or _made(config, given)
            self._push(student)
            differ = self._difference(student)
        except Exception as error:  # vLLM has many kinds of errors
            self.close()
            raise ValueError(
                f"vLLM cannot sample from this student ({_reason(error)}): change sampler_kwargs, or set "
                "sampler: transformers"
            ) from error
        if differ > _SAME:
            self.close()
            raise ValueError(
                f"vLLM computes other probabilities than the student ({differ:.2g} nats per token), so its "
                "samples would not be the student's: set sampler: transformers"
            )

    def _difference(self, student: Any) -> float:
        """Mean difference of the log-probabilities that the engine and the student give random tokens."""
        from vllm import SamplingParams

        tokens = np.random.default_rng(0).integers(output_width(student), size=min(_PROBED, self._window - 1))
        ids = tokens.tolist()
        with _quiet(), _random_state_kept(student.device):
            (answer,) = self._engine.generate(
                [{"prompt_token_ids": ids}],
                SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False),
                use_tqdm=False,
            )
            with torch.no_grad(), evaluating(student), autocast(self.args, student.device):
                logits = student(input_ids=torch.tensor([ids], device=student.device)).logits[0, :-1]
        given = [
            entry[token].logprob for entry, token in zip(answer.prompt_logprobs[1:], ids[1:], strict=True)
        ]
        own = logits.double().cpu().log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        return float((own - torch.tensor(given, dtype=torch.double)).abs().mean())

    def _arguments(self, student: Any) -> dict[str, Any]:
        """The arguments of the engine, of which ``sampler_kwargs`` may replace those that are set here."""
        args = self.args
        own: Any = args.sampler_kwargs or {}
        longest = args.max_length + args.max_completion_length
        if (window := positions(student)) is not None:
            longest = min(longest, window)
        dtype = half_precision(args) or student.dtype
        given: dict[str, Any] = {
            "max_model_len": longest,
            "dtype": str(dtype).removeprefix("torch."),
            **own,
        }
        if "kv_cache_memory_bytes" not in given:
            given.setdefault("gpu_memory_utilization", MEMORY_SHARE)
        if args.world_size > 1:  # each process has an engine on its own device
            given["distributed_executor_backend"] = "external_launcher"
        return {**given, "trust_remote_code": args.trust_remote_code}

    def _push(self, student: Any) -> None:
        """Replace the engine's weights, and forget what it computed with the weights before."""
        with _quiet():
            self._engine.collective_rpc(
                "reload_weights", kwargs={"weights_iterator": checkpoint_weights(student)}
            )
        self._engine.reset_prefix_cache()

    def sample(
        self,
        student: Any,
        prompts: Sequence[list[int]],
        draw: Draw,
        device: torch.device,
        sharded: bool = False,
    ) -> list[list[int]]:
        """See :meth:`Sampler.sample`. But for rounding, no answer depends on the other prompts' lengths.

        Raises:
            ValueError: a prompt that fills the engine's window, or weights that FSDP shards.
        """
        if sharded:
            raise ValueError(
                "sampler: vllm is given whole weights by every process, and FSDP divides them: train with "
                "DDP, or set sampler: transformers"
            )
        self.start(student)
        longest = max(map(len, prompts))
        if longest >= self._window:
            raise ValueError(
                f"a prompt has {longest:,} tokens and vLLM's engine has room for {self._window:,}: raise "
                "max_length, or set max_model_len in sampler_kwargs"
            )
        self._push(student)
        seeds = np.random.SeedSequence(draw.seed).generate_state(len(prompts)).tolist()
        allowed = self._allowed(draw)
        chosen = [
            self._parameters(draw, len(prompt), seed, allowed)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        with _random_state_kept(device):
            found = self._engine.generate(
                [{"prompt_token_ids": prompt} for prompt in prompts], chosen, use_tqdm=False
            )
        return [list(answer.outputs[0].token_ids) for answer in found]

    def _allowed(self, draw: Draw) -> list[int] | None:
        """The columns that may be drawn; None for all."""
        suppressed = {*(draw.options.get("suppress_tokens") or []), *draw.suppressed}
        if not suppressed:
            return None
        columns = self._engine.llm_engine.model_config.get_vocab_size()
        return [token for token in range(columns) if token not in suppressed]

    def _parameters(self, draw: Draw, before: int, seed: int, allowed: list[int] | None) -> Any:
        from vllm import SamplingParams

        options = {
            name: value
            for name, value in draw.options.items()
            if name != "suppress_tokens" and value is not None
        }
        return SamplingParams(
            temperature=draw.temperature if draw.temperature >= _COLDEST else 0.0,
            max_tokens=min(draw.longest, self._window - before),
            stop_token_ids=sorted(draw.ends),
            ignore_eos=True,  # the tokens above are all that end an answer
            allowed_token_ids=allowed,
            detokenize=False,
            seed=seed,
            skip_clone=True,  # each request has its own
            **options,
        )

    def close(self) -> None:
        """Give the engine's memory back; in a distributed run the engine is kept for the next one."""
        engine, self._engine = self._engine, None
        owns_group, self._owns_group = self._owns_group, False
        if engine is not None and not owns_group:
            _KEPT[self._key] = engine
        elif engine is not None:
            with _quiet():
                engine.llm_engine.engine_core.shutdown()
        elif owns_group and distributed.is_initialized():  # an engine that could not be made
            from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

            cleanup_dist_env_and_memory()


def known_to_vllm(architecture: str) -> bool:
    """Whether vLLM, which must be installed, has an implementation of this class of `transformers`."""
    from vllm import ModelRegistry

    return architecture in ModelRegistry.get_supported_archs()


def _made(config: Any, given: dict[str, Any]) -> Any:
    """An engine with random weights for a model of this configuration."""
    _settings.run_vllm_in_process()
    from vllm import LLM

    with _quiet(), TemporaryDirectory(prefix="fastkd-") as folder:
        config.save_pretrained(folder)
        return LLM(
            model=folder,
            skip_tokenizer_init=True,
            load_format="dummy",
            generation_config="vllm",
            **given,
        )


def _reason(error: Exception) -> str:
    """The text of an error of vLLM, without the frame of its validator and the list of all its models."""
    said = " ".join(str(error).split())
    said = re.sub(r"^\d+ validation errors? for \w+ Value error, |,? ?Supported architectures.*", "", said)
    return said[:400].rstrip(".") or type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out vLLM's reports, which warn of the missing tokenizer and of layers without weights.

    vLLM sets the levels of its loggers when an engine is made, so all loggers are silenced.
    """
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _random_state_kept(device: torch.device) -> Iterator[None]:
    """Restore every global random state, which vLLM seeds when it starts."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with seeded(0, device):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
