"""Test ``use_fastkd`` for TRL's trainers, with the package itself: functions, steps, and what it refuses."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from support.same_loss import assert_alike
from torch import Tensor

from fastkd.errors import Unsupported
from fastkd.integrations import trl as adapter

gkd = pytest.importorskip("trl.experimental.gkd.gkd_trainer")
distillation = pytest.importorskip("trl.trainer.distillation_trainer")

LABELS = torch.tensor([[-100, 1, 2], [-100, -100, 3]])
REDUCTIONS = ("batchmean", "sum", "mean", "none")


@pytest.mark.parametrize("labels", [None, LABELS], ids=["all", "masked"])
@pytest.mark.parametrize("beta", [0, 0.25, 0.5, 1.0])
def test_generalized_jsd_loss(beta: float, labels: Tensor | None) -> None:
    theirs = gkd.GKDTrainer.generalized_jsd_loss
    ours = adapter._generalized_jsd_loss(theirs)
    for reduction, items in itertools.product(REDUCTIONS, (None, 7, torch.tensor(5))):
        options: dict[str, Any] = dict(
            labels=labels, beta=beta, temperature=1.5, reduction=reduction, num_items_in_batch=items
        )
        assert_alike(
            lambda s, t: ours(s, t, **options),  # noqa: B023
            lambda s, t: theirs(s, t, **options),  # noqa: B023
            [torch.randn(2, 3, 11), torch.randn(2, 3, 11)],
            factor=4,
        )


def heads(dtype: torch.dtype) -> list[Tensor]:
    student = torch.randn(2, 6, 32), torch.randn(23, 32) / 2
    teacher = torch.randn(2, 6, 16), torch.randn(23, 16)
    return [x.to(dtype) for x in (*student, *teacher)]


@pytest.mark.parametrize("items", [None, torch.tensor(20.0)], ids=["mean", "items"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "autocast"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_chunked_divergence_loss(beta: float, precision: str, items: Tensor | None) -> None:
    """With biases, scales and caps. In 16 bits TRL rounds the gradient of the logits, and fastkd does not."""
    mask = torch.tensor([[1, 1, 0, 1, 1, 0], [1, 0, 0, 1, 1, 1]])
    bias = torch.randn(23), torch.randn(23)
    of_heads = [x.clone().requires_grad_() for x in bias]

    def both(hs: Tensor, ws: Tensor, ht: Tensor, wt: Tensor, loss: Any) -> Tensor:
        scales = {"student_logit_scale": 0.7, "teacher_logit_scale": 1.3, "temperature": 1.4}
        caps = {"student_final_logit_softcapping": 20.0}
        biases = {"student_lm_head_bias": of_heads[0], "teacher_lm_head_bias": of_heads[1]}
        value, entropy, tokens = loss(hs, ht, ws, wt, mask, beta, items, **scales, **caps, **biases)
        assert tokens == mask.sum()
        entropies.append(entropy)
        return value

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast")
    entropies: list[Tensor] = []
    with autocast:
        assert_alike(
            lambda *x: both(*x, adapter.chunked_divergence_loss),
            lambda *x: both(*x, distillation._chunked_divergence_loss),
            heads(torch.bfloat16 if precision == "bfloat16" else torch.float32),
            factor=1000 if precision == "autocast" else 4,  # the gradients are float32 under autocast
        )
    torch.testing.assert_close(*entropies)
    assert of_heads[0].grad is not None and of_heads[1].grad is None


def test_a_teacher_that_wants_gradients_gets_none() -> None:
    hs, ws, ht, wt = (x.requires_grad_() for x in heads(torch.float32))
    bias = torch.randn(23, requires_grad=True)
    mask = torch.ones(2, 6)
    adapter.chunked_divergence_loss(hs, ht, ws, wt, mask, 0.5, teacher_lm_head_bias=bias)[0].backward()
    assert hs.grad is not None and ws.grad is not None
    assert ht.grad is None and wt.grad is None and bias.grad is None


def test_no_token_counts() -> None:
    hs, ws, ht, wt = (x.requires_grad_() for x in heads(torch.float32))
    loss, entropy, tokens = adapter.chunked_divergence_loss(hs, ht, ws, wt, torch.zeros(2, 6), 0.5)
    loss.backward()
    assert loss.item() == entropy.item() == tokens.item() == 0
    assert hs.grad is not None and not hs.grad.any()
    assert ws.grad is not None and not ws.grad.any()


def test_masked_rows_may_hold_anything() -> None:
    hs, ws, ht, wt = heads(torch.float32)
    mask = torch.ones(2, 6)
    mask[0, 2] = 0
    right = adapter.chunked_divergence_loss(hs, ht, ws, wt, mask, 1.0)[0]
    hs[0, 2], ht[0, 2] = torch.nan, torch.inf
    assert torch.equal(adapter.chunked_divergence_loss(hs, ht, ws, wt, mask, 1.0)[0], right)


def test_a_head_of_which_each_process_has_a_part(tmp_path: Path) -> None:
    """FSDP2 makes the weights ``DTensor``; the gradient of the student's is one, too."""
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    hs, ws, ht, wt = heads(torch.float32)
    mask = torch.ones(2, 6)
    right = ws.clone().requires_grad_()
    loss = adapter.chunked_divergence_loss(hs, ht, right, wt, mask, 0.5)[0]
    loss.backward()
    init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        sharded = [distribute_tensor(x, mesh, [Shard(0)]).requires_grad_() for x in (ws, wt)]
        value = adapter.chunked_divergence_loss(hs, ht, *sharded, mask, 0.5)[0]
        value.backward()
        torch.testing.assert_close(value, loss)
        torch.testing.assert_close(sharded[0].grad.full_tensor(), right.grad)
        assert sharded[1].grad is None
    finally:
        destroy_process_group()


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, tiny.VOCAB)}}
    plain = Tokenizer(models.WordLevel(words, "<eos>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>")


COMMON: dict[str, Any] = dict(
    max_steps=3,
    per_device_train_batch_size=2,
    learning_rate=1e-3,
    logging_steps=1,
    save_strategy="no",
    report_to="none",
    disable_tqdm=True,
    use_cpu=True,
    bf16=False,
    gradient_checkpointing=False,
)


def gkd_trainer(folder: Path, kind: Any = gkd.GKDTrainer) -> Any:
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        ids = torch.tensor([row["input_ids"] for row in rows])
        labels = ids.clone()
        labels[0, :4], labels[1, :2] = -100, -100
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    ids = torch.randint(2, tiny.VOCAB, (12, 9), generator=torch.Generator().manual_seed(1))
    rows = Dataset.from_dict({"input_ids": ids.tolist()})
    args = GKDConfig(output_dir=str(folder), lmbda=0.0, gradient_accumulation_steps=2, **COMMON)
    models = tiny.llama(0), tiny.llama(1)
    return kind(*models, args, collate, rows, processing_class=tokenizer())


def distillation_trainer(folder: Path, kind: Any = distillation.DistillationTrainer) -> Any:
    from datasets import Dataset
    from trl import DistillationConfig

    args = DistillationConfig(
        output_dir=str(folder), max_completion_length=6, beta=0.5, temperature=0.8, **COMMON
    )
    rows = Dataset.from_dict({"prompt": ["w3 w4 w5", "w7", "w9 w11", "w2 w3 w4 w5"] * 3})
    return kind(tiny.llama(0), tiny.llama(1, hidden=24), args, rows, processing_class=tokenizer())


@pytest.mark.slow
@pytest.mark.parametrize("make", [gkd_trainer, distillation_trainer])
def test_training_is_the_same(make: Any, tmp_path: Path) -> None:
    """Three steps with TRL's loss and with fastkd's log the same losses and end with the same weights."""
    logs, weights, losses = [], [], []
    for fused in (False, True):
        trainer = make(tmp_path)
        if fused:
            assert adapter.use_fastkd(trainer) is trainer
        torch.manual_seed(0)
        trainer.train()
        logs.append([row for row in trainer.state.log_history if "loss" in row])
        weights.append([x.detach().clone() for x in trainer.model.parameters()])
        losses.append([row["loss"] for row in logs[-1]])
    assert len(losses[0]) == 3 and min(losses[0]) > 1e-3
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    entropies = [[row.get("entropy", 0.0) for row in log] for log in logs]  # GKDTrainer logs none
    assert entropies[1] == pytest.approx(entropies[0], rel=1e-4)
    for a, b in zip(*weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5)


@pytest.mark.slow
def test_only_the_given_trainer_changes(tmp_path: Path) -> None:
    before = distillation._chunked_divergence_loss, distillation.DistillationTrainer._compute_loss
    trainer, other = distillation_trainer(tmp_path), distillation_trainer(tmp_path)
    adapter.use_fastkd(adapter.use_fastkd(trainer))  # a second call changes nothing
    scope = trainer._compute_loss.__func__.__globals__
    assert scope["_chunked_divergence_loss"] is adapter.chunked_divergence_loss
    assert "_compute_loss" not in vars(other)
    after = distillation._chunked_divergence_loss, distillation.DistillationTrainer._compute_loss
    assert after == before


@pytest.mark.slow
def test_a_class_changes_all_of_its_trainers(tmp_path: Path) -> None:
    class Gkd(gkd.GKDTrainer):  # type: ignore[misc, name-defined]
        pass

    class Distillation(distillation.DistillationTrainer):  # type: ignore[misc, name-defined]
        pass

    adapter.use_fastkd(Gkd)
    adapter.use_fastkd(Distillation)
    assert gkd_trainer(tmp_path, Gkd).generalized_jsd_loss is Gkd.generalized_jsd_loss
    assert Gkd.generalized_jsd_loss is not gkd.GKDTrainer.generalized_jsd_loss
    trainer = distillation_trainer(tmp_path, Distillation)
    scope = trainer._compute_loss.__func__.__globals__
    assert scope["_chunked_divergence_loss"] is adapter.chunked_divergence_loss


def test_other_trainers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"fastkd\.integrations\.trl does not take a object: pass a GKDTr"):
        adapter.use_fastkd(object())

    class OwnStep(distillation.DistillationTrainer):  # type: ignore[misc, name-defined]
        def _compute_loss(self, *inputs: Any) -> Any:
            return super()._compute_loss(*inputs)

    class OwnLoss(gkd.GKDTrainer):  # type: ignore[misc, name-defined]
        generalized_jsd_loss = staticmethod(lambda *inputs, **options: inputs[0].sum())

    class WithMore(distillation.DistillationTrainer):  # type: ignore[misc, name-defined]
        def compute_loss(self, *inputs: Any, **options: Any) -> Any:
            return super().compute_loss(*inputs, **options)

    adapter.use_fastkd(WithMore)  # it adds to TRL's loss
    server = pytest.importorskip("trl.experimental.server_distillation").ServerDistillationTrainer
    with pytest.raises(Unsupported, match="does not take a ServerDistillationTrainer, whose loss"):
        adapter.use_fastkd(server)

    for trainer, remedy in ((OwnStep, "use_fastkd\\(DistillationTrainer\\)"), (OwnLoss, "GKDTrainer")):
        with pytest.raises(Unsupported, match=f"with its own .*{remedy}"):
            adapter.use_fastkd(trainer)


def test_a_version_without_the_function_is_refused() -> None:
    def step(self: Any) -> int:
        return 1

    with pytest.raises(Unsupported, match="does not take the DistillationTrainer of this version"):
        adapter._compute_loss(step)  # type: ignore[arg-type]


@pytest.mark.parametrize("side", [0, 1])
def test_partitioned_heads_are_refused(side: int) -> None:
    hs, ws, ht, wt = heads(torch.float32)
    (ws, wt)[side].ds_id = 3  # type: ignore[attr-defined]
    with pytest.raises(Unsupported, match="ZeRO-3 has partitioned: use ZeRO-2"):
        adapter.chunked_divergence_loss(hs, ht, ws, wt, torch.ones(2, 6), 0.5)
