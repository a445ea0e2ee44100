"""Several teachers at once: the gradient is that of the divergence from their mixture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from angelshare.data.tables import in_splits
from angelshare.data.tokenizer import save_tokenizer, train_tokenizer
from angelshare.errors import AngelshareError
from angelshare.student.fused import head_loss
from angelshare.student.losses import Mixture
from angelshare.student.models import make_student
from angelshare.student.requests import TrainRequest
from angelshare.student.settings import LossSettings, ScratchStudent
from angelshare.student.train import train_student
from angelshare.teacher.models import load_causal_lm, load_tokenizer

from . import oracle
from .conftest import MAX_LENGTH, Tally, encoded_rows, write_cache_of
from .oracle import teacher_of

Make = Callable[..., TrainRequest]
SHAPE = ScratchStudent(hidden_size=16, layers=1, heads=2, intermediate_size=24)
WEIGHTS = (0.3, 0.7)
POSITIONS, VOCAB = 5, 23


def logits_of(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn((POSITIONS, VOCAB), generator=generator, dtype=torch.float64)


def fused_gradient(
    student: torch.Tensor, teacher: Mixture, choice: LossSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss and its gradient by the logits, targets being the first tokens."""
    logits = student.float().requires_grad_()
    targets = torch.arange(POSITIONS)
    sums = head_loss(logits, torch.eye(VOCAB), None, targets, teacher, choice, VOCAB)
    sums.loss.backward()
    assert logits.grad is not None
    return sums.loss, logits.grad.double()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_the_gradient_is_that_of_kl_from_the_mixed_distribution(
    temperature: float, alpha: float
) -> None:
    """Against KL(0.3 p + 0.7 r ‖ q), dense and in float64."""
    student, teachers = logits_of(1), [logits_of(2), logits_of(3)]
    choice = LossSettings(alpha=alpha, temperature=temperature)
    exact = student.clone().requires_grad_()
    mixed = sum(
        weight * (one / temperature).softmax(-1)
        for weight, one in zip(WEIGHTS, teachers, strict=True)
    )
    assert isinstance(mixed, torch.Tensor)
    soft = oracle.kl(mixed.log(), (exact / temperature).log_softmax(-1))
    hard = torch.nn.functional.cross_entropy(exact, torch.arange(POSITIONS), reduction="sum")
    (alpha * hard + (1 - alpha) * temperature**2 * soft).backward()
    every = Mixture(tuple(teacher_of(one, VOCAB, temperature) for one in teachers), WEIGHTS)
    _, gradient = fused_gradient(student, every, choice)
    torch.testing.assert_close(gradient, exact.grad, rtol=1e-4, atol=1e-5)
    entropies = [oracle.kl((one / temperature).log_softmax(-1), mixed.log()) for one in teachers]
    constant = sum(w * e for w, e in zip(WEIGHTS, entropies, strict=True))
    loss, _ = fused_gradient(student, every, LossSettings(alpha=0.0, temperature=temperature))
    assert loss.item() == pytest.approx(temperature**2 * (soft.item() + float(constant)), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "beta"), [("forward_kl", None), ("reverse_kl", None), ("jsd", 0.4)]
)
def test_truncated_caches_give_the_weighted_sum_of_their_divergences(
    name: str, beta: float | None
) -> None:
    student, teachers = logits_of(4), [logits_of(5), logits_of(6)]
    choice = LossSettings.model_validate({"alpha": 0.2, "divergence": name, "beta": beta})
    exact = student.clone().requires_grad_()
    targets = torch.arange(POSITIONS)
    expected = sum(
        weight * oracle.loss(exact, targets, one, 4, choice)
        for weight, one in zip(WEIGHTS, teachers, strict=True)
    )
    assert isinstance(expected, torch.Tensor)
    expected.backward()
    every = Mixture(tuple(teacher_of(one, 4, 1.0) for one in teachers), WEIGHTS)
    loss, gradient = fused_gradient(student, every, choice)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    torch.testing.assert_close(gradient, exact.grad, rtol=1e-3, atol=1e-5)


def weights_of(request: TrainRequest) -> dict[str, torch.Tensor]:
    return dict(load_causal_lm(request.out, dtype="float32").state_dict())


def test_a_student_learns_from_two_caches(
    make_request: Make, problems: pa.Table, tokenizer_folder: Path, tmp_path: Path
) -> None:
    rows = encoded_rows(in_splits(problems, ["train"]), tokenizer_folder)
    paths = []
    for seed in (8, 9):
        teacher = make_student(SHAPE, load_tokenizer(tokenizer_folder), MAX_LENGTH, seed=seed)
        paths.append(tmp_path / f"{seed}.parquet")
        write_cache_of(teacher, tokenizer_folder, rows, paths[-1])
    choice = LossSettings(alpha=0.2, temperature=2.0)

    def trained(name: str, **caches: object) -> dict[str, torch.Tensor]:
        request = make_request(name, loss=choice, **caches)
        train_student(request, lambda *_: None, Tally())
        return weights_of(request)

    first, second = ([path] for path in paths)
    mixed = trained("mixed", cache=first, other_caches=[second], weights=[0.25, 0.75])
    turned = trained("turned", cache=second, other_caches=[first], weights=[0.75, 0.25])
    alone = trained("alone", cache=first)
    same = trained("same", cache=first, other_caches=[first], weights=[0.5, 0.5])
    for name, weight in mixed.items():
        torch.testing.assert_close(weight, turned[name], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(alone[name], same[name], rtol=1e-3, atol=1e-4)
    assert any((mixed[name] - alone[name]).abs().max() > 1e-2 for name in mixed)


def test_a_second_teacher_with_another_tokenizer_is_refused(
    make_request: Make, problems: pa.Table, tokenizer_folder: Path, tmp_path: Path
) -> None:
    texts = [m["content"] for messages in problems["messages"].to_pylist() for m in messages]
    save_tokenizer(train_tokenizer(texts, 150, MAX_LENGTH), tmp_path / "other")
    paths = []
    for folder in (tokenizer_folder, tmp_path / "other"):
        teacher = make_student(SHAPE, load_tokenizer(folder), MAX_LENGTH, seed=8)
        paths.append(tmp_path / f"{len(paths)}.parquet")
        rows = encoded_rows(in_splits(problems, ["train"]), folder)
        write_cache_of(teacher, folder, rows, paths[-1])
    request = make_request(cache=paths[:1], other_caches=[paths[1:]], weights=[0.5, 0.5])
    with pytest.raises(AngelshareError, match=r"another tokenizer.*synthetic corpus"):
        train_student(request, lambda *_: None, Tally())


def test_a_saved_request_keeps_its_teachers(make_request: Make, tmp_path: Path) -> None:
    request = make_request(
        cache=[tmp_path / "a"], other_caches=[[tmp_path / "b", tmp_path / "c"]], weights=[0.5, 0.5]
    )
    request.save(tmp_path)
    loaded = TrainRequest.load(tmp_path)
    assert loaded.other_caches == [[tmp_path / "b", tmp_path / "c"]]
    assert loaded.weights == [0.5, 0.5]
