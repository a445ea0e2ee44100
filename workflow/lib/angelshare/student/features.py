"""Losses between a student's hidden states and a teacher's at the same positions.

``mse`` and ``cosine`` are sums over vectors, of which the caller divides by the number in the whole
optimizer step. ``cka`` is no sum: it compares what all vectors of the step span together. Its
statistics are sums, though, so that they add up over passes and processes, and the gradient of any
vector follows from them.

Shapes: N vectors of H elements on the student's side and W on the teacher's.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, linear

ROUNDING = 1e-12
"""What centring leaves of vectors that are all equal, as a share of their squares."""


def squared_errors(found_NW: Tensor, wanted_NW: Tensor, mean_square: float) -> Tensor:
    """Sum over vectors of the mean squared error, in units of the teacher's mean square.

    1 for each vector where the student predicts 0, whatever the size of the teacher's states.
    """
    return (found_NW - wanted_NW).square().mean(-1).sum() / (mean_square or 1.0)


def cosine_distances(found_NW: Tensor, wanted_NW: Tensor) -> Tensor:
    """Sum over vectors of 1 - cosine."""
    return (1 - cosine_similarity(found_NW, wanted_NW, dim=-1)).sum()


def projected(layer: nn.Linear, states_NH: Tensor) -> Tensor:
    """The states in the teacher's width, in float32 whatever the precision around."""
    with torch.autocast(states_NH.device.type, enabled=False):
        bias = None if layer.bias is None else layer.bias.float()
        return linear(states_NH.float(), layer.weight.float(), bias)


def make_projector(width: int, teacher_width: int, seed: int) -> nn.Linear:
    """A linear map from the student's width to the teacher's, its weights by ``seed`` alone."""
    layer = nn.Linear(width, teacher_width)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.normal_(0, width**-0.5, generator=generator)
        layer.bias.zero_()
    return layer


class CkaSums:
    """What linear CKA needs of vectors x [N, H] and y [N, W]: their sums and products, float64."""

    def __init__(self, sums: Iterable[Tensor]) -> None:
        self.sums = list(sums)
        count, x_H, y_W, xx_HH, yx_WH, yy_WW = self.sums
        n = count.clamp(min=1)
        self.mean_x, self.mean_y = x_H / n, y_W / n
        self.k_HH = xx_HH - torch.outer(self.mean_x, x_H)
        self.c_WH = yx_WH - torch.outer(self.mean_y, x_H)
        self.l_WW = yy_WW - torch.outer(self.mean_y, y_W)
        k, other = self.k_HH.norm(), self.l_WW.norm()
        self.varies = (k > ROUNDING * xx_HH.norm()) & (other > ROUNDING * yy_WW.norm())
        self.norms = torch.where(self.varies, k * other, 1.0)

    @classmethod
    def of(cls, x_NH: Tensor, y_NW: Tensor) -> CkaSums:
        """Those of some vectors."""
        x, y = x_NH.detach().double(), y_NW.double()
        count = x.new_tensor(float(len(x)))
        return cls([count, x.sum(0), y.sum(0), x.T @ x, y.T @ x, y.T @ y])

    def __add__(self, other: CkaSums) -> CkaSums:
        return CkaSums([a + b for a, b in zip(self.sums, other.sums, strict=True)])

    def loss(self) -> Tensor:
        """1 - linear CKA (Kornblith et al. 2019, arXiv:1905.00414): ‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖), X and Y
        centred, norms Frobenius'. 1 where one of the sides does not vary."""
        cka = self.c_WH.square().sum() / self.norms
        return 1 - torch.where(self.varies, cka, 0.0)

    def gradient(self, x_NH: Tensor, y_NW: Tensor) -> Tensor:
        """Of `loss` by some of the vectors x, float64 [N, H].

        With s = ‖C‖², k = ‖K‖, l = ‖L‖: d(s / kl) / dX = 2 (Y C - (s / k²) X K) / (kl).
        """
        x, y = x_NH.detach().double() - self.mean_x, y_NW.double() - self.mean_y
        square = torch.where(self.varies, self.k_HH.square().sum(), 1.0)
        share = self.c_WH.square().sum() / square
        gradient_NH = -2 * (y @ self.c_WH - share * (x @ self.k_HH)) / self.norms
        return torch.where(self.varies, gradient_NH, 0.0)
