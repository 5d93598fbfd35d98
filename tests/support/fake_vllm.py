"""A stand-in for vLLM's offline engine, which runs a model of `transformers` with the weights it is given."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

ARGUMENTS = (
    "model", "skip_tokenizer_init", "load_format", "generation_config", "max_model_len", "dtype",
    "gpu_memory_utilization", "kv_cache_memory_bytes", "trust_remote_code", "enforce_eager",
)  # fmt: skip


class SamplingParams(SimpleNamespace):
    """The parameters as they were given."""


class LLM:
    """An engine.

    Attributes:
        made: all engines, in order.
        given: its arguments.
        did: what was asked of it, in order: ``push``, ``reset``, ``generate`` and ``shutdown``.
        asked: the prompts and parameters of each sampling.
        wrong: whether it ignores the weights that it is given.
    """

    made: list[LLM] = []  # noqa: RUF012
    wrong = False

    def __init__(self, **given: Any) -> None:
        if unknown := set(given) - set(ARGUMENTS):
            raise TypeError(f"EngineArgs got an unexpected keyword argument {unknown.pop()!r}")
        config = AutoConfig.from_pretrained(given["model"])
        if config.architectures != ["LlamaForCausalLM"]:
            raise RuntimeError(
                "1 validation error for ModelConfig\n  Value error, Model architectures "
                f"{config.architectures} are not supported for now. Supported architectures: dict_keys([...])"
            )
        assert not list(Path(given["model"]).glob("*.safetensors"))
        torch.manual_seed(5)  # as vLLM does
        self.model = AutoModelForCausalLM.from_config(config).eval()
        self.given, self.did, self.asked = given, [], []
        shutdown = SimpleNamespace(shutdown=lambda: self.did.append("shutdown"))
        columns = SimpleNamespace(get_vocab_size=lambda: config.vocab_size)
        self.llm_engine = SimpleNamespace(engine_core=shutdown, model_config=columns)
        LLM.made.append(self)

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        assert method == "reload_weights"
        given = dict(kwargs["weights_iterator"])
        if not LLM.wrong:
            self.model.load_state_dict(given)
        self.did.append("push")

    def reset_prefix_cache(self) -> None:
        self.did.append("reset")

    @torch.no_grad()
    def generate(self, prompts: list[dict[str, Any]], params: Any, use_tqdm: bool) -> list[Any]:
        if not isinstance(params, list):
            ids = prompts[0]["prompt_token_ids"]
            found = self.model(torch.tensor([ids])).logits[0].log_softmax(-1)
            logprobs = [{t: SimpleNamespace(logprob=found[i, t].item())} for i, t in enumerate(ids[1:])]
            return [SimpleNamespace(prompt_logprobs=[None, *logprobs])]
        self.did.append("generate")
        self.asked.append(([prompt["prompt_token_ids"] for prompt in prompts], params))
        return [
            SimpleNamespace(
                outputs=[SimpleNamespace(token_ids=self._answer(prompt["prompt_token_ids"], one))]
            )
            for prompt, one in zip(prompts, params, strict=True)
        ]

    def _answer(self, prompt: list[int], params: Any) -> list[int]:
        assert len(prompt) + params.max_tokens <= self.given["max_model_len"]
        generator, said = torch.Generator().manual_seed(params.seed), []
        while len(said) < params.max_tokens and not (said and said[-1] in params.stop_token_ids):
            logits = self.model(torch.tensor([[*prompt, *said]])).logits[0, -1]
            if params.allowed_token_ids is not None:
                hidden = torch.ones_like(logits, dtype=torch.bool)
                hidden[params.allowed_token_ids] = False
                logits = logits.masked_fill(hidden, -torch.inf)
            if params.temperature == 0:
                said.append(int(logits.argmax()))
            else:
                drawn = (logits / params.temperature).softmax(-1).multinomial(1, generator=generator)
                said.append(int(drawn))
        return said


def installed(monkeypatch: pytest.MonkeyPatch) -> type[LLM]:
    """Let ``import vllm`` find the stand-in."""
    module: Any = ModuleType("vllm")
    module.__spec__ = ModuleSpec("vllm", None)
    known = ["LlamaForCausalLM"]
    module.ModelRegistry = SimpleNamespace(get_supported_archs=lambda: known)
    module.LLM, module.SamplingParams = LLM, SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(LLM, "made", [])
    return LLM
