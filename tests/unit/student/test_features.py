"""Losses of features and relations against plain float64 loops and the authors' own formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from angelshare.student.features import CkaSums, cosine_distances, make_projector, squared_errors
from angelshare.student.relations import relation_loss


def drawn(*shape: int, seed: int = 0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) + shift


def huber(difference: float) -> float:
    size = abs(difference)
    return 0.5 * size**2 if size <= 1 else size - 0.5


def looped_relations(student: np.ndarray, teacher: np.ndarray) -> tuple[float, float]:
    """RKD's two terms pair by pair and triple by triple (arXiv:1904.05068, eq. 4 to 8)."""
    count = len(student)
    pairs = [(i, j) for i in range(count) for j in range(count) if i != j]

    def potentials(x: np.ndarray) -> list[float]:
        distances = [float(np.linalg.norm(x[i] - x[j])) for i, j in pairs]
        mean = sum(distances) / len(distances)
        return [distance / mean for distance in distances]

    def cosine(x: np.ndarray, i: int, j: int, k: int) -> float:
        one, other = x[i] - x[j], x[k] - x[j]
        return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))

    distance = [huber(a - b) for a, b in zip(potentials(student), potentials(teacher), strict=True)]
    angle = [
        huber(cosine(student, i, j, k) - cosine(teacher, i, j, k))
        for i in range(count)
        for j in range(count)
        for k in range(count)
        if len({i, j, k}) == 3
    ]
    return float(np.mean(distance)), float(np.mean(angle))


@pytest.mark.parametrize("count", [3, 4, 7])
@pytest.mark.parametrize("chunk", [1, 2**22])
def test_relations_are_those_of_a_plain_loop(
    count: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("angelshare.student.relations.COSINES_PER_CHUNK", chunk)
    student, teacher = drawn(count, 5, seed=1, shift=30.0), 4 * drawn(count, 9, seed=2)
    distance, angle = looped_relations(student.numpy(), teacher.numpy())
    assert relation_loss(student, teacher, 1, 0)[0].item() == pytest.approx(distance, rel=1e-9)
    assert relation_loss(student, teacher, 0, 1)[0].item() == pytest.approx(angle, rel=1e-9)
    both = relation_loss(student, teacher, 1, 2)[0].item()
    assert both == pytest.approx(distance + 2 * angle, rel=1e-9)


def test_relations_are_the_authors_without_the_zeros_of_equal_sequences() -> None:
    """The published implementation's dense formulas, whose means run over all N² and N³."""
    count = 6
    student, teacher = drawn(count, 4, seed=3), drawn(count, 8, seed=4)

    def dense(x: Tensor) -> tuple[Tensor, Tensor]:
        between = x[None] - x[:, None]
        distances = between.norm(dim=-1)
        unit = functional.normalize(between, dim=-1)
        return distances / distances[distances > 0].mean(), unit @ unit.mT

    (ours_d, ours_a), (wanted_d, wanted_a) = dense(student), dense(teacher)
    distance = functional.smooth_l1_loss(ours_d, wanted_d) * count / (count - 1)
    angle = functional.smooth_l1_loss(ours_a, wanted_a) * count**2 / (count - 1) / (count - 2)
    assert relation_loss(student, teacher, 1, 0)[0] == pytest.approx(distance.item(), rel=1e-9)
    assert relation_loss(student, teacher, 0, 1)[0] == pytest.approx(angle.item(), rel=1e-9)


def test_relations_by_hand() -> None:
    """A triangle of sides 3, 4, 5 beside an equilateral one."""
    right = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    equal = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(0.75)]])
    distance = (0.5 * 0.25**2 + 0 + 0.5 * 0.25**2) / 3
    angle = (0.5 * 0.5**2 + 0.5 * 0.1**2 + 0.5 * 0.3**2) / 3
    assert relation_loss(right, equal, 1, 0)[0].item() == pytest.approx(distance, rel=1e-6)
    assert relation_loss(right, equal, 0, 1)[0].item() == pytest.approx(angle, rel=1e-6)


def test_relations_know_no_scale_place_or_turn() -> None:
    student = drawn(6, 4, seed=5)
    turned = 7 * student @ torch.linalg.qr(drawn(4, 4, seed=6)).Q + 3
    value, gradient = relation_loss(student, turned, 1, 2)
    assert value.item() == pytest.approx(0, abs=1e-20)
    assert gradient.abs().max() < 1e-9


def test_the_gradient_of_relations_is_that_of_finite_differences() -> None:
    student, teacher = drawn(5, 3, seed=7), drawn(5, 6, seed=8)
    gradient = relation_loss(student, teacher, 1, 2)[1]
    step = 1e-6
    for i in range(5):
        for j in range(3):
            up, down = student.clone(), student.clone()
            up[i, j] += step
            down[i, j] -= step
            rise = relation_loss(up, teacher, 1, 2)[0] - relation_loss(down, teacher, 1, 2)[0]
            assert gradient[i, j].item() == pytest.approx(rise.item() / 2 / step, abs=1e-7)


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_few_or_equal_sequences_have_finite_relations(count: int) -> None:
    for student in (drawn(count, 3), torch.ones(count, 3), drawn(2, 3)[[0] * count]):
        value, gradient = relation_loss(student, drawn(count, 4, seed=1), 1, 2)
        assert value.isfinite()
        assert gradient.isfinite().all()
        if count < 2:
            assert value == 0
            assert gradient.abs().sum() == 0


def dense_cka(x: Tensor, y: Tensor) -> Tensor:
    """Kornblith et al. 2019, eq. 2: HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))."""
    n = len(x)
    centring = torch.eye(n, dtype=x.dtype) - 1 / n

    def hsic(a: Tensor, b: Tensor) -> Tensor:
        return (a @ a.T @ centring @ b @ b.T @ centring).trace()

    return 1 - hsic(x, y) / (hsic(x, x) * hsic(y, y)).sqrt()


def test_cka_and_its_gradient_are_those_of_the_kernels() -> None:
    x, y = drawn(11, 4, seed=1, shift=5.0).requires_grad_(), drawn(11, 6, seed=2, shift=-2.0)
    y[:, :4] += 2 * x.detach()
    expected = dense_cka(x, y)
    (gradient,) = torch.autograd.grad(expected, x)
    sums = CkaSums.of(x[:3], y[:3]) + CkaSums.of(x[3:4], y[3:4]) + CkaSums.of(x[4:], y[4:])
    assert sums.loss().item() == pytest.approx(expected.item(), rel=1e-9)
    torch.testing.assert_close(sums.gradient(x[2:9], y[2:9]), gradient[2:9])


def test_cka_knows_no_scale_place_or_turn_and_nothing_of_what_does_not_vary() -> None:
    x = drawn(9, 4, seed=3)
    turned = 5 * x @ torch.linalg.qr(drawn(4, 4, seed=4)).Q - 1
    assert CkaSums.of(x, turned).loss().item() == pytest.approx(0, abs=1e-12)
    still = torch.ones(9, 4)
    assert CkaSums.of(still, x).loss() == 1
    assert CkaSums.of(still, x).gradient(still, x).abs().sum() == 0


def test_errors_and_cosines_against_loops() -> None:
    found, wanted = drawn(5, 3, seed=1), drawn(5, 3, seed=2)
    square = float((wanted.numpy() ** 2).mean())
    errors = sum(((f - w) ** 2).mean() for f, w in zip(found.numpy(), wanted.numpy(), strict=True))
    assert squared_errors(found, wanted, square).item() == pytest.approx(errors / square)
    assert squared_errors(0 * found, wanted, square).item() == pytest.approx(5)
    cosines = [
        1 - f @ w / np.linalg.norm(f) / np.linalg.norm(w)
        for f, w in zip(found.numpy(), wanted.numpy(), strict=True)
    ]
    assert cosine_distances(found, wanted).item() == pytest.approx(sum(cosines))


def test_a_projector_is_its_seed_s_whatever_was_drawn_before() -> None:
    one = make_projector(4, 6, 3).weight
    torch.rand(5)
    assert make_projector(4, 6, 3).weight.equal(one)
    assert not make_projector(4, 6, 4).weight.equal(one)
