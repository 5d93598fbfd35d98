"""Check the errors that wrong calls raise before they change any memory."""

from __future__ import annotations

import pytest
import torch

import fastkd

S, T, Y = torch.randn(3, 10), torch.randn(3, 10), torch.tensor([1, 2, 3])


@pytest.mark.parametrize(
    ("error", "match", "args", "options"),
    [
        (ValueError, "did you mean 'forward_kl'", (S, T), {"divergence": "forwardkl"}),
        (ValueError, "did you mean 'mean'", (S, T), {"reduction": "men"}),
        (ValueError, "did you mean 'native'", (S, T), {"backend": "nativ"}),
        (ValueError, "vocab_size=10", (S, torch.randn(3, 12)), {}),
        (ValueError, "leading shape", (S, torch.randn(4, 10)), {}),
        (ValueError, "leading shape", (S, T, torch.tensor([1, 2])), {}),
        (ValueError, "leading shape", (S, T), {"token_weights": torch.ones(2)}),
        (ValueError, "needs labels", (S, T), {"kd_ratio": 0.5}),
        (ValueError, "kd_ratio", (S, T, Y), {"kd_ratio": 1.5}),
        (ValueError, "kd_ratio", (S, T, Y), {"kd_ratio": float("nan")}),
        (ValueError, "temperature", (S, T), {"temperature": 0.0}),
        (ValueError, "temperature", (S, T), {"temperature": float("inf")}),
        (ValueError, "temperature", (S, T), {"temperature": 1e16}),
        (ValueError, "teacher_temperature", (S, T), {"teacher_temperature": -1.0}),
        (ValueError, "label_smoothing", (S, T, Y), {"label_smoothing": -0.1}),
        (ValueError, "beta", (S, T), {"divergence": "jsd", "beta": 1.1}),
        (ValueError, "vocab_size", (S, T), {"vocab_size": 0}),
        (ValueError, "vocab_size", (S, T), {"vocab_size": 11}),
        (ValueError, "num_items", (S, T), {"reduction": "sum", "num_items": 3}),
        (ValueError, "num_items", (S, T), {"num_items": torch.tensor([3])}),
        (ValueError, "num_items", (S, T), {"num_items": -1}),
        (ValueError, "non-empty", (torch.zeros(3, 0), torch.zeros(3, 0)), {}),
        (ValueError, "non-empty", (torch.tensor(1.0), torch.tensor(1.0)), {}),
        (ValueError, "no gradient flows", (S, T), {"token_weights": torch.ones(3, requires_grad=True)}),
        (TypeError, "int64", (S, T, Y.int()), {}),
        (TypeError, "int64", (S, T, Y.float()), {}),
        (TypeError, "float32, bfloat16", (S.long(), T), {}),
        (TypeError, "float32, bfloat16", (S, T.to(torch.complex64)), {}),
        (TypeError, "must be a tensor", (S, [1.0]), {}),
        (TypeError, "Python number", (S, T), {"temperature": "2"}),
        (TypeError, "vocab_size must be an int", (S, T), {"vocab_size": 5.0}),
        (IndexError, "label 10 at token 1", (S, T, torch.tensor([1, 10, 2])), {"kd_ratio": 0.5}),
        (IndexError, "label -1 at token 0", (S, T, torch.tensor([-1, 1, 2])), {"kd_ratio": 0.5}),
        (IndexError, "label 7", (S, T, torch.tensor([1, 7, 2])), {"vocab_size": 7}),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_wrong_calls(error, match, args, options) -> None:
    before = [x.clone() if isinstance(x, torch.Tensor) else x for x in args]
    with pytest.raises(error, match=match):
        fastkd.kd_loss(*args, **options)
    for now, then in zip(args, before, strict=True):
        if isinstance(now, torch.Tensor):
            assert torch.equal(now, then)


@pytest.mark.parametrize(
    ("error", "match", "args", "options"),
    [
        (ValueError, "student_weight", (torch.randn(3, 4), torch.randn(9, 5), torch.randn(3, 9)), {}),
        (
            ValueError,
            "student_bias",
            (torch.randn(3, 4), torch.randn(9, 4), torch.randn(3, 9)),
            {"student_bias": T},
        ),
        (ValueError, "vocab_size=8", (torch.randn(3, 4), torch.randn(9, 4), torch.randn(3, 8)), {}),
        (
            ValueError,
            "chunk_size",
            (torch.randn(3, 4), torch.randn(9, 4), torch.randn(3, 9)),
            {"chunk_size": 0},
        ),
        (
            ValueError,
            "logit_softcap",
            (torch.randn(3, 4), torch.randn(9, 4), T[:, :9]),
            {"logit_softcap": 0.0},
        ),
        (TypeError, "cast one", (torch.randn(3, 4).half(), torch.randn(9, 4), torch.randn(3, 9)), {}),
        (
            ValueError,
            "teacher_weight",
            (
                torch.randn(3, 4),
                torch.randn(9, 4),
                fastkd.HiddenTeacher(torch.randn(3, 6), torch.randn(9, 5)),
            ),
            {},
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_wrong_linear_calls(error, match, args, options) -> None:
    with pytest.raises(error, match=match):
        fastkd.linear_kd_loss(*args, **options)


def test_no_teacher_is_needed_at_kd_ratio_0() -> None:
    """The teacher may be None only at kd_ratio=0."""
    with pytest.raises(TypeError, match="must be a tensor"):
        fastkd.kd_loss(S, None, Y, kd_ratio=0.5)
    expected = torch.nn.functional.cross_entropy(S, Y)
    torch.testing.assert_close(fastkd.kd_loss(S, None, Y, kd_ratio=0), expected)


@pytest.mark.parametrize("module", [fastkd.KDLoss, fastkd.LinearKDLoss])
@pytest.mark.parametrize(
    ("error", "match", "options"),
    [
        (TypeError, "no option 'divergance'.*did you mean 'divergence'", {"divergance": "jsd"}),
        (ValueError, "did you mean 'jsd'", {"divergence": "jds"}),
        (ValueError, "temperature", {"temperature": -1.0}),
        (ValueError, "beta", {"divergence": "jsd", "beta": 2.0}),
        (ValueError, "reduction", {"reduction": "average"}),
        (ValueError, "backend", {"backend": "cuda"}),
    ],
    ids=str,
)
def test_modules_check_their_options(module, error, match, options) -> None:
    with pytest.raises(error, match=match):
        module(**options)


def test_each_module_has_its_own_options() -> None:
    fastkd.LinearKDLoss(chunk_size=3, logit_softcap=30.0)
    with pytest.raises(TypeError, match="kd_loss has no option 'chunk_size'"):
        fastkd.KDLoss(chunk_size=3)
    fastkd.KDLoss(inplace=True)
    with pytest.raises(TypeError, match="linear_kd_loss has no option 'inplace'"):
        fastkd.LinearKDLoss(inplace=True)


def test_a_missing_backend_states_the_reason_and_the_remedy() -> None:
    if torch.cuda.is_available():
        pytest.skip("says nothing where it can run")
    from fastkd.backends.triton import TritonBackend

    reason = TritonBackend().missing(torch.device("cpu"), torch.float32)
    if reason is None:
        pytest.skip("the interpreter is on")
    with pytest.raises(
        fastkd.BackendUnavailable, match="TRITON_INTERPRET|pip install triton|needs? Triton 3.4"
    ):
        fastkd.kd_loss(S, T, backend="triton")


def test_everything_after_labels_is_keyword_only() -> None:
    with pytest.raises(TypeError):
        fastkd.kd_loss(S, T, Y, 0.5)
    with pytest.raises(TypeError):
        fastkd.linear_kd_loss(S, T, S, Y, None)


def test_the_report_names_every_backend() -> None:
    report = fastkd.available_backends()
    assert report == fastkd.backends()
    assert report["reference:cpu"] == "available" and report["native:cpu"] == "available"
    assert {name.split(":")[0] for name in report} == {"native", "triton", "reference"}
    assert all(report.values())
