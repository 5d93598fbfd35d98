"""Test ``use_fastkd`` for the distillation loss of Sentence Transformers, with the package itself."""

from __future__ import annotations

import pytest
import torch
from support.same_loss import assert_alike
from torch import Tensor, nn

from fastkd.errors import Unsupported
from fastkd.integrations.sentence_transformers import use_fastkd


def losses() -> object:
    pytest.importorskip("sentence_transformers")
    return pytest.importorskip("sentence_transformers.sentence_transformer.losses")


class Embed(nn.Module):
    """A model of sentence embeddings: a linear map of given vectors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.linear = nn.Linear(6, 4)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": self.linear(features["x"])}


TEMPERATURES = [{}, {"temperature": 2.5}, {"student_temperature": 2.0, "teacher_temperature": 0.7}]


@pytest.mark.parametrize("options", TEMPERATURES, ids=str)
def test_equals_the_package(options: dict[str, float]) -> None:
    kind = losses().DistillKLDivLoss  # type: ignore[attr-defined]
    theirs, ours = (kind(nn.Identity(), **options) for _ in range(2))
    assert use_fastkd(ours) is ours
    embeddings = [torch.randn(5, 8) for _ in range(4)]
    labels = 3 * torch.randn(5, 3)
    assert_alike(
        lambda *x: ours.compute_loss_from_embeddings(list(x), labels),
        lambda *x: theirs.compute_loss_from_embeddings(list(x), labels),
        embeddings,
    )
    assert ours.get_config_dict() == theirs.get_config_dict()


def test_the_forward_of_a_model() -> None:
    kind = losses().DistillKLDivLoss  # type: ignore[attr-defined]
    features, labels = [{"x": torch.randn(5, 6)} for _ in range(3)], torch.randn(5, 2)
    found = []
    for make in (kind, lambda model, **o: use_fastkd(kind(model, **o))):
        loss = make(Embed(), temperature=1.5)
        value = loss(features, labels)
        value.backward()
        found.append((value.detach(), loss.model.linear.weight.grad))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_scores_of_integers() -> None:
    kind = losses().DistillKLDivLoss  # type: ignore[attr-defined]
    embeddings, labels = [torch.randn(2, 8) for _ in range(3)], torch.tensor([[1, 3], [0, 2]])
    theirs = kind(nn.Identity()).compute_loss_from_embeddings(embeddings, labels)
    torch.testing.assert_close(
        use_fastkd(kind(nn.Identity())).compute_loss_from_embeddings(embeddings, labels), theirs
    )


def test_the_loss_of_sparse_encoders() -> None:
    pytest.importorskip("sentence_transformers")
    sparse = pytest.importorskip("sentence_transformers.sparse_encoder.losses")
    embeddings, labels = [torch.rand(4, 8) for _ in range(3)], torch.randn(4, 2)
    theirs, ours = (sparse.SparseDistillKLDivLoss(nn.Identity()) for _ in range(2))
    torch.testing.assert_close(
        use_fastkd(ours).compute_loss_from_embeddings(embeddings, labels),
        theirs.compute_loss_from_embeddings(embeddings, labels),
    )


def test_refusals() -> None:
    with pytest.raises(Unsupported, match=r"fastkd\.integrations\.sentence_transformers does not take a Emb"):
        use_fastkd(Embed())
    kind = losses().DistillKLDivLoss  # type: ignore[attr-defined]

    class Own(kind):  # type: ignore[misc, valid-type]
        def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
            return super().compute_loss_from_embeddings(embeddings, labels)

    with pytest.raises(Unsupported, match="does not take a Own with its own compute_loss_from_embeddings"):
        use_fastkd(Own(nn.Identity()))
    with pytest.raises(Unsupported, match="does not take one candidate"):
        use_fastkd(kind(nn.Identity())).compute_loss_from_embeddings([torch.ones(2, 3)] * 2, torch.ones(2, 1))
