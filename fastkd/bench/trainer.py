"""``python -m fastkd.bench.trainer``: a training step of a tiny Llama, by fastkd's trainer, by hand, by TRL.

All use the same models, batches, optimizer and number of threads. Rows:

- by hand, ``F.kl_div``: the loop that users write, with the full logits of both models;
- by hand, ``linear_kd_loss``: the same loop with fastkd's loss and nothing around it, the baseline for the
  trainer's own overhead;
- fastkd's ``DistillationTrainer``, and TRL's ``GKDTrainer`` if it is installed.

They take turns with a block of steps each, so that other work on the machine slows all of them alike.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback

from fastkd import HiddenTeacher, linear_kd_loss
from fastkd.bench import device as devices
from fastkd.bench.versions import versions
from fastkd.trainer import DistillationConfig, DistillationTrainer

KD_RATIO, TEMPERATURE, LEARNING_RATE = 0.5, 1.0, 1e-4
Step = Callable[[], None]


def llama(vocab: int, hidden: int, layers: int, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab,
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=512,
            tie_word_embeddings=False,
            pad_token_id=0,
        )
    )


class ByHand:
    """A training loop; each call runs one step."""

    def __init__(self, student: Any, teacher: Any, batches: list[torch.Tensor], fused: bool) -> None:
        self.student, self.teacher = student.train(), teacher.eval().requires_grad_(False)
        self.batches, self.fused = batches, fused
        self.optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, fused=True)
        self.count = 0

    def __call__(self) -> None:
        ids = self.batches[self.count % len(self.batches)]
        self.count += 1
        labels = F.pad(ids[:, 1:], (0, 1), value=-100)
        loss = (self.from_hidden if self.fused else self.from_logits)(ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def from_logits(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            t = self.teacher(ids, use_cache=False).logits[:, :-1].flatten(0, 1)
        s = self.student(ids, use_cache=False).logits[:, :-1].flatten(0, 1)
        q, p = (F.log_softmax(s / TEMPERATURE, -1), F.softmax(t / TEMPERATURE, -1))
        kd = F.kl_div(q, p, reduction="batchmean") * TEMPERATURE**2
        return KD_RATIO * kd + (1 - KD_RATIO) * F.cross_entropy(s, labels[:, :-1].flatten())

    def from_hidden(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            t = self.teacher.model(ids, use_cache=False)[0]
        s = self.student.model(ids, use_cache=False)[0]
        teacher = HiddenTeacher(t, self.teacher.lm_head.weight)
        return linear_kd_loss(
            s, self.student.lm_head.weight, teacher, labels, kd_ratio=KD_RATIO, temperature=TEMPERATURE
        )


class Clock(TrainerCallback):
    """Times a trainer from one optimizer step to the next, including its loop and its data loader."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.last = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.last = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.last = now


COMMON: dict[str, Any] = {
    "learning_rate": LEARNING_RATE,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.01,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "logging_steps": 10**6,
}


def ours(models: tuple[Any, Any], rows: Dataset, folder: str, steps: int, batch: int) -> Trainer:
    args = DistillationConfig(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=batch,
        kd_ratio=KD_RATIO,
        temperature=TEMPERATURE,
        **COMMON,
    )
    return DistillationTrainer(*models, args, train_dataset=rows)


def trl(models: tuple[Any, Any], rows: Dataset, folder: str, steps: int, batch: int) -> Trainer | None:
    """GKD without samples and with the forward KL. It trains on the divergence alone, since TRL has no
    cross-entropy beside it.
    """
    warnings.simplefilter("ignore")
    try:
        from trl.experimental.gkd import GKDConfig, GKDTrainer
    except ImportError:
        return None
    args = GKDConfig(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=batch,
        lmbda=0.0,
        beta=0.0,
        gradient_checkpointing=False,
        bf16=False,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        **COMMON,
    )

    def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = torch.tensor([example["input_ids"] for example in examples])
        ones = torch.ones_like(ids)
        return {"input_ids": ids, "attention_mask": ones, "labels": ids, "prompts": ids[:, :1]}

    return GKDTrainer(
        model=models[0],
        teacher_model=models[1],
        args=args,
        data_collator=collate,
        train_dataset=rows,
        processing_class=tokenizer(),
    )


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, "<eos>"))
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fastkd.bench.trainer", description=__doc__)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=12, help="of a block (the first two are not counted)")
    parser.add_argument("--blocks", type=int, default=3)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(
        2, options.vocab, (options.batch * options.steps, options.length), generator=generator
    )
    rows = Dataset.from_dict({"input_ids": ids.tolist()})
    batches = list(ids.split(options.batch))

    def models() -> tuple[Any, Any]:
        return (
            llama(options.vocab, options.hidden, options.layers, 0),
            llama(options.vocab, 2 * options.hidden, options.layers, 1),
        )

    found: dict[str, list[float]] = {}
    for _ in range(options.blocks):
        for name, fused in (("by hand, F.kl_div", False), ("by hand, linear_kd_loss", True)):
            step = ByHand(*models(), batches, fused)
            found.setdefault(name, []).extend(_timed(step, options.steps))
        for name, make in (("fastkd DistillationTrainer", ours), ("TRL GKDTrainer", trl)):
            with tempfile.TemporaryDirectory() as folder:
                trainer = make(models(), rows, folder, options.steps, options.batch)
                if trainer is None:
                    continue
                clock = Clock()
                trainer.add_callback(clock)
                trainer.train()
                found.setdefault(name, []).extend(clock.seconds[2:])

    print(devices.of("cpu").name(), versions())
    print(
        f"V={options.vocab:,}, hidden {options.hidden} (teacher {2 * options.hidden}), "
        f"{options.batch} x {options.length} tokens, float32, {torch.get_num_threads()} threads"
    )
    ours_ms = 1e3 * statistics.median(found["fastkd DistillationTrainer"])
    for name, seconds in found.items():
        ms = 1e3 * statistics.median(seconds)
        print(f"{name:28}{ms:9.1f} ms per step{ms / ours_ms:8.2f} x fastkd's trainer")


def _timed(step: Step, steps: int) -> list[float]:
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return seconds[2:]


if __name__ == "__main__":
    main()
