"""One rank of test_vocab_parallel.py: compare the loss on its own columns with the whole vocabulary's.

Every rank makes the same tensors, takes its own columns, and raises if a result is wrong.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys

import torch
import torch.distributed as dist
from support.arithmetic import without_float64
from support.closeness import assert_gradient
from support.interpreter import patch_once
from support.oracle import Sparse, kd_loss as oracle_loss, metrics as expected_metrics, reference_gradients
from torch import Tensor

import fastkd
from fastkd.backends import record
from fastkd.divergences import DIVERGENCES

# Columns per rank: equal, unequal, and with an empty shard.
WIDTHS = {2: [(70, 70), (33, 107), (0, 140)], 4: [(35, 35, 35, 35), (1, 64, 0, 75)]}
PARAMETERS = {
    "alpha": [{"alpha": -0.5}, {"alpha": 2.0}],
    "renyi": [{"alpha": 0.5}, {"alpha": 2.0}],
    "alpha_beta": [{"alpha": 0.2, "beta": 0.7}, {"alpha": -0.5, "beta": 2.0}],
    "jsd": [{"beta": 0.3}],
}
TEMPERATURES = [{"temperature": 2.0}, {"temperature": 1.3, "teacher_temperature": 0.8}]


class Rank:
    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.index, self.size = dist.get_rank(), dist.get_world_size()
        self.group = dist.group.WORLD
        torch.manual_seed(0)
        self.s, self.t = torch.randn(2, 3, 140) * 2, torch.randn(2, 3, 140) * 2
        self.s[..., 60:75] = self.t[..., 60:75] = -float("inf")
        self.labels = torch.tensor([[0, 139, 34], [-100, 33, 107]])
        self.upstream = torch.randn(2, 3)

    def mine(self, widths: tuple[int, ...]) -> slice:
        return slice(sum(widths[: self.index]), sum(widths[: self.index + 1]))

    def options(self) -> dict[str, object]:
        return {"group": self.group, "backend": self.backend}

    def check(self, widths: tuple[int, ...], labels: Tensor | None, **options: object) -> None:
        """Compare the shard's value, gradients and metrics with those of the whole vocabulary."""
        cut = self.mine(widths)
        s, t = (x[..., cut].clone().requires_grad_() for x in (self.s, self.t))
        loss, found = fastkd.kd_loss(s, t, labels, return_metrics=True, **options, **self.options())
        loss.backward()
        expected, by_s, by_t = reference_gradients(self.s, self.t, labels, **options)
        torch.testing.assert_close(loss.detach().double(), expected, rtol=1e-6, atol=2e-6)
        # The bound is relative to the gradient's norm, so the other shards' columns are filled in first.
        for ours, theirs in ((s.grad, by_s), (t.grad, by_t)):
            whole = torch.zeros_like(self.s)
            whole[..., cut] = ours
            assert_gradient(whole + theirs.float() * (1 - self.mask(cut)), theirs, factor=4)
        parameters = {k: v for k, v in options.items() if k in ("alpha", "beta", "divergence", "kd_ratio")}
        parameters |= {k: v for k, v in options.items() if "temperature" in k or k == "label_smoothing"}
        # An entropy is a difference of numbers that may be as large as the logits.
        largest = max(float(x[torch.isfinite(x)].abs().max()) for x in (self.s, self.t))
        atol = max(3e-6, 6e-8 * largest)
        for name, value in expected_metrics(self.s, self.t, labels, **parameters).items():
            torch.testing.assert_close(
                getattr(found, name).double(), value.double(), rtol=1e-5, atol=atol, equal_nan=True
            )
        everyone = [torch.zeros_like(loss) for _ in range(self.size)]
        dist.all_gather(everyone, loss.detach())
        assert all(torch.equal(x, everyone[0]) for x in everyone), "ranks disagree on the loss"

    def mask(self, cut: slice) -> Tensor:
        mask = torch.zeros(140)
        mask[cut] = 1
        return mask

    def dense(self) -> None:
        # Each case takes seconds in Triton's interpreter.
        few = slice(-1, None) if self.backend == "triton" else slice(None)
        for divergence in DIVERGENCES:
            cases = itertools.product(
                PARAMETERS.get(divergence, [{}])[few], TEMPERATURES[few], WIDTHS[self.size][-2:][few]
            )
            for parameters, temperatures, widths in cases:
                options = {"divergence": divergence, "kd_ratio": 0.6, **parameters, **temperatures}
                self.check(widths, self.labels, **options)
        for widths in WIDTHS[self.size]:
            self.check(widths, self.labels, kd_ratio=0.0, z_loss=1e-3)
            self.check(widths, None, z_loss=1e-3)
        self.s, s = self.s.clamp(min=-9), self.s  # label smoothing over -inf is infinite
        self.check(WIDTHS[self.size][0], self.labels, kd_ratio=0.5, label_smoothing=0.2)
        for widths in WIDTHS[self.size][:2]:  # with four ranks, a label may be the only column of its shard
            self.check(widths, self.labels, divergence="decoupled", kd_ratio=0.5, label_smoothing=0.2)
        self.s = s

    def distant_rows(self) -> None:
        """Student and teacher are nearly disjoint, and their likely columns are on different ranks."""
        s, t = torch.zeros(1, 140), torch.zeros(1, 140)
        s[0, 3], t[0, 137] = 400.0, 400.0
        cut = self.mine(WIDTHS[self.size][0])
        for alpha in (0.5, 2.0):
            loss = fastkd.kd_loss(
                s[:, cut].clone(), t[:, cut].clone(), divergence="renyi", alpha=alpha, **self.options()
            )
            expected = oracle_loss(s.double(), t.double(), divergence="renyi", alpha=alpha)
            torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
        self.s, self.t, before = s[None], t[None], (self.s, self.t)
        for temperature in (1.0, 7.0):
            self.check(WIDTHS[self.size][0], None, divergence="log_acceptance", temperature=temperature)
        self.s, self.t = before

    def extreme_rows(self) -> None:
        """Logits near the ends of float32's range, and sides that differ by a constant."""
        lowest = torch.finfo(torch.float32).min
        torch.manual_seed(2)
        # Logits are on a grid that float32 represents exactly after the shifts, so float64 sees the same
        # distributions.
        s, t = ((torch.randn(6, 140) * 512).round() / 512 for _ in range(2))
        s[0] = (s[0] * 2).round() * 64 + 1e9
        t[1] += 1000.0
        s[2], t[3] = lowest, lowest
        s[4, 40:90] = t[4, 40:90] = lowest
        s[5, 0] = 1e35
        cut = self.mine(WIDTHS[self.size][1])
        labels = torch.tensor([0, 139, 3, 4, 5, 100])
        names = DIVERGENCES if self.backend != "triton" else ("forward_kl", "jsd", "hellinger", "decoupled")
        for divergence, temperature in itertools.product(names, (1.0, 0.3)):
            options = {"divergence": divergence, "temperature": temperature, "kd_ratio": 0.5}
            options["reduction"] = "none"
            a, b = (x[:, cut].clone().requires_grad_() for x in (s, t))
            loss, metrics = fastkd.kd_loss(a, b, labels, return_metrics=True, **options, **self.options())
            loss.sum().backward()
            expected, by_s, by_t = reference_gradients(s, t, labels, **options)
            # An unbounded divergence may exceed float32, and has no gradients to compare then.
            rows = expected < 1e30
            assert loss.isfinite()[rows].all() and not loss.isnan().any(), (divergence, temperature, loss)
            if rows.all():
                assert all(bool(x.isfinite()) for x in metrics), (divergence, temperature, metrics)
            if DIVERGENCES[divergence].splits_label:
                # Next to a very large logit at the label, float64 has no digits left for the other columns.
                rows[0] = rows[5] = False
            apart = 2e-7 * expected.abs()[:, None] / temperature  # by_t is a difference of two such ratios
            for ours, exact, noise in (
                (loss[:, None], expected[:, None], 0.0),
                (a.grad, by_s[:, cut], 0.0),
                (b.grad, by_t[:, cut], apart),
            ):
                near = (ours - exact).abs() <= 1e-5 * exact.abs() + 5e-5 + noise
                assert near[rows].all(), (divergence, temperature, ours, exact)

    def vocabulary(self) -> None:
        """Padding after the vocabulary, in the last shards, and labels out of range."""
        widths = WIDTHS[self.size][0]
        cut, padded = self.mine(widths), self.s.clone()
        padded[..., 110:] = float("nan")
        x = padded[..., cut].clone().requires_grad_()
        labels = self.labels.clamp(max=109)
        loss = fastkd.kd_loss(
            x, self.t[..., cut].clone(), labels, kd_ratio=0.5, vocab_size=110, **self.options()
        )
        loss.backward()
        expected, by_s, _ = reference_gradients(self.s, self.t, labels, kd_ratio=0.5, vocab_size=110)
        torch.testing.assert_close(loss.detach().double(), expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(x.grad.double(), by_s[..., cut], rtol=1e-4, atol=1e-6)
        try:
            fastkd.kd_loss(x.detach(), x.detach(), self.labels + 139, **self.options())
        except IndexError as error:
            assert "outside [0, 140)" in str(error)
        else:
            raise AssertionError("a label outside the whole vocabulary was accepted")

    def ignore_index_among_the_columns(self) -> None:
        """``ignore_index`` may equal a column, or a label minus its shard's first column."""
        cut = self.mine(WIDTHS[self.size][0])
        labels = torch.tensor([[0, 1, 35], [36, 70, 139]])
        for ignore_index in (0, 1, 35, -1):
            got = fastkd.kd_loss(
                self.s[..., cut].clone(),
                self.t[..., cut].clone(),
                labels,
                kd_ratio=0.5,
                ignore_index=ignore_index,
                **self.options(),
            )
            expected = oracle_loss(
                self.s.double(), self.t.double(), labels, kd_ratio=0.5, ignore_index=ignore_index
            )
            torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-6)

    def sparse(self) -> None:
        logprobs = torch.log(torch.softmax(torch.randn(2, 3, 7), -1) * 0.8)
        indices = torch.stack([torch.randperm(60)[:7] for _ in range(6)]).view(2, 3, 7)
        indices[..., ::2] += 75  # so that both halves of the vocabulary have entries
        for widths in WIDTHS[self.size]:
            cut = self.mine(widths)
            for divergence, tail in (
                ("forward_kl", "renormalize"),
                ("jsd", "renormalize"),
                ("reverse_kl", "bucket"),
                ("forward_kl", "drop"),
            ):
                options = {"divergence": divergence, "kd_ratio": 0.5}
                x, w = self.s[..., cut].clone().requires_grad_(), logprobs.clone().requires_grad_()
                teacher = fastkd.SparseTeacher(indices, w, tail)
                loss = fastkd.kd_loss(x, teacher, self.labels, **options, **self.options())
                loss.backward()
                expected, by_s, by_t = reference_gradients(
                    self.s, Sparse(indices, logprobs, tail), self.labels, **options
                )
                torch.testing.assert_close(loss.detach().double(), expected, rtol=1e-6, atol=2e-6)
                torch.testing.assert_close(x.grad.double(), by_s[..., cut], rtol=1e-4, atol=1e-6)
                torch.testing.assert_close(w.grad.double(), by_t, rtol=1e-4, atol=1e-6)

    def linear(self) -> None:
        for widths, reduction in itertools.product(WIDTHS[self.size], ("mean", "none")):
            cut = self.mine(widths)
            torch.manual_seed(1)
            hidden, head = torch.randn(2, 3, 12), torch.randn(140, 12) * 0.5
            wide, teacher_head, bias = torch.randn(2, 3, 20), torch.randn(140, 20) * 0.4, torch.randn(140)
            h, w, b = hidden.clone().requires_grad_(), head[cut].clone().requires_grad_(), bias[cut].clone()
            loss = fastkd.linear_kd_loss(
                h,
                w,
                fastkd.HiddenTeacher(wide, teacher_head[cut].clone()),
                self.labels,
                student_bias=b,
                kd_ratio=0.5,
                temperature=2.0,
                divergence="jsd",
                reduction=reduction,
                chunk_size=4,
                **self.options(),
            )
            upstream = self.upstream if reduction == "none" else torch.ones(())
            loss.backward(upstream)
            h64, w64 = hidden.double().requires_grad_(), head.double().requires_grad_()
            exact = oracle_loss(
                h64 @ w64.t() + bias.double(),
                wide.double() @ teacher_head.double().t(),
                self.labels,
                kd_ratio=0.5,
                temperature=2.0,
                divergence="jsd",
                reduction=reduction,
            )
            exact.backward(upstream.double())
            torch.testing.assert_close(loss.detach().double(), exact.detach(), rtol=2e-6, atol=1e-6)
            torch.testing.assert_close(w.grad.double(), w64.grad[cut], rtol=1e-4, atol=2e-6)
            # Each rank has a part of the sum that is the hidden states' gradient.
            dist.all_reduce(h.grad)
            torch.testing.assert_close(h.grad.double(), h64.grad, rtol=1e-4, atol=2e-6)

    def traffic(self) -> None:
        """The bytes sent over the network are those that the documentation states."""
        sent = []
        name = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
        original = getattr(dist, name)

        def watched(out: Tensor, x: Tensor, **options: object) -> None:
            sent.append(x.numel() * x.element_size())
            original(out, x, **options)

        setattr(dist, name, watched)
        cut = self.mine(WIDTHS[self.size][0])
        try:
            fastkd.kd_loss(self.s[..., cut].clone(), self.t[..., cut].clone(), **self.options())
        finally:
            setattr(dist, name, original)
        from fastkd.spec import LossSpec

        spec = LossSpec("forward_kl", 0.5, 0.5, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, -100, 140)
        if self.backend != "reference":  # the reference backend sends each sum of its formulas separately
            assert sum(sent) == 8 + 6 * record.bytes_per_token(
                spec, itemsize=4 if self.backend == "triton" else 8
            )

    def dtensor(self) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import Shard, distribute_tensor

        mesh = init_device_mesh("cpu", (self.size,))
        weight = distribute_tensor(torch.randn(140, 12), mesh, [Shard(0)])
        logits = distribute_tensor(self.s, mesh, [Shard(2)])
        for call in (
            lambda: fastkd.linear_kd_loss(torch.randn(2, 3, 12), weight, self.t),
            lambda: fastkd.kd_loss(logits, self.t),
            lambda: fastkd.kd_loss(self.s, logits),
        ):
            try:
                call()
            except TypeError as error:
                assert "full_tensor()" in str(error) and "to_local()" in str(error)
            else:
                raise AssertionError("a DTensor was accepted")
        loss = fastkd.linear_kd_loss(
            torch.ones(2, 3, 12),
            weight.to_local(),
            self.t[..., self.mine(WIDTHS[self.size][0])].clamp(min=-9).clone(),
            **self.options(),
        )
        assert torch.isfinite(loss)

    def compiled(self) -> None:
        cut = self.mine(WIDTHS[self.size][0])
        s, t = self.s[..., cut].clone(), self.t[..., cut].clone()

        def step(x: Tensor) -> Tensor:
            return fastkd.kd_loss(x, t, temperature=2.0, **self.options())

        torch.testing.assert_close(torch.compile(step, fullgraph=True, backend="aot_eager")(s), step(s))

    def run(self) -> None:
        self.dense()
        self.distant_rows()
        self.extreme_rows()
        self.vocabulary()
        self.ignore_index_among_the_columns()
        self.sparse()
        self.linear()
        self.traffic()
        if self.backend == "native":
            self.dtensor()
            self.compiled()


def main(rank: int, size: int, file: str, backends: list[str]) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=size)
    for backend in backends:
        with contextlib.nullcontext() if backend == "native" else without_float64():
            Rank(backend).run()
    dist.destroy_process_group()
    print("all equal")


if __name__ == "__main__":
    if "triton" in sys.argv[4:]:
        patch_once()
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
