"""The settings of a distillation run: those of ``transformers``, and those of the teacher's side."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from transformers import TrainingArguments

from fastkd import kd_loss
from fastkd.corpora.generation import check_generation_kwargs
from fastkd.trainer import zero
from fastkd.trainer.field_values import at_home, mapping_of
from fastkd.trainer.matches import parse_matches
from fastkd.trainer.seeds import parse_seeds
from fastkd.trainer.teacher_names import check_teachers, named

TASKS = ("causal_lm", "seq2seq", "classification")
MODEL_INITS = ("pretrained", "scratch")
FUSED_HEADS = ("auto", "true", "false")
SELF_WEIGHTS = ("live", "initial", "ema")
OBJECTIVES = ("full", "sampled")
CROSSINGS = (None, "spans", "hybrid", "gold")
ESTIMATORS = ("k1", "k2", "k3")
SAMPLERS = ("transformers", "vllm")
CACHE_KINDS = ("topk", "sampled", "hidden")
CACHE_TAILS = ("renormalize", "bucket")
REWRITTEN_TURNS = ("split", "last")
GENERATION_MODES = ("beam", "sample", "interpolate")
INTERPOLATE_METRICS = ("bleu", "chrf", "rougeL")
HEADLINES = ("auto", "perplexity", "accuracy", "macro_f1", "bleu", "chrf", "rougeL")
PROBLEM_TYPES = (None, "single_label_classification", "multi_label_classification", "regression")
CHOICES = {
    "task": TASKS,
    "problem_type": PROBLEM_TYPES,
    "model_init": MODEL_INITS,
    "fused_head": FUSED_HEADS,
    "objective": OBJECTIVES,
    "cross_tokenizer": CROSSINGS,
    "self_weights": SELF_WEIGHTS,
    "sampled_estimator": ESTIMATORS,
    "sampler": SAMPLERS,
    "generation_mode": GENERATION_MODES,
    "interpolate_metric": INTERPOLATE_METRICS,
    "headline": HEADLINES,
    "cache_kind": CACHE_KINDS,
    "cache_tail": CACHE_TAILS,
    "rewritten_turns": REWRITTEN_TURNS,
}
# Keywords of a tokenizer's `apply_chat_template` that the data and the commands decide.
CHAT_ARGUMENTS = (
    "conversation",
    "messages",
    "tools",
    "tokenize",
    "add_generation_prompt",
    "continue_final_message",
    "return_dict",
    "return_tensors",
    "return_assistant_tokens_mask",
)


# Fields that may name a place on this machine, and so may begin with the home directory's ~.
PLACES = ("model", "teacher", "train_file", "eval_file", "resume_from_checkpoint", "deepspeed", "fsdp_config")


def plain(choice: Any) -> str:
    """A choice as text: ``TrainingArguments`` turns some of its strings into members of an enum."""
    return str(getattr(choice, "value", choice))


@dataclass
class DistillationConfig(TrainingArguments):
    """``transformers.TrainingArguments`` and the fields of a distillation.

    ``label_smoothing_factor`` of ``TrainingArguments`` is applied inside the loss (it smooths the
    cross-entropy, never the distillation term). ``model``, ``teacher``, the file fields and ``control`` are
    read by the command line; :class:`DistillationTrainer` receives models and data sets instead.

    Raises:
        ValueError: an unknown task, divergence, ``model_init`` or ``fused_head``, or a number out of range.
    """

    # `TrainingArguments` parses JSON text for these when it comes from a command line.
    _VALID_DICT_FIELDS = [  # noqa: RUF012  an attribute of the base class
        *TrainingArguments._VALID_DICT_FIELDS,
        "model_init_kwargs",
        "teacher_model_init_kwargs",
        "teachers",
        "teacher_weights",
        "column_mapping",
        "chat_template_kwargs",
        "peft_config",
        "generation_kwargs",
        "sampler_kwargs",
    ]

    logging_steps: float = field(default=10, metadata={"help": "Log every this many optimizer steps."})

    task: str = field(
        default="causal_lm", metadata={"help": "Task of both models: causal_lm, seq2seq or classification."}
    )
    model: str | None = field(
        default=None, metadata={"help": "Student: a directory or hub id; an adapter's is trained further."}
    )
    model_init: str = field(
        default="pretrained",
        metadata={
            "help": "pretrained loads the weights of `model`; scratch takes its config and draws new weights."
        },
    )
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Keywords of from_pretrained for the student (dtype, attn_implementation, "
            "quantization_config, ...). Without a dtype it is trained in float32 and saved in that of "
            "its files."
        },
    )
    teacher: str | None = field(
        default=None,
        metadata={
            "help": "Teacher: a directory, a hub id, cache:DIR (what fastkd cache wrote), "
            "http://HOST:PORT/v1 (a server of vLLM or SGLang), base (the student without its adapter), or "
            "self (the student, with another prompt or other weights)."
        },
    )
    teacher_model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Keywords of from_pretrained for the teacher (dtype, quantization_config, ...)."},
    )
    teachers: dict[str, str] | str | None = field(
        default=None,
        metadata={
            "help": "Several teachers by name, each as in `teacher` (no caches): every row names its own in "
            "teacher_column, or teacher_weights mixes them."
        },
    )
    teacher_column: str = field(
        default="teacher", metadata={"help": "teachers: the column that names the teacher of each row."}
    )
    teacher_weights: dict[str, float] | str | None = field(
        default=None,
        metadata={
            "help": "teachers: the weights of a mixture of their probabilities, for example {a: 1, b: 3}."
        },
    )
    teacher_prompt: str | None = field(
        default=None,
        metadata={
            "help": "The prompt that the teacher reads in place of the student's, with columns in braces: "
            "'{prompt} The solution is {solution}.'; a conversation gets it as its system message."
        },
    )
    cross_tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "For a teacher with another tokenizer: spans (the probabilities of pieces of text that "
            "both split alike), hybrid (the distributions where such pieces begin) or gold (these as TRL's "
            "GOLD compares them, in part by sorted probabilities); unset: such a teacher is refused."
        },
    )
    self_weights: str = field(
        default="live",
        metadata={
            "help": "teacher: self: live (the student's weights of now), initial (a copy of the first ones), "
            "or ema (a moving average)."
        },
    )
    self_decay: float = field(
        default=0.999, metadata={"help": "self_weights: ema: the share of itself that each step keeps."}
    )
    teacher_served_name: str | None = field(
        default=None,
        metadata={"help": "Name of the model on the teacher's server; if unset, the only one there."},
    )
    teacher_top_k: int = field(
        default=20,
        metadata={
            "help": "Entries per token that a served teacher is asked for; the server allows --max-logprobs."
        },
    )
    teacher_key_variable: str | None = field(
        default=None,
        metadata={"help": "Environment variable with the key of the teacher's server."},
    )
    teacher_key_file: str | None = field(
        default=None, metadata={"help": "File with the key of the teacher's server."}
    )
    teacher_requests: int = field(
        default=16, metadata={"help": "Most requests to the teacher's server at a time."}
    )
    teacher_timeout: float = field(
        default=120.0, metadata={"help": "Seconds after which a request to the teacher counts as lost."}
    )
    teacher_patience: float = field(
        default=600.0,
        metadata={"help": "Seconds for which a run waits for a teacher's server that does not answer."},
    )

    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run code that comes with a model. Only for authors you trust."}
    )
    peft_config: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Train an adapter: the fields of a peft config, for example {peft_type: LORA, r: 8}."
        },
    )

    kd_ratio: float = field(
        default=0.5,
        metadata={"help": "Share of the distillation loss; the rest is cross-entropy with the labels."},
    )
    divergence: str = field(
        default="forward_kl", metadata={"help": "Divergence from the teacher, as in fastkd.kd_loss."}
    )
    beta: float | None = field(default=None, metadata={"help": "The divergence's beta, where it has one."})
    alpha: float | None = field(default=None, metadata={"help": "The divergence's alpha, where it has one."})
    temperature: float = field(
        default=1.0, metadata={"help": "Softens the student, and the teacher unless it has its own."}
    )
    teacher_temperature: float | None = field(
        default=None, metadata={"help": "Softens the teacher; `temperature` if unset."}
    )
    fused_head: str = field(
        default="auto",
        metadata={
            "help": "auto: linear_kd_loss on hidden states if the head is known to be linear, else logits; "
            "true: refuse a model whose head is not linear; false: always logits."
        },
    )

    lmbda: float = field(
        default=0.0,
        metadata={"help": "Share of the steps on the student's own samples (on-policy, as in GKD)."},
    )
    objective: str = field(
        default="full",
        metadata={
            "help": "full: the divergence between the distributions; sampled: the reverse KL from the "
            "teacher's probabilities of the student's own tokens alone (needs lmbda: 1)."
        },
    )
    sampled_estimator: str = field(
        default="k1",
        metadata={"help": "objective: sampled: k1, k2 or k3, as in fastkd.sampled_kd_loss."},
    )
    sampled_advantage_clip: float | None = field(
        default=None,
        metadata={
            "help": "objective: sampled: largest log-ratio of a token's probabilities; unset: no limit."
        },
    )
    max_completion_length: int = field(
        default=256, metadata={"help": "Longest sampled or generated answer, in tokens."}
    )
    sampling_temperature: float = field(
        default=1.0,
        metadata={"help": "Temperature at which student and teacher draw samples; the loss has its own."},
    )
    sampler: str = field(
        default="transformers",
        metadata={
            "help": "lmbda: who writes the student's samples: transformers (its generate), or vllm (an "
            "engine in the same process, given the student's weights before each sampling)."
        },
    )
    sampler_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "sampler: vllm: arguments of its engine, for example {gpu_memory_utilization: 0.4, "
            "enforce_eager: true}."
        },
    )
    sampling_steps: int = field(
        default=1,
        metadata={
            "help": "lmbda: number of on-policy steps whose prompts are answered together, with the weights "
            "of the first of them."
        },
    )
    feature_matches: list[dict[str, Any]] | None = field(
        default=None,
        metadata={
            "help": "Losses between layers: a list of {student, teacher, kind, loss, weight}; kind is "
            "hidden, attention or relation; weight has a default for each loss."
        },
    )
    gradient_match_weight: float = field(
        default=0.0, metadata={"help": "Weight of matching both models' per-token saliency."}
    )

    train_file: list[str] | str | None = field(
        default=None,
        metadata={
            "help": "Training data: a txt, json, jsonl, csv, tsv or parquet file (.gz too), a pattern or a "
            "list of them, or what fastkd generate wrote."
        },
    )
    eval_file: list[str] | str | None = field(default=None, metadata={"help": "Held-out data, same formats."})
    dataset: str | None = field(
        default=None,
        metadata={"help": "A data set of the hub, as name or name:configuration, for the files."},
    )
    train_split: str = field(default="train", metadata={"help": "Split of `dataset` to train on."})
    eval_split: str | None = field(default=None, metadata={"help": "Split of `dataset` to evaluate on."})
    column_mapping: dict[str, str] | str | None = field(
        default=None, metadata={"help": "Maps fastkd's column names to the file's, for example {text: body}."}
    )
    class_names: list[str] | None = field(
        default=None,
        metadata={"help": "Classes in the order of their numbers; if unset, from the model or the data."},
    )
    problem_type: str | None = field(
        default=None,
        metadata={
            "help": "What a classifier predicts: single_label_classification (one class), "
            "multi_label_classification (any number of labels) or regression (numbers); if unset, from the "
            "models or the data."
        },
    )
    max_length: int = field(
        default=1024, metadata={"help": "Longest sequence in tokens; for seq2seq, the longest source."}
    )
    max_target_length: int = field(default=256, metadata={"help": "Longest target of seq2seq, in tokens."})
    chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Keywords for the chat template of every conversation, for example "
            "{enable_thinking: false}; a column of this name adds to them."
        },
    )
    rewritten_turns: str = field(
        default="split",
        metadata={
            "help": "Conversations whose earlier answers the chat template rewrites (most drop their "
            "thinking): split makes a row of each such answer, last leaves them out."
        },
    )
    packing: bool = field(
        default=False,
        metadata={
            "help": "Join the texts and cut them into pieces of max_length: no token is lost, and no text "
            "attends to another."
        },
    )
    control: bool = field(
        default=False, metadata={"help": "Also train the same student without the teacher, and report both."}
    )
    seeds: list[int] | int | str = field(
        default=1,
        metadata={
            "help": "distill and train: 3 repeats the run with seed, seed+1, seed+2, and 1,2,7 with these "
            "seeds; the report has means, spreads and verdicts."
        },
    )

    source_language: str | None = field(
        default=None,
        metadata={
            "help": "seq2seq: language of the sources, as a multilingual tokenizer spells it (eng_Latn)."
        },
    )
    target_language: str | None = field(
        default=None, metadata={"help": "seq2seq: language of the targets, which answers are written in."}
    )
    forced_bos_token_id: int | None = field(
        default=None,
        metadata={
            "help": "seq2seq: first token of every answer; if unset, that of target_language or the model's."
        },
    )
    generation_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Further options of generate wherever a model writes, for example {length_penalty: 0.8}."
        },
    )

    num_beams: int = field(
        default=4, metadata={"help": "Beams of fastkd generate, and of the beam column of fastkd evaluate."}
    )
    eval_answers: int = field(
        default=200,
        metadata={
            "help": "Held-out prompts, evenly spread, that the models of train and distill answer at the "
            "end, for BLEU, chrF, ROUGE and samples. 0 leaves them out."
        },
    )
    eval_beam: bool = field(
        default=False, metadata={"help": "Write those answers with num_beams beams too, not only greedily."}
    )
    headline: str = field(
        default="auto",
        metadata={
            "help": "The figure that the report leads with: perplexity, accuracy, macro_f1, bleu, chrf or "
            "rougeL. auto: accuracy of classifiers; of answers rougeL where the references are summaries "
            "(a third of their sources or shorter), else bleu; else perplexity."
        },
    )
    generation_mode: str = field(
        default="beam",
        metadata={
            "help": "fastkd generate: beam (the best beam), sample, or interpolate (the beam nearest to the "
            "reference)."
        },
    )
    min_probability: float = field(
        default=0.0, metadata={"help": "fastkd generate: a class that is less likely is left empty."}
    )
    interpolate_metric: str = field(
        default="bleu",
        metadata={
            "help": "How to measure the nearness of a beam to the reference: bleu (of the sentence, "
            "smoothed), chrf, or rougeL (for summaries)."
        },
    )
    cache_kind: str = field(
        default="topk",
        metadata={
            "help": "fastkd cache: topk (the largest probabilities), sampled (random-sampling KD) or hidden "
            "(last hidden states, exact)."
        },
    )
    cache_top_k: int = field(default=32, metadata={"help": "Entries per token of a topk cache."})
    cache_from: str | list[str] | None = field(
        default=None,
        metadata={
            "help": "fastkd cache: log-probabilities in the layouts of vLLM, axolotl or DistillKit (files or "
            "a directory), in place of running the teacher."
        },
    )
    cache_samples: int = field(default=50, metadata={"help": "Draws per token of a sampled cache."})
    cache_tail: str = field(
        default="bucket",
        metadata={
            "help": "How a topk cache or a served teacher is read, as to all other tokens: bucket (their "
            "probability is one more class), or renormalize (they count as impossible)."
        },
    )

    def __post_init__(self) -> None:
        # YAML and dataclass callers may write the switch as a boolean.
        self.fused_head = str(self.fused_head).lower()
        for name in PLACES:
            setattr(self, name, at_home(getattr(self, name)))
        for name in self._VALID_DICT_FIELDS:
            setattr(self, name, mapping_of(name, getattr(self, name)))
        check_teachers(self.teachers, self.teacher, self.teacher_weights, self.task, self.packing)
        # The names that rows may give, in the order of their numbers.
        self.routes: list[str] = []
        if isinstance(self.teachers, dict):
            self.teacher = named(self.teachers)
            self.routes = [] if self.teacher_weights else list(self.teachers)
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                known = " or ".join(filter(None, allowed))
                raise ValueError(f"{name} must be {known}, not {getattr(self, name)!r}")
        if self.max_length < 2:
            raise ValueError(
                f"max_length must be at least 2 (a token and the next one), not {self.max_length}"
            )
        for name in (
            "max_target_length",
            "max_completion_length",
            "num_beams",
            "cache_top_k",
            "cache_samples",
            "teacher_top_k",
            "teacher_requests",
            "sampling_steps",
            "gradient_accumulation_steps",
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.eval_answers < 0:
            raise ValueError(f"eval_answers must be a number of rows from 0, not {self.eval_answers}")
        of_classes = self.headline in ("accuracy", "macro_f1")
        if self.headline != "auto" and of_classes != (self.task == "classification"):
            raise ValueError(f"headline: {self.headline} is not a figure of {self.task}")
        for name in ("learning_rate", "num_train_epochs"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number from 0, not {getattr(self, name)}")
        if not 0 <= self.lmbda <= 1:
            raise ValueError(f"lmbda is a share of the steps, from 0 to 1, not {self.lmbda}")
        if not 0 < self.sampling_temperature < math.inf:
            raise ValueError(f"sampling_temperature must be positive, not {self.sampling_temperature}")
        if not 0 <= self.self_decay < 1:
            raise ValueError(f"self_decay must be from 0 to below 1, not {self.self_decay}")
        if self.sampled_advantage_clip is not None and not 0 < self.sampled_advantage_clip < math.inf:
            raise ValueError(f"sampled_advantage_clip must be positive, not {self.sampled_advantage_clip}")
        for name in ("teacher_timeout", "teacher_patience"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is a number of seconds above 0, not {getattr(self, name)}")
        if self.teacher_key_variable is not None and self.teacher_key_file is not None:
            raise ValueError(
                "teacher_key_variable and teacher_key_file both name a key: leave out one of them"
            )
        if self.gradient_match_weight < 0:
            raise ValueError(
                f"gradient_match_weight must not be negative, but is {self.gradient_match_weight}"
            )
        parse_matches(self.feature_matches or [])
        self.seeds = parse_seeds(self.seeds)
        if isinstance(self.seeds, list) and self.seed != type(self).seed:
            raise ValueError(f"seed is {self.seed} and seeds is a list of seeds: leave out one of the two")
        if isinstance(self.chat_template_kwargs, dict):
            taken = [name for name in CHAT_ARGUMENTS if name in self.chat_template_kwargs]
            if taken:
                raise ValueError(
                    f"chat_template_kwargs must not set {', '.join(taken)}, which the data and the commands "
                    "decide"
                )
        if self.problem_type is not None and self.task != "classification":
            raise ValueError(f"problem_type is for classification, not for {self.task}")
        if self.packing and self.task != "causal_lm":
            raise ValueError(f"packing is for causal_lm, not for {self.task}")
        for name in ("source_language", "target_language", "forced_bos_token_id"):
            if self.task != "seq2seq" and getattr(self, name) is not None:
                raise ValueError(f"{name} is for seq2seq, not for {self.task}")
        if self.deepspeed is not None and find_spec("deepspeed") is None:
            raise ValueError("deepspeed needs the package deepspeed: pip install deepspeed")
        super().__post_init__()
        zero.begin(self)
        check_generation_kwargs(self.generation_kwargs)
        # Only the loss validates its own options. Call it now, so that a bad option fails here and not at the
        # first step.
        logits = torch.zeros(1, 2)
        kd_loss(logits, logits, torch.zeros(1, dtype=torch.long), **self.loss_options())

    def loss_options(self) -> dict[str, Any]:
        """The keywords of :func:`fastkd.kd_loss` that this configuration sets."""
        return {
            "kd_ratio": self.kd_ratio,
            "divergence": self.divergence,
            "beta": self.beta,
            "alpha": self.alpha,
            "temperature": self.temperature,
            "teacher_temperature": self.teacher_temperature,
            "label_smoothing": self.label_smoothing_factor,
        }
