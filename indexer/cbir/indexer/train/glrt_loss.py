"""The GLRT statistic as a loss: it trains embeddings whose likelihood ratio tells same-class pairs from others.

Two embeddings x, y with difference d = x - y.  H1, same class: d ~ N(0, S1); H0, any two: d ~ N(0, S0).  The log of
the likelihood ratio is

    s(x, y) = ½·dᵀ(S0⁻¹ − S1⁻¹)d + ½·(log|S0| − log|S1|),

positive where H1 explains the pair better.  Source: Zhang, Liu, Wang, Li, He, "GLRT-Based Metric Learning for Remote
Sensing Object Retrieval", arXiv 2410.05773 (GLRTML); the statistic itself is that of Koestinger et al., CVPR 2012.
After training, :func:`cbir.core.metric.projection.fit_glrt` learns the same metric in closed form on any gallery.

Choices made here, where the source leaves them open or does otherwise:

- The covariances are exponential moving averages over batches, and no gradient flows into them: the network can lower
  the loss only by moving embeddings, not by inflating the covariances.
- The statistic of a batch uses the covariances of the batches before it.  Its own would overfit: with fewer images than
  dimensions they explain its same-class pairs almost perfectly.
- Both get a ridge relative to their mean eigenvalue, 0.1 as in the closed form.  S1 is computed from deviations from
  the class means and S0 from deviations from the overall mean, both doubled, which equals averaging over all pairs.
- In D dimensions s grows like D and the logistic function would saturate.  So s is multiplied by a learnt factor, 1/√D
  at first, and a learnt offset is added.
- A pair is weighted by the probability, under the current statistic, that it is classified wrongly; no gradient flows
  through the weights.  Same-class and different-class pairs make up half of the loss each, whatever their numbers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["GlrtLoss"]


class GlrtLoss(nn.Module):
    """Logistic loss on the GLRT statistic over all pairs of a class-balanced batch.

    Args:
        width: Length D of an embedding.
        ridge: Added to the diagonal of both covariances, relative to their mean eigenvalue.
        momentum: Decay of the moving averages per batch; during the first batches plain means are used.
        hardness: Exponent of the pairs' weights; 0 weights all pairs equally.

    Attributes:
        within: (D, D) running estimate of S1, without ridge.
        total: (D, D) running estimate of S0, without ridge.
        log_scale: Logarithm of the learnt factor of the statistic.
        offset: The learnt offset of the scaled statistic.
    """

    within: Tensor
    total: Tensor
    batches: Tensor

    def __init__(self, width: int, ridge: float = 0.1, momentum: float = 0.98, hardness: float = 1.0) -> None:
        super().__init__()
        self.ridge, self.momentum, self.hardness = ridge, momentum, hardness
        self.log_scale = nn.Parameter(torch.tensor(-0.5 * math.log(width)))
        self.offset = nn.Parameter(torch.tensor(0.0))
        self.register_buffer("within", torch.eye(width))
        self.register_buffer("total", torch.eye(width))
        self.register_buffer("batches", torch.tensor(0))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            embeddings: (B, D), scaled as in retrieval, that is to unit length.
            labels: (B,) class numbers.

        Returns:
            A scalar.  In training mode the covariances are then updated with the batch.

        Raises:
            ValueError: The batch lacks same-class or different-class pairs.
        """
        # Inverse covariances need float32, so autocast is switched off.
        with torch.autocast(embeddings.device.type, enabled=False):
            z = embeddings.to(self.within.dtype)
            first, second = torch.triu_indices(len(z), len(z), offset=1, device=z.device)
            same = labels[first] == labels[second]
            if not same.any() or same.all():
                raise ValueError("a batch needs two images of one class and two classes: draw class-balanced batches")
            if self.training and self.batches == 0:
                self.update(z.detach(), labels)
            margin = self.log_scale.exp() * self.pair_statistics(z)[first, second] + self.offset
            loss: Tensor = 0.5 * (self._share(margin[same]) + self._share(-margin[~same]))
            if self.training:
                self.update(z.detach(), labels)
            return loss

    def _share(self, right: Tensor) -> Tensor:
        """Weighted mean logistic loss of pairs whose (signed) statistics ``right`` should be large."""
        weights = torch.sigmoid(-right.detach()) ** self.hardness
        return (weights * F.softplus(-right)).sum() / weights.sum().clamp(min=1e-12)

    def statistic(self, differences: Tensor) -> Tensor:
        """The statistic s of each row of (N, D) differences x - y."""
        within, total = self._factors()
        quadratic = _squared_norms(within, differences) - _squared_norms(total, differences)
        return _log_determinant(total) - _log_determinant(within) - 0.5 * quadratic

    def pair_statistics(self, z: Tensor) -> Tensor:
        """The symmetric (B, B) matrix of s for all pairs of rows of (B, D)."""
        within, total = self._factors()
        centred = z - z.mean(dim=0)  # the differences stay the same, and smaller squares lose fewer digits
        quadratic = _squared_distances(within, centred) - _squared_distances(total, centred)
        return _log_determinant(total) - _log_determinant(within) - 0.5 * quadratic

    @torch.no_grad()
    def update(self, z: Tensor, labels: Tensor) -> None:
        """Update the covariances with a batch (B, D): plain means over the first batches, moving averages later."""
        classes, inverse, counts = torch.unique(labels, return_inverse=True, return_counts=True)
        members = F.one_hot(inverse, len(classes)).to(z)
        deviations = z - (members.T @ z / counts[:, None].to(z))[inverse]
        paired = counts[inverse] >= 2
        # Estimating a class mean takes one degree of freedom.
        freedom = max(1, int(paired.sum() - (counts >= 2).sum()))
        within = 2 * deviations[paired].T @ deviations[paired] / freedom
        centred = z - z.mean(dim=0)
        total = 2 * centred.T @ centred / (len(z) - 1)
        seen = int(self.batches)
        keep = min(self.momentum, seen / (seen + 1))
        self.within.mul_(keep).add_(within, alpha=1 - keep)
        self.total.mul_(keep).add_(total, alpha=1 - keep)
        self.batches.add_(1)

    def _factors(self) -> tuple[Tensor, Tensor]:
        """Lower Cholesky factors of S1 and S0 with their ridges."""
        return self._factor(self.within), self._factor(self.total)

    def _factor(self, covariance: Tensor) -> Tensor:
        width = len(covariance)
        ridge = self.ridge * covariance.trace() / width + 1e-12
        factor: Tensor = torch.linalg.cholesky(covariance + ridge * torch.eye(width).to(covariance))
        return factor


def _squared_norms(factor: Tensor, differences: Tensor) -> Tensor:
    """dᵀS⁻¹d of each row d, for S = L·Lᵀ."""
    white: Tensor = torch.linalg.solve_triangular(factor, differences.T, upper=False)
    return white.square().sum(dim=0)


def _squared_distances(factor: Tensor, z: Tensor) -> Tensor:
    """dᵀS⁻¹d for all pairs of the rows of z, as squared distances between whitened rows."""
    white = torch.linalg.solve_triangular(factor, z.T, upper=False).T
    squares = white.square().sum(dim=1)
    distances: Tensor = squares[:, None] + squares[None, :] - 2 * white @ white.T
    return distances


def _log_determinant(factor: Tensor) -> Tensor:
    """½·log|S| for S = L·Lᵀ."""
    return factor.diagonal().log().sum()
