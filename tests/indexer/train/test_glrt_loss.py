"""The GLRT loss against cases worked out by hand, finite differences, and the closed form of retrieval."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cbir.core.metric import fit_glrt
from cbir.indexer.train.glrt_loss import GlrtLoss
from cbir.indexer.train.validation import leave_one_out_map


def given(within: list[list[float]], total: list[list[float]], **options: float) -> GlrtLoss:
    """A loss in float64 with fixed covariances, scale 1 and, unless said otherwise, neither ridge nor hard pairs."""
    loss = GlrtLoss(len(within), **{"ridge": 0.0, "hardness": 0.0, **options}).double().eval()
    loss.within.copy_(torch.tensor(within))
    loss.total.copy_(torch.tensor(total))
    loss.log_scale.data.zero_()
    return loss


def soft(x: float) -> float:
    return math.log1p(math.exp(x))


def test_the_statistic_in_one_dimension() -> None:
    # ½·d²·(1/4 − 1) + ½·(ln 4 − ln 1)
    loss = given([[1.0]], [[4.0]])
    got = loss.statistic(torch.tensor([[0.0], [1.0], [-2.0]], dtype=torch.float64))
    assert got.tolist() == pytest.approx([math.log(2), math.log(2) - 0.375, math.log(2) - 1.5])


def test_the_statistic_in_two_dimensions() -> None:
    # S1 = [[2, 1], [1, 2]]: inverse [[2, -1], [-1, 2]] / 3, determinant 3; S0 = 4·I: determinant 16.
    loss = given([[2.0, 1.0], [1.0, 2.0]], [[4.0, 0.0], [0.0, 4.0]])
    got = loss.statistic(torch.tensor([[1.0, -1.0], [1.0, 1.0]], dtype=torch.float64))
    half_log = 0.5 * math.log(16 / 3)
    assert got.tolist() == pytest.approx([0.5 * (0.5 - 2) + half_log, 0.5 * (0.5 - 2 / 3) + half_log])


def test_the_ridge_is_relative_to_the_mean_eigenvalue() -> None:
    # S1 = diag(1, 3) gets 0.1 · 2 on its diagonal, S0 = diag(5, 5) gets 0.5.
    loss = given([[1.0, 0.0], [0.0, 3.0]], [[5.0, 0.0], [0.0, 5.0]], ridge=0.1)
    got = loss.statistic(torch.tensor([[1.0, 0.0]], dtype=torch.float64)).item()
    assert got == pytest.approx(0.5 * (1 / 5.5 - 1 / 1.2) + 0.5 * math.log(5.5 * 5.5 / (1.2 * 3.2)))


def test_the_loss_of_three_points_on_a_line() -> None:
    z, labels = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64), torch.tensor([0, 0, 1])
    same, far, near = math.log(2) - 0.375, math.log(2) - 3.375, math.log(2) - 1.5
    plain = given([[1.0]], [[4.0]])(z, labels).item()
    assert plain == pytest.approx(0.5 * soft(-same) + 0.5 * (soft(far) + soft(near)) / 2)
    # Hard pairs: the nearer stranger weighs more, by the probability that it is taken for one of the class.
    weights = [1 / (1 + math.exp(-s)) for s in (far, near)]
    strangers = (weights[0] * soft(far) + weights[1] * soft(near)) / sum(weights)
    hard = given([[1.0]], [[4.0]], hardness=1.0)(z, labels).item()
    assert hard == pytest.approx(0.5 * soft(-same) + 0.5 * strangers)
    assert hard > plain


def test_running_covariances() -> None:
    loss = GlrtLoss(1, momentum=0.9).double()
    labels = torch.tensor([0, 0, 1, 1])
    # Deviations from the class means are ±1 and ±2, with 4 − 2 degrees of freedom: S_w = 10 / 2; S_t = 131 / 3.
    loss.update(torch.tensor([[0.0], [2.0], [10.0], [14.0]], dtype=torch.float64), labels)
    assert (loss.within.item(), loss.total.item()) == pytest.approx((2 * 5, 2 * 131 / 3))
    # The second has half of the say, the third a third, and the twentieth a tenth: S_w = (0.5 + 0.5) / 2 = 0.5 each.
    more = torch.tensor([[0.0], [1.0], [2.0], [3.0]], dtype=torch.float64)
    loss.update(more, labels)
    assert (loss.within.item(), loss.total.item()) == pytest.approx(((10 + 1) / 2, (2 * 131 / 3 + 2 * 5 / 3) / 2))
    loss.update(more, labels)
    assert loss.within.item() == pytest.approx((10 + 1 + 1) / 3)
    for _ in range(16):
        loss.update(more, labels)
    before = loss.within.item()
    loss.update(more, labels)
    assert loss.within.item() == pytest.approx(0.9 * before + 0.1 * 1)


def test_a_batch_is_judged_by_those_before_it() -> None:
    torch.manual_seed(3)
    labels = torch.arange(8) % 2
    first, second = torch.randn(8, 4), torch.randn(8, 4)
    loss = GlrtLoss(4)
    loss(first, labels)
    judge = copy.deepcopy(loss).eval()
    torch.testing.assert_close(loss(second, labels), judge(second, labels))
    assert not torch.allclose(loss.within, judge.within)


def test_gradients_agree_with_finite_differences() -> None:
    torch.manual_seed(0)
    loss = given([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 1.5]], np.diag([4.0, 3.0, 5.0]).tolist(), ridge=0.1)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])

    def of(z: torch.Tensor, log_scale: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(loss, {"log_scale": log_scale, "offset": offset}, (z, labels))

    inputs = (torch.randn(6, 3), torch.tensor(-0.3), torch.tensor(0.2))
    assert torch.autograd.gradcheck(of, tuple(x.double().requires_grad_() for x in inputs))


def test_hard_pairs_weigh_but_do_not_pull() -> None:
    """The weights are constants in the gradient: with them fixed, autograd must find the same."""
    z = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 0, 1])
    loss = given([[1.0]], [[4.0]], hardness=1.0)
    (got,) = torch.autograd.grad(loss(z, labels), z)
    s = math.log(2) - 0.375 * (z - z.T).square()
    weights = torch.sigmoid(s.detach())[[0, 1], [2, 2]]
    strangers = (weights * F.softplus(s[[0, 1], [2, 2]])).sum() / weights.sum()
    (want,) = torch.autograd.grad(0.5 * F.softplus(-s[0, 1]) + 0.5 * strangers, z)
    torch.testing.assert_close(got, want)


def test_the_order_of_a_batch_does_not_matter() -> None:
    torch.manual_seed(1)
    z, labels = torch.randn(12, 5, dtype=torch.float64), torch.arange(12) % 3
    order = torch.randperm(12)
    one = GlrtLoss(5).double()
    other = copy.deepcopy(one)
    torch.testing.assert_close(one(z, labels), other(z[order], labels[order]))
    torch.testing.assert_close(one.within, other.within)


def test_it_is_the_metric_of_retrieval() -> None:
    """On one batch's covariances, the statistic is a constant minus half the squared distance under fit_glrt."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), 20)
    z = (rng.normal(size=(6, 8))[labels] + 0.3 * rng.normal(size=(120, 8))).astype(np.float32)
    loss = GlrtLoss(8).double()
    loss.update(torch.from_numpy(z).double(), torch.from_numpy(labels))
    differences = torch.from_numpy(rng.normal(size=(50, 8)))
    statistic = loss.statistic(differences) - loss.statistic(torch.zeros(1, 8, dtype=torch.float64))
    projected = differences.numpy() @ fit_glrt(z, labels).T.astype(np.float64)
    ratio = (projected**2).sum(axis=1) / -statistic.numpy()
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)


def test_embeddings_learn_to_be_told_apart() -> None:
    torch.manual_seed(2)
    labels = torch.arange(32) % 4
    # Eight dimensions of noise hide one that knows the class.
    inputs = torch.cat([labels[:, None].float(), 4 * torch.randn(32, 8)], dim=1)
    linear = torch.nn.Linear(9, 6)
    loss = GlrtLoss(6)
    optimiser = torch.optim.Adam([*linear.parameters(), *loss.parameters()], lr=0.02)

    def found() -> float:
        return leave_one_out_map(F.normalize(linear(inputs), dim=1).detach().numpy(), labels.numpy())

    before, losses = found(), []
    for _ in range(150):
        value = loss(F.normalize(linear(inputs), dim=1), labels)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        losses.append(value.item())
    assert losses[-1] < 0.7 * losses[0]
    assert found() > before + 0.3


def test_half_floats_and_narrow_batches() -> None:
    loss = GlrtLoss(4)
    z = torch.randn(8, 4, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(z, torch.arange(8) % 2)
    assert value.dtype == torch.float32
    value.backward()
    assert torch.isfinite(z.grad).all()
    for labels in (torch.zeros(8), torch.arange(8)):
        with pytest.raises(ValueError, match="class-balanced"):
            loss(z, labels)
