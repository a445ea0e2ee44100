"""The fused loss against a float64 dense oracle: values, gradients, ends of their ranges."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from angelshare.errors import AngelshareError
from angelshare.student import fused
from angelshare.student.fused import LossSums, head_loss
from angelshare.student.losses import (
    IGNORED,
    TopK,
    at_temperature,
    forward_kl,
    grid_index,
    jsd,
    reverse_kl,
)
from angelshare.student.settings import LossSettings
from angelshare.student.trainer import TargetLoss

from . import oracle
from .oracle import teacher_of

TEMPERATURES = [0.5, 1.0, 1.7, 2.0, 4.0, 8.0]
DIVERGENCES = [("forward_kl", None), ("reverse_kl", None)] + [("jsd", b) for b in (0.1, 0.5, 0.9)]
FORWARD = LossSettings(alpha=0.0)


def loss_of_logits(
    logits_TV: torch.Tensor,
    teacher: TopK | None,
    choice: LossSettings = FORWARD,
    targets_T: torch.Tensor | None = None,
    vocab_size: int | None = None,
) -> LossSums:
    """The loss with logits as hidden states and the identity as head, whose products are exact."""
    vocab = logits_TV.shape[-1]
    targets = torch.zeros(len(logits_TV), dtype=torch.int64) if targets_T is None else targets_T
    return head_loss(
        logits_TV, torch.eye(vocab), None, targets, teacher, choice, vocab_size or vocab
    )


def kept_of(log_probs: list[list[float]], ids: list[list[int]], tail: list[float]) -> TopK:
    """A teacher at T = 1 by hand, in probabilities."""
    return TopK(
        token_ids_Tk=torch.tensor(ids),
        log_probs_Tk=torch.tensor(log_probs).log(),
        log_tail_T=torch.tensor(tail).log(),
        temperature=1.0,
    )


def choices(temperature: float, alpha: float) -> st.SearchStrategy[LossSettings]:
    return st.sampled_from(
        [
            LossSettings(alpha=alpha, temperature=temperature, divergence=name, beta=beta)
            for name, beta in DIVERGENCES
        ]
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, int, LossSettings]:
    """Float32 logits of a student, float64 ones of a teacher [T, V], k and a loss."""
    positions, vocab = draw(st.integers(1, 4)), draw(st.integers(2, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    spread = draw(st.sampled_from([0.01, 1.0, 4.0, 12.0, 40.0]))
    shape = (positions, vocab)
    student = (torch.randn(shape, generator=generator) * spread).float()
    teacher = torch.randn(shape, generator=generator, dtype=torch.float64) * spread
    if draw(st.booleans()):
        teacher = student.double() + 0.1 * teacher
    student = student + draw(st.sampled_from([0.0, 64.0, -64.0]))
    temperature, alpha = draw(st.sampled_from(TEMPERATURES)), draw(st.sampled_from([0.0, 0.3, 1.0]))
    return student, teacher, draw(st.integers(1, vocab)), draw(choices(temperature, alpha))


FAR_OUTSIDE = (
    # All but the last token kept: what is outside lies 68 below the best, where float32 is coarse.
    torch.tensor(
        [
            [
                26.4541,
                10.677,
                2.4671,
                24.8527,
                -18.0762,
                -6.6452,
                -60.9107,
                15.2674,
                -41.1043,
                -22.5221,
            ]
        ]
    ),
    torch.tensor(
        [
            [
                -35.6916,
                -2.33,
                -7.8204,
                -38.6254,
                16.8966,
                10.6927,
                -16.8478,
                -20.428,
                -62.9066,
                -4.9299,
            ]
        ],
        dtype=torch.float64,
    ),
    9,
    LossSettings(alpha=0.0, temperature=0.5, divergence="reverse_kl"),
)


@settings(deadline=None, max_examples=400)
@given(cases())
@example(FAR_OUTSIDE)
def test_value_and_gradient_follow_the_dense_oracle(
    case: tuple[torch.Tensor, torch.Tensor, int, LossSettings],
) -> None:
    student, teacher, k, choice = case
    targets = torch.arange(len(student)) % student.shape[1]
    exact = student.double().requires_grad_()
    expected = oracle.loss(exact, targets, teacher, k, choice)
    expected.backward()
    logits = student.clone().requires_grad_()
    found = loss_of_logits(logits, teacher_of(teacher, k, choice.temperature), choice, targets)
    found.loss.backward()
    assert found.loss.dtype == torch.float32
    assert found.divergence_T is not None
    assert (found.divergence_T >= 0).all()
    scale = choice.temperature**2 * len(student)
    assert found.loss.item() == pytest.approx(expected.item(), rel=2e-4, abs=2e-5 * scale)
    assert torch.isfinite(logits.grad).all()
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-3, atol=2e-5 * scale)


@pytest.mark.parametrize(("name", "beta"), DIVERGENCES[:4])
@pytest.mark.parametrize("k", [1, 100, 100_352])
def test_gradients_of_hidden_states_and_head_at_a_large_vocabulary(
    k: int, name: str, beta: float | None
) -> None:
    vocab, width = 100_352, 6
    generator = torch.Generator().manual_seed(k)
    hidden = torch.randn(3, width, generator=generator)
    weight, bias = torch.randn(vocab, width, generator=generator), torch.zeros(vocab)
    teacher = 3 * torch.randn(3, vocab, generator=generator, dtype=torch.float64)
    targets = torch.tensor([0, 100_351, 5])
    choice = LossSettings(alpha=0.4, temperature=2.0, divergence=name, beta=beta)
    exact = [x.double().requires_grad_() for x in (hidden, weight, bias)]
    oracle.loss(exact[0] @ exact[1].T + exact[2], targets, teacher, k, choice).backward()
    inputs = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    head_loss(*inputs, targets, teacher_of(teacher, k, 2.0), choice, vocab).loss.backward()
    for ours, theirs in zip(inputs, exact, strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-3, atol=3e-6)


@settings(deadline=None, max_examples=50)
@given(cases())
def test_all_tokens_kept_is_dense_kl(
    case: tuple[torch.Tensor, torch.Tensor, int, LossSettings],
) -> None:
    student, teacher, _, choice = case
    t = choice.temperature
    dense = torch.nn.functional.kl_div(
        (student.double() / t).log_softmax(-1),
        (teacher / t).log_softmax(-1),
        reduction="sum",
        log_target=True,
    )
    kept = teacher_of(teacher, teacher.shape[-1], t)
    found = loss_of_logits(student, kept, LossSettings(alpha=0.0, temperature=t)).loss.item()
    assert found == pytest.approx(t**2 * dense.item(), rel=2e-4, abs=2e-5 * t**2)


@settings(deadline=None, max_examples=200)
@given(cases())
def test_a_student_that_equals_the_teacher_is_left_alone(
    case: tuple[torch.Tensor, torch.Tensor, int, LossSettings],
) -> None:
    student, _, k, choice = case
    choice = choice.model_copy(update={"alpha": 0.0})
    logits = student.clone().requires_grad_()
    loss = loss_of_logits(logits, teacher_of(student, k, choice.temperature), choice).loss
    loss.backward()
    assert 0 <= loss.item() < 3e-6 * choice.temperature**2 * len(logits)
    assert logits.grad.abs().max() < 1e-5 * choice.temperature


def test_hand_computed_divergences_with_a_tail() -> None:
    teacher = kept_of([[0.75]], [[2]], [0.25])
    student = torch.tensor([[0.25, 0.25, 0.5]]).log()
    forward = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    reverse = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    half = 0.5 * (0.75 * math.log(0.75 / 0.625) + 0.25 * math.log(0.25 / 0.375))
    half += 0.5 * (0.5 * math.log(0.5 / 0.625) + 0.5 * math.log(0.5 / 0.375))
    expected = {"forward_kl": forward, "reverse_kl": reverse, "jsd": half}
    for name, value in expected.items():
        choice = LossSettings(alpha=0.0, divergence=name, beta=0.5 if name == "jsd" else None)
        assert loss_of_logits(student, teacher, choice).loss.item() == pytest.approx(value)


def test_only_what_is_wrong_has_a_gradient() -> None:
    student = torch.tensor([[0.5, 0.4, 0.1]]).log().requires_grad_()
    loss_of_logits(student, kept_of([[0.5]], [[0]], [0.5])).loss.backward()
    torch.testing.assert_close(student.grad, torch.zeros(1, 3), atol=1e-6, rtol=0)


def random_buckets(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    p, q = torch.randn(2, 50, 7, generator=torch.Generator().manual_seed(seed)).double() * 3
    return p.log_softmax(-1), q.log_softmax(-1)


@pytest.mark.parametrize("beta", [0.01, 0.3, 0.5, 0.8])
def test_jsd_is_symmetric_under_exchange_of_sides_and_shares(beta: float) -> None:
    p, q = random_buckets(4)
    torch.testing.assert_close(jsd(p, q, beta)[0].sum(-1), jsd(q, p, 1 - beta)[0].sum(-1))


def test_jsd_ends_in_the_two_kl_divergences() -> None:
    p, q = random_buckets(5)
    beta = 1e-10
    for (value, slope), (found, found_slope), share in (
        (forward_kl(p, q), jsd(p, q, beta), beta),
        (reverse_kl(p, q), jsd(p, q, 1 - beta), beta),
    ):
        torch.testing.assert_close(found.sum(-1) / share, value.sum(-1), rtol=1e-3, atol=1e-6)
        by_logits, expected = (
            s - q.exp() * s.sum(-1, keepdim=True) for s in (found_slope / share, slope)
        )
        torch.testing.assert_close(by_logits, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("name", "beta"), DIVERGENCES)
@pytest.mark.parametrize("gap", [20.0, 90.0, 1e4])
def test_gradients_stay_finite_when_the_kept_tokens_hold_all_mass(
    gap: float, name: str, beta: float | None
) -> None:
    sharp = torch.tensor([[gap, 0.0, -1.0, -2.0], [0.0, gap, 1.0, 0.5]])
    flat = torch.zeros(2, 4)
    choice = LossSettings(alpha=0.5, divergence=name, beta=beta)
    for student_logits, teacher_logits in ((sharp, flat), (flat, sharp), (sharp, sharp.flip(0))):
        for k in (1, 2, 4):
            student = student_logits.clone().requires_grad_()
            loss = loss_of_logits(student, teacher_of(teacher_logits, k, 1.0), choice).loss
            loss.backward()
            assert torch.isfinite(loss)
            assert loss >= 0
            assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize(("name", "beta"), DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_slots_that_are_not_in_use_change_nothing(
    temperature: float, name: str, beta: float | None
) -> None:
    """Their ids may be any, even those of tokens in use."""
    generator = torch.Generator().manual_seed(6)
    logits, other = torch.randn(2, 4, 9, generator=generator)
    choice = LossSettings(alpha=0.3, temperature=temperature, divergence=name, beta=beta)
    plain = teacher_of(other, 3, temperature)
    padded = TopK(
        token_ids_Tk=torch.cat(
            [plain.token_ids_Tk, plain.token_ids_Tk[:, 1:], logits.argmin(1, keepdim=True)], 1
        ),
        log_probs_Tk=torch.cat([plain.log_probs_Tk, torch.full((4, 3), -torch.inf)], 1),
        log_tail_T=plain.log_tail_T,
        temperature=temperature,
    )
    results = []
    for teacher in (plain, padded):
        student = logits.clone().requires_grad_()
        loss = loss_of_logits(student, teacher, choice).loss
        loss.backward()
        results.append((loss.detach(), student.grad))
    torch.testing.assert_close(results[0], results[1])


def test_a_sampled_teacher_has_no_tail_and_the_gradient_of_cross_entropy_with_it() -> None:
    """p of the slots sums to 1: the gradient is q - p, and the value sum p log(p / q)."""
    teacher = kept_of([[0.75, 0.25, 0.0]], [[3, 1, 0]], [0.0])
    student = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log().requires_grad_()
    loss = loss_of_logits(student, teacher).loss
    loss.backward()
    assert loss.item() == pytest.approx(0.75 * math.log(0.75 / 0.4) + 0.25 * math.log(0.25 / 0.2))
    torch.testing.assert_close(student.grad, torch.tensor([[0.1, -0.05, 0.3, -0.35]]))


def test_the_tail_is_what_the_kept_tokens_leave() -> None:
    logits = 4 * torch.randn(20, 60, generator=torch.Generator().manual_seed(7)).double()
    relative = logits.log_softmax(-1)
    for temperature in TEMPERATURES:
        exact = teacher_of(logits, 8, temperature)
        found = at_temperature(
            exact.token_ids_Tk,
            relative.gather(-1, exact.token_ids_Tk).float(),
            (relative / temperature).logsumexp(-1).float(),
            temperature,
            tail=True,
        )
        torch.testing.assert_close(found.log_probs_Tk, exact.log_probs_Tk, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            found.log_tail_T.exp(), exact.log_tail_T.exp(), rtol=1e-4, atol=1e-6
        )
    ids, logits = torch.tensor([[3, 1, 0]]), torch.tensor([[0.6, 0.4, 0.0]]).log()
    for drawn in (
        at_temperature(ids, logits, torch.zeros(1), 1.0, tail=False),
        at_temperature(ids[:, :1], torch.zeros(1, 1), torch.zeros(1), 1.0, tail=True),
    ):
        assert drawn.log_tail_T.tolist() == [-math.inf]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_vocabulary_padding_counts_as_minus_infinity(temperature: float) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(3, 6, generator=generator)
    padded = torch.cat([logits, torch.full((3, 2), 50.0)], -1)
    teacher = teacher_of(torch.randn(3, 6, generator=generator), 2, temperature)
    targets = torch.tensor([0, 5, 3])
    choice = LossSettings(temperature=temperature)
    weight = torch.eye(8).requires_grad_()
    cut = head_loss(padded, weight, None, targets, teacher, choice, 6)
    cut.loss.backward()
    whole = loss_of_logits(logits, teacher, choice, targets)
    torch.testing.assert_close(cut.loss, whole.loss)
    assert weight.grad[6:].abs().max() == 0
    assert weight.grad[:6].abs().max() > 0


def test_targets_are_predicted_from_the_position_before() -> None:
    """Prompts, padding and gaps by hand: hidden states count positions, the head is 10 tokens."""
    no = IGNORED
    labels = torch.tensor([[no, no, 7, 8], [no, 5, no, no], [9, no, no, 6]])
    hidden = torch.arange(12.0).reshape(3, 4, 1).requires_grad_()
    head = torch.nn.Linear(1, 10, bias=False)
    torch.nn.init.zeros_(head.weight)
    sums = TargetLoss(labels, None, FORWARD, 10)(hidden, head)
    sums.loss.backward()
    assert sums.cross_entropy_T.tolist() == pytest.approx(4 * [math.log(10)])
    assert hidden.grad.abs().sum() == 0
    from_position_to_target = {1.0: 7, 2.0: 8, 4.0: 5, 10.0: 6}
    expected = torch.full((10,), sum(from_position_to_target) / 10)
    for position, target in from_position_to_target.items():
        expected[target] -= position
    torch.testing.assert_close(head.weight.grad[:, 0], expected)


def test_alpha_mixes_and_temperature_squared_scales() -> None:
    generator = torch.Generator().manual_seed(1)
    logits, targets = torch.randn(5, 9, generator=generator), torch.arange(5)
    teacher = teacher_of(torch.randn(5, 9, generator=generator), 3, 2.0)
    hard = loss_of_logits(logits, None, FORWARD, targets)
    soft = loss_of_logits(logits, teacher, LossSettings(alpha=0.0, temperature=2.0), targets)
    assert hard.divergence_T is None
    torch.testing.assert_close(soft.cross_entropy_T, hard.cross_entropy_T)
    for alpha in (0.0, 0.3, 1.0):
        choice = LossSettings(alpha=alpha, temperature=2.0)
        mixed = loss_of_logits(logits, teacher, choice, targets).loss.item()
        expected = alpha * hard.loss.item() + (1 - alpha) * soft.loss.item()
        assert mixed == pytest.approx(expected, rel=1e-5)
    at_one = TopK(
        token_ids_Tk=teacher.token_ids_Tk,
        log_probs_Tk=teacher.log_probs_Tk,
        log_tail_T=teacher.log_tail_T,
        temperature=1.0,
    )
    halved = loss_of_logits(logits / 2, at_one).loss.item()
    assert soft.loss.item() == pytest.approx(4 * halved, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_sums_do_not_depend_on_chunks_groups_or_order(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(2)
    hidden, weight = torch.randn(9, 4, generator=generator), torch.randn(12, 4, generator=generator)
    other, targets = torch.randn(9, 12, generator=generator), torch.arange(9)
    choice = LossSettings(temperature=temperature)

    def result(*groups: list[int]) -> tuple[torch.Tensor, ...]:
        inputs = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        total = torch.zeros(())
        for group in groups:
            teacher = teacher_of(other[group], 4, temperature)
            sums = head_loss(inputs[0][group], inputs[1], None, targets[group], teacher, choice, 12)
            sums.loss.backward()
            total += sums.loss.detach()
        return total, inputs[0].grad, inputs[1].grad

    whole = result(list(range(9)))
    for groups in ([[0], [1, 2, 3, 4], [5, 6, 7, 8]], [[8, 3, 1, 0, 2, 7, 6, 5, 4]]):
        torch.testing.assert_close(result(*groups), whole)
    for rows_of_chunk, rows_of_block in ((2, 2), (4, 3), (9, 2), (9, 1), (1, 9)):
        monkeypatch.setitem(fused.CHUNK_BYTES, "cpu", rows_of_chunk * 12 * 4)
        monkeypatch.setitem(fused.BLOCK_BYTES, "cpu", rows_of_block * 12 * 4)
        torch.testing.assert_close(result(list(range(9))), whole)
    monkeypatch.setitem(fused.CHUNK_BYTES, "cpu", 1)
    monkeypatch.setitem(fused.BLOCK_BYTES, "cpu", 1)
    torch.testing.assert_close(result(list(range(9))), whole)


def test_gradients_come_in_their_tensors_types_and_only_where_wanted() -> None:
    generator = torch.Generator().manual_seed(8)
    hidden, weight = torch.randn(5, 4, generator=generator), torch.randn(11, 4, generator=generator)
    targets, teacher = torch.arange(5), teacher_of(torch.randn(5, 11, generator=generator), 3, 2.0)
    choice = LossSettings(temperature=2.0)

    def gradients(dtype: torch.dtype, train_head: bool) -> tuple[torch.Tensor, ...]:
        h = hidden.to(dtype, copy=True).requires_grad_()
        w = weight.to(dtype, copy=True).requires_grad_(train_head)
        (2 * head_loss(h, w, None, targets, teacher, choice, 11).loss).backward()
        assert h.grad.dtype == dtype
        return h.grad.float(), w.grad

    exact, by_weight = gradients(torch.float32, True)
    frozen, nothing = gradients(torch.float32, False)
    torch.testing.assert_close(frozen, exact)
    assert nothing is None
    assert by_weight.abs().max() > 0
    torch.testing.assert_close(gradients(torch.bfloat16, True)[0], exact, rtol=0.1, atol=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, by_weight = gradients(torch.float32, True)
    assert by_weight.dtype == torch.float32
    torch.testing.assert_close(mixed, exact, rtol=0.1, atol=0.1)


def test_no_targets_are_no_loss() -> None:
    hidden = torch.zeros(0, 4, requires_grad=True)
    weight = torch.ones(7, 4, requires_grad=True)
    sums = head_loss(hidden, weight, None, torch.zeros(0, dtype=torch.int64), None, FORWARD, 7)
    sums.loss.backward()
    assert sums.loss.item() == 0
    assert weight.grad.abs().max() == 0


def test_a_temperature_off_the_grid_names_the_grid() -> None:
    assert grid_index(2.0, (1.0, 2.0, 4.0)) == 1
    with pytest.raises(AngelshareError, match=r"temperature 3\.0 .*\[1\.0, 2\.0, 4\.0\]"):
        grid_index(3.0, (1.0, 2.0, 4.0))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"divergence": "jsd"}, "with a beta where divergence is jsd"),
        ({"beta": 0.5}, "without beta where divergence is forward_kl"),
        ({"divergence": "reverse_kl", "beta": 0.1}, r"reverse_kl.*\(got beta 0\.1\)"),
        ({"divergence": "jsd", "beta": 0.0}, "greater than 0"),
        ({"divergence": "jsd", "beta": 1.0}, "less than 1"),
    ],
)
def test_losses_that_mean_nothing_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LossSettings.model_validate(values)
