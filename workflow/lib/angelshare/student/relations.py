"""Relational knowledge distillation: distances and angles between sequences (RKD).

Park, Kim, Lu, Cho 2019 (arXiv:1904.05068), eq. 4 to 8: student and teacher embed the N sequences of
an optimizer step; compared are the distances of all pairs, in units of their mean on either side,
and the cosines of the angles at x_j in all triples (x_i, x_j, x_k), both by the Huber loss. Means
are over ordered pairs and triples of different sequences; the authors' code also averages the
zeros of equal ones, which makes its values (N-1)/N and (N-1)(N-2)/N² of these.

Widths may differ: nothing is projected. All of it follows from the Gram matrix of the centred
embeddings, in float64, so that N³ cosines cost no N³ · width. Triples are taken some vertices at a
time.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

COSINES_PER_CHUNK = 2**22


@torch.enable_grad()
def relation_loss(
    student_NH: Tensor, teacher_NW: Tensor, distance: float, angle: float
) -> tuple[Tensor, Tensor]:
    """distance · L_distance + angle · L_angle, and its gradient [N, H] by the student's embeddings.

    Both float64; 0 where there are not enough sequences for a pair or a triple.
    """
    student = student_NH.detach().double().requires_grad_()
    gram_NN = _gram(student)
    with torch.no_grad():
        wanted_NN = _gram(teacher_NW.double())
        wanted_distances = _distances(wanted_NN)
    leaf_NN = gram_NN.detach().requires_grad_()
    total = leaf_NN.new_zeros(())
    count = len(student)
    if count > 1 and distance:
        pairs = _different_pairs(count, leaf_NN.device)
        ours = _in_means(_distances(leaf_NN)[pairs])
        term = distance * smooth_l1_loss(ours, _in_means(wanted_distances[pairs]))
        term.backward()
        total += term.detach()
    if count > 2 and angle:
        triples = count * (count - 1) * (count - 2)
        size = max(1, COSINES_PER_CHUNK // count**2)
        for vertices in torch.arange(count, device=leaf_NN.device).split(size):
            ours = _cosines(leaf_NN, vertices)
            with torch.no_grad():
                wanted = _cosines(wanted_NN, vertices)
            different = _different_triples(count, vertices)
            term = smooth_l1_loss(ours[different], wanted[different], reduction="sum")
            (angle * term / triples).backward()
            total += angle * term.detach() / triples
    gradient_NN = torch.zeros_like(leaf_NN) if leaf_NN.grad is None else leaf_NN.grad
    (gradient_NH,) = torch.autograd.grad(gram_NN, student, gradient_NN)
    return total, gradient_NH


def _gram(embeddings: Tensor) -> Tensor:
    centred = embeddings - embeddings.mean(0)
    return centred @ centred.T


def _distances(gram_NN: Tensor) -> Tensor:
    """Euclidean distances; those of equal embeddings are 0, and have no gradient."""
    norms_N = gram_NN.diagonal()
    squares_NN = norms_N[:, None] + norms_N - 2 * gram_NN
    apart_NN = squares_NN > 1e-12 * norms_N.detach().sum()
    return torch.where(apart_NN, torch.where(apart_NN, squares_NN, 1.0).sqrt(), 0.0)


def _in_means(distances: Tensor) -> Tensor:
    """In units of the mean of those that are not 0."""
    apart = distances > 0
    mean = distances.sum() / apart.sum().clamp(min=1)
    return distances / torch.where(mean > 0, mean, 1.0)


def _cosines(gram_NN: Tensor, vertices_C: Tensor) -> Tensor:
    """[C, N, N]: the cosine at each vertex between the directions to i and to k; 0 to an equal."""
    to_vertex_CN = gram_NN[vertices_C]
    own_C11 = gram_NN.diagonal()[vertices_C][:, None, None]
    products_CNN = gram_NN - to_vertex_CN[:, :, None] - to_vertex_CN[:, None, :] + own_C11
    distances_CN = _distances(gram_NN)[vertices_C]
    apart_CN = distances_CN > 0
    inverse_CN = torch.where(apart_CN, 1 / torch.where(apart_CN, distances_CN, 1.0), 0.0)
    return products_CNN * inverse_CN[:, :, None] * inverse_CN[:, None, :]


def _different_pairs(count: int, device: torch.device) -> Tensor:
    return ~torch.eye(count, dtype=torch.bool, device=device)


def _different_triples(count: int, vertices_C: Tensor) -> Tensor:
    different_NN = _different_pairs(count, vertices_C.device)
    not_vertex_CN = different_NN[vertices_C]
    return different_NN & not_vertex_CN[:, :, None] & not_vertex_CN[:, None, :]
