"""The losses against a float64 dense oracle: values, gradients, and the ends of their ranges."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from angelshare.errors import AngelshareError
from angelshare.student.losses import (
    IGNORED,
    TopK,
    at_temperature,
    cross_entropy_sum,
    grid_index,
    restrict,
    student_loss,
    target_logits,
    topk_kl_sum,
    truncated_kl_sum,
)
from angelshare.student.settings import LossSettings

TEMPERATURES = [0.5, 1.0, 1.7, 2.0, 4.0, 8.0]


def teacher_of(logits_TV: torch.Tensor, k: int, temperature: float) -> TopK:
    """The top k of float64 ``logits_TV`` as a cache would hold them: float32, relative to T = 1."""
    relative = logits_TV.log_softmax(-1)
    partition = (relative / temperature).logsumexp(-1)
    values, ids = relative.topk(k, dim=-1)
    return at_temperature(ids, values.float(), partition.float(), temperature)


def dense_oracle(
    student_TV: torch.Tensor, teacher_TV: torch.Tensor, k: int, temperature: float
) -> torch.Tensor:
    """T² KL over the top k of the teacher and one tail outcome, in float64."""
    p = (teacher_TV / temperature).softmax(-1)
    q = (student_TV / temperature).softmax(-1)
    ids = teacher_TV.topk(k, dim=-1).indices
    inside = torch.zeros_like(p, dtype=torch.bool).scatter(-1, ids, True)
    p_in, q_in = p.gather(-1, ids), q.gather(-1, ids)
    total = torch.special.xlogy(p_in, p_in / q_in).sum()
    if k < p.shape[-1]:
        p_tail = p.masked_fill(inside, 0).sum(-1)
        q_tail = q.masked_fill(inside, 0).sum(-1)
        total = total + torch.special.xlogy(p_tail, p_tail / q_tail).sum()
    return temperature**2 * total


@st.composite
def pairs(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, int, float]:
    """Float64 logits of student and teacher [T, V], k and a temperature."""
    positions, vocab = draw(st.integers(1, 4)), draw(st.integers(2, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    spread = draw(st.sampled_from([0.01, 1.0, 4.0, 12.0]))
    shape = (positions, vocab)
    student = torch.randn(shape, generator=generator, dtype=torch.float64) * spread
    teacher = torch.randn(shape, generator=generator, dtype=torch.float64) * spread
    if draw(st.booleans()):
        teacher = student + 0.1 * teacher
    offset = draw(st.sampled_from([0.0, 60.0, -60.0]))
    k = draw(st.integers(1, vocab))
    return student.float().double() + offset, teacher, k, draw(st.sampled_from(TEMPERATURES))


@settings(deadline=None, max_examples=200)
@given(pairs())
def test_value_and_gradient_follow_the_dense_oracle(
    case: tuple[torch.Tensor, torch.Tensor, int, float],
) -> None:
    student, teacher, k, temperature = case
    exact = student.clone().requires_grad_()
    oracle = dense_oracle(exact, teacher, k, temperature)
    oracle.backward()
    logits = student.float().requires_grad_()
    loss = topk_kl_sum(logits, teacher_of(teacher, k, temperature))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss >= 0
    scale = temperature**2 * student.shape[0]
    assert loss.item() == pytest.approx(oracle.item(), rel=2e-4, abs=2e-5 * scale)
    assert torch.isfinite(logits.grad).all()
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-3, atol=2e-5 * scale)


@settings(deadline=None, max_examples=50)
@given(pairs())
def test_all_tokens_kept_is_dense_kl(case: tuple[torch.Tensor, torch.Tensor, int, float]) -> None:
    student, teacher, _, temperature = case
    kept = teacher_of(teacher, teacher.shape[-1], temperature)
    dense = torch.nn.functional.kl_div(
        (student / temperature).log_softmax(-1),
        (teacher / temperature).log_softmax(-1),
        reduction="sum",
        log_target=True,
    )
    expected = temperature**2 * dense.item()
    found = topk_kl_sum(student.float(), kept).item()
    assert found == pytest.approx(expected, rel=2e-4, abs=2e-5 * temperature**2)
    truncated = truncated_kl_sum(student.float(), kept).item()
    assert truncated == pytest.approx(expected, rel=2e-4, abs=1e-4 * temperature**2 * len(student))


@settings(deadline=None, max_examples=100)
@given(pairs())
def test_a_student_that_equals_the_teacher_is_left_alone(
    case: tuple[torch.Tensor, torch.Tensor, int, float],
) -> None:
    logits, _, k, temperature = case
    student = logits.float().requires_grad_()
    loss = topk_kl_sum(student, teacher_of(logits, k, temperature))
    loss.backward()
    assert 0 <= loss.item() < 3e-6 * temperature**2 * len(logits)
    assert student.grad.abs().max() < 1e-5 * temperature


def test_the_truncated_form_pulls_an_equal_student_away_and_can_be_negative() -> None:
    teacher = TopK(
        token_ids_Tk=torch.tensor([[0, 1]]),
        log_probs_Tk=torch.tensor([[0.5, 0.2]]).log(),
        temperature=1.0,
    )
    other = torch.tensor([[0.6, 0.3, 0.1]]).log()
    assert truncated_kl_sum(other, teacher).item() == pytest.approx(
        0.5 * math.log(0.5 / 0.6) + 0.2 * math.log(0.2 / 0.3)
    )
    assert truncated_kl_sum(other, teacher).item() == pytest.approx(-0.172, abs=5e-4)
    equal = torch.tensor([[0.5, 0.2, 0.3]]).log().requires_grad_()
    truncated_kl_sum(equal, teacher).backward()
    kept = 0.7
    expected = torch.tensor([[kept * 0.5 - 0.5, kept * 0.2 - 0.2, kept * 0.3]])
    torch.testing.assert_close(equal.grad, expected)


def test_hand_computed_divergence_with_a_tail() -> None:
    teacher = TopK(
        token_ids_Tk=torch.tensor([[2]]), log_probs_Tk=torch.tensor([[0.75]]).log(), temperature=1.0
    )
    student = torch.tensor([[0.25, 0.25, 0.5]]).log()
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert topk_kl_sum(student, teacher).item() == pytest.approx(expected)


@pytest.mark.parametrize("gap", [20.0, 90.0, 1e4])
def test_gradients_stay_finite_when_the_kept_tokens_hold_all_mass(gap: float) -> None:
    sharp = torch.tensor([[gap, 0.0, -1.0, -2.0], [0.0, gap, 1.0, 0.5]])
    flat = torch.zeros(2, 4)
    for student_logits, teacher_logits in ((sharp, flat), (flat, sharp), (sharp, sharp.flip(0))):
        student = student_logits.clone().requires_grad_()
        loss = topk_kl_sum(student, teacher_of(teacher_logits.double(), 2, 1.0))
        loss.backward()
        assert torch.isfinite(loss)
        assert loss >= 0
        assert torch.isfinite(student.grad).all()


def test_only_the_tail_is_wrong_and_the_gradient_sees_it() -> None:
    teacher = TopK(
        token_ids_Tk=torch.tensor([[0]]), log_probs_Tk=torch.tensor([[0.5]]).log(), temperature=1.0
    )
    student = torch.tensor([[0.5, 0.4, 0.1]]).log().requires_grad_()
    topk_kl_sum(student, teacher).backward()
    torch.testing.assert_close(student.grad, torch.zeros(1, 3), atol=1e-6, rtol=0)


def test_vocabulary_padding_counts_as_minus_infinity() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(3, 6, generator=generator)
    padded = torch.cat([logits, torch.full((3, 2), 50.0)], -1).requires_grad_()
    masked = torch.cat([logits, torch.full((3, 2), -torch.inf)], -1)
    teacher = teacher_of(torch.randn(3, 6, generator=generator).double(), 2, 2.0)
    targets = torch.tensor([0, 5, 3])
    cut = student_loss(restrict(padded, 6), targets, teacher, LossSettings(temperature=2.0))
    cut.loss.backward()
    assert cut.cross_entropy.item() == pytest.approx(cross_entropy_sum(masked, targets).item())
    assert cut.divergence is not None
    assert cut.divergence.item() == pytest.approx(topk_kl_sum(logits, teacher).item())
    assert padded.grad is not None
    assert padded.grad[:, 6:].abs().max() == 0


def test_targets_are_predicted_from_the_position_before() -> None:
    labels = torch.tensor(
        [[IGNORED, IGNORED, 7, 8], [IGNORED, 5, IGNORED, IGNORED], [9, IGNORED, IGNORED, 6]]
    )
    logits = torch.arange(12.0).reshape(3, 4, 1)
    picked, targets = target_logits(logits, labels)
    assert targets.tolist() == [7, 8, 5, 6]
    assert picked[:, 0].tolist() == [1.0, 2.0, 4.0, 10.0]


def test_alpha_mixes_and_temperature_squared_scales() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5, 9, generator=generator)
    targets = torch.arange(5)
    teacher = teacher_of(torch.randn(5, 9, generator=generator).double(), 3, 2.0)
    hard = cross_entropy_sum(logits, targets).item()
    soft = topk_kl_sum(logits, teacher).item()
    for alpha in (0.0, 0.3, 1.0):
        choice = LossSettings(alpha=alpha, temperature=2.0)
        mixed = student_loss(logits, targets, teacher, choice).loss.item()
        assert mixed == pytest.approx(alpha * hard + (1 - alpha) * soft, rel=1e-5)
    choice = LossSettings(alpha=0.0, temperature=2.0, divergence="truncated")
    assert student_loss(logits, targets, teacher, choice).loss.item() == pytest.approx(
        truncated_kl_sum(logits, teacher).item()
    )
    assert student_loss(logits, targets, None, LossSettings()).loss.item() == pytest.approx(hard)
    at_one = TopK(
        token_ids_Tk=teacher.token_ids_Tk, log_probs_Tk=teacher.log_probs_Tk, temperature=1.0
    )
    assert soft == pytest.approx(4 * topk_kl_sum(logits / 2, at_one).item(), rel=1e-5)


def test_sums_do_not_depend_on_how_positions_are_grouped() -> None:
    generator = torch.Generator().manual_seed(2)
    logits, other = torch.randn(2, 8, 12, generator=generator).double()
    whole = topk_kl_sum(logits.float(), teacher_of(other, 4, 1.0)).item()
    parts = [
        topk_kl_sum(logits[a:b].float(), teacher_of(other[a:b], 4, 1.0)).item()
        for a, b in ((0, 1), (1, 5), (5, 8))
    ]
    assert sum(parts) == pytest.approx(whole, rel=1e-5)


def test_a_temperature_off_the_grid_names_the_grid() -> None:
    assert grid_index(2.0, (1.0, 2.0, 4.0)) == 1
    with pytest.raises(AngelshareError, match=r"temperature 3\.0 .*\[1\.0, 2\.0, 4\.0\]"):
        grid_index(3.0, (1.0, 2.0, 4.0))
