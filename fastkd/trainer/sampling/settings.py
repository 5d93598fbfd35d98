"""Settings of a sampler with which it cannot work, known before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from fastkd.corpora.generation import applicable
from fastkd.trainer.config import DistillationConfig

# Options of `generate` that vLLM has too.
SHARED_OPTIONS = ("top_k", "top_p", "min_p", "repetition_penalty", "suppress_tokens")
# Arguments of the engine that decide whose answers it gives, or where it runs.
SET_BY_FASTKD = (
    "model",
    "tokenizer",
    "skip_tokenizer_init",
    "load_format",
    "generation_config",
    "seed",
    "trust_remote_code",
    "quantization",
    "enable_lora",
    "enable_sleep_mode",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "data_parallel_size",
    "distributed_executor_backend",
)


def sampler_troubles(args: DistillationConfig) -> Iterator[tuple[str, str, str]]:
    """Each reason why the sampler of a configuration cannot work: its fixed name, the reason, the remedy."""
    if args.sampling_steps > 1 and args.lmbda == 0:
        yield (
            "sampling_steps_without_samples",
            f"sampling_steps: {args.sampling_steps} is about the student's samples, and lmbda: 0 has none",
            "set lmbda, or leave out sampling_steps",
        )
    if args.sampling_steps > 1 and args.objective == "sampled":
        yield (
            "sampled_from_older_weights",
            "objective: sampled needs tokens that the student of now draws, and sampling_steps: "
            f"{args.sampling_steps} keeps them for later steps",
            "leave out sampling_steps, or set objective: full",
        )
    if args.sampler != "vllm":
        if args.sampler_kwargs:
            yield (
                "sampler_kwargs_without_engine",
                f"sampler_kwargs are arguments of vLLM's engine, and sampler is {args.sampler}",
                "set sampler: vllm, or leave out sampler_kwargs",
            )
        return
    if args.lmbda == 0:
        yield (
            "vllm_without_samples",
            "sampler: vllm writes the student's own samples, and lmbda: 0 has none",
            "set lmbda, or leave out sampler",
        )
    if args.task != "causal_lm":
        yield (
            "vllm_task",
            f"sampler: vllm is for causal_lm, since vLLM cannot run the models of {args.task}",
            "set sampler: transformers",
        )
    if find_spec("vllm") is None:
        yield (
            "vllm_missing",
            "sampler: vllm needs the package vllm",
            "pip install 'fastkd[vllm]', or set sampler: transformers",
        )
    if args.fsdp or getattr(args, "deepspeed_plugin", None) is not None:
        yield (
            "vllm_sharded",
            "sampler: vllm is given whole weights by every process, and FSDP and DeepSpeed divide them",
            "train with DDP, or set sampler: transformers",
        )
    loading: Any = args.model_init_kwargs or {}
    if loading.get("quantization_config"):
        yield (
            "vllm_quantised",
            "sampler: vllm needs a student whose weights are not quantised",
            "leave out quantization_config, or set sampler: transformers",
        )
    given = applicable(args.generation_kwargs, 1, True)  # type: ignore[arg-type]
    if unknown := [name for name in given if name not in SHARED_OPTIONS]:
        yield (
            "vllm_generation_kwargs",
            f"generation_kwargs has {', '.join(unknown)}, which vLLM does not know",
            f"leave out all but {', '.join(SHARED_OPTIONS)}, or set sampler: transformers",
        )
    if taken := [name for name in args.sampler_kwargs or {} if name in SET_BY_FASTKD]:
        yield (
            "sampler_kwargs_taken",
            f"sampler_kwargs has {', '.join(taken)}, which fastkd sets itself",
            "leave it out",
        )
