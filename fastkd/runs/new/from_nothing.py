"""A model of a known architecture with random weights, and a tokenizer for it."""

from __future__ import annotations

from typing import Any

from transformers import BartConfig, BertConfig, LlamaConfig, T5Config, set_seed

from fastkd.corpora.rows import load_rows
from fastkd.corpora.tasks import TASKS
from fastkd.runs.new.from_teacher import built, run_once
from fastkd.runs.new.made import Made
from fastkd.runs.new.request import Request
from fastkd.runs.new.sizes import divisor
from fastkd.runs.new.tokenizer import Texts, train
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.loading import teacher_tokenizer
from fastkd.trainer.teachers.source import require_model

VOCABULARY = 8_000
_HIDDEN, _LAYERS, _HEAD = 256, 4, 64
# The tasks of each architecture; the first one is meant if none is given.
TASKS_OF = {
    "llama": ("causal_lm", "classification"),
    "t5": ("seq2seq",),
    "bart": ("seq2seq", "classification"),
    "bert": ("classification",),
}
# Positions of models that learn them, at least; a longer max_length makes more.
_POSITIONS = 512
_ROTARY_POSITIONS = 2048


def from_nothing(request: Request, args: DistillationConfig, longest: int) -> Made:
    """The model of the architecture that a request names.

    Its tokenizer is that of ``args.teacher``, if that is set, so that both number their tokens alike; else it
    is trained on the texts of ``train_file`` or ``dataset``.

    Args:
        longest: the longest sequence that the run's settings name; 0 if they name none.

    Raises:
        ValueError: no data, sizes that do not fit together, or a task that the architecture is not for.
    """
    kind = str(request.architecture)
    if args.task not in TASKS_OF[kind]:
        raise ValueError(f"{kind} is for {' or '.join(TASKS_OF[kind])}, not for task: {args.task}")
    if request.init == "layers":
        raise ValueError("init: layers copies a teacher's layers: leave --architecture or --init out")
    for name in ("layers", "decoder_layers"):
        if isinstance(getattr(request, name), list):
            raise ValueError(
                f"{name} is a list of the teacher's layers, and --architecture takes their number"
            )
    if request.decoder_layers is not None and kind not in ("t5", "bart"):
        raise ValueError(f"decoder_layers is for t5 and bart, not for {kind}: give --layers")
    tokenizer, remarks = _tokenizer(request, args)
    config = _CONFIGS[kind](_Sizes(request), tokenizer, longest)
    set_seed(args.seed)
    model = built(config, args, headless=args.task == "classification")
    run_once(model)
    return Made(model, tokenizer, remarks=remarks)


def _tokenizer(request: Request, args: DistillationConfig) -> tuple[Any, list[str]]:
    if args.teacher is not None and args.cross_tokenizer is None:
        require_model(args.teacher, "the new model takes its tokenizer")
        if request.vocab_size is not None:
            raise ValueError("vocab_size is for a tokenizer that is trained, and the teacher's is taken")
        tokenizer = teacher_tokenizer(args)
        if tokenizer is None:
            raise ValueError(f"teacher {args.teacher!r} has no tokenizer: save one beside its config.json")
        return tokenizer, [f"tokenizer: the teacher's, {len(tokenizer):,} tokens"]
    rows = load_rows("train_file", args)
    if rows is None:
        raise ValueError(
            "a tokenizer is trained on data: set train_file or dataset, or teacher to take its own"
        )
    texts = Texts.of(rows, TASKS[args.task])
    return train(texts, str(request.architecture), request.vocab_size or VOCABULARY)


def _tokens(tokenizer: Any, *names: str) -> dict[str, Any]:
    """The fields of a config about the vocabulary; a special token that the tokenizer lacks is that of the
    end of a text.
    """
    last = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    found = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in names}
    return {"vocab_size": len(tokenizer), **{k: last if v is None else v for k, v in found.items()}}


class _Sizes:
    """The sizes of a request, with defaults for those that are not set."""

    def __init__(self, request: Request) -> None:
        self.hidden = request.hidden_size or _HIDDEN
        self.layers = int(request.layers or _LAYERS)  # type: ignore[arg-type]
        self.decoder_layers = int(request.decoder_layers or self.layers)  # type: ignore[arg-type]
        self.heads = request.num_attention_heads or divisor(self.hidden, max(1.0, self.hidden / _HEAD), True)
        if self.hidden % self.heads:
            raise ValueError(
                f"hidden_size {self.hidden} is no multiple of num_attention_heads {self.heads}: give "
                f"{divisor(self.hidden, self.heads)} heads"
            )
        self.groups = request.num_key_value_heads or self.heads
        if self.heads % self.groups:
            raise ValueError(
                f"num_attention_heads {self.heads} is no multiple of num_key_value_heads {self.groups}: give "
                f"{divisor(self.heads, self.groups)}"
            )
        self.inner = request.intermediate_size


def _llama(sizes: _Sizes, tokenizer: Any, longest: int) -> LlamaConfig:
    return LlamaConfig(
        **_tokens(tokenizer, "bos", "eos", "pad"),
        hidden_size=sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.groups,
        # Three matrices of 8/3 of the width have as many weights as two of four times the width.
        intermediate_size=sizes.inner or max(32, round(8 * sizes.hidden / 3 / 32) * 32),
        max_position_embeddings=max(_ROTARY_POSITIONS, longest),
        tie_word_embeddings=True,
    )


def _t5(sizes: _Sizes, tokenizer: Any, longest: int) -> T5Config:
    tokens = _tokens(tokenizer, "eos", "pad")
    return T5Config(
        **tokens | {"decoder_start_token_id": tokens["pad_token_id"]},
        d_model=sizes.hidden,
        d_kv=sizes.hidden // sizes.heads,
        d_ff=sizes.inner or 4 * sizes.hidden,
        num_layers=sizes.layers,
        num_decoder_layers=sizes.decoder_layers,
        num_heads=sizes.heads,
    )


def _bart(sizes: _Sizes, tokenizer: Any, longest: int) -> BartConfig:
    tokens = _tokens(tokenizer, "bos", "eos", "pad")
    inner = sizes.inner or 4 * sizes.hidden
    return BartConfig(
        **tokens,
        decoder_start_token_id=tokens["eos_token_id"],
        forced_eos_token_id=tokens["eos_token_id"],
        d_model=sizes.hidden,
        encoder_layers=sizes.layers,
        decoder_layers=sizes.decoder_layers,
        encoder_attention_heads=sizes.heads,
        decoder_attention_heads=sizes.heads,
        encoder_ffn_dim=inner,
        decoder_ffn_dim=inner,
        max_position_embeddings=max(_POSITIONS, longest),
    )


def _bert(sizes: _Sizes, tokenizer: Any, longest: int) -> BertConfig:
    return BertConfig(
        **_tokens(tokenizer, "pad"),
        hidden_size=sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.inner or 4 * sizes.hidden,
        max_position_embeddings=max(_POSITIONS, longest),
    )


_CONFIGS: dict[str, Any] = {"llama": _llama, "t5": _t5, "bart": _bart, "bert": _bert}
