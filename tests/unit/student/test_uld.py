"""Universal logit distillation: distance by rank, partners by text, runs across tokenizers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from angelshare.data.problems import make_dataset
from angelshare.data.sequences import Place
from angelshare.data.settings import WordProblems
from angelshare.data.tables import in_splits
from angelshare.data.tokenizer import save_tokenizer, train_tokenizer
from angelshare.errors import AngelshareError
from angelshare.student.dataset import DistilledDataset, collator
from angelshare.student.fused import LossSums, head_loss
from angelshare.student.launch import train_on
from angelshare.student.losses import IGNORED, TopK
from angelshare.student.models import make_student
from angelshare.student.pairing import NONE, Reader, chosen, partners
from angelshare.student.requests import Reading, Source, TrainRequest, TrainResult
from angelshare.student.settings import LossSettings, ScratchStudent
from angelshare.student.train import train_student
from angelshare.teacher.cache import LogitCache
from angelshare.teacher.models import load_causal_lm, load_tokenizer

from .conftest import MAX_LENGTH, Tally, encoded_rows, write_cache_of
from .oracle import teacher_of
from .test_launch import close, close_weights

Make = Callable[..., TrainRequest]
SHAPE = ScratchStudent(hidden_size=16, layers=1, heads=2, intermediate_size=24)
TEMPERATURES = (0.5, 1.0, 2.0, 4.0)


def uld(alpha: float = 0.0, temperature: float = 1.0) -> LossSettings:
    return LossSettings(alpha=alpha, temperature=temperature, divergence="uld")


def ranked(logits: torch.Tensor, t: float) -> torch.Tensor:
    """Probabilities at a temperature, the largest first, float64."""
    return (logits.double() / t).softmax(-1).sort(-1, descending=True).values


def sorted_distance(student: torch.Tensor, teacher: torch.Tensor, t: float) -> torch.Tensor:
    """W1 by position as published: both sorted, the shorter one padded with zeros, float64."""
    q, p = (
        (x.double() / t).softmax(-1).sort(-1, descending=True).values for x in (student, teacher)
    )
    width = max(q.shape[-1], p.shape[-1])
    q, p = (torch.nn.functional.pad(x, (0, width - x.shape[-1])) for x in (q, p))
    return (p - q).abs().sum(-1)


def cut_distance(student: torch.Tensor, teacher: torch.Tensor, t: float, k: int) -> torch.Tensor:
    """The same with what lies beyond the k largest of each side as one number."""
    q, p = (
        (x.double() / t).softmax(-1).sort(-1, descending=True).values for x in (student, teacher)
    )
    heads = [torch.nn.functional.pad(x[:, :k], (0, max(0, k - x.shape[-1]))) for x in (q, p)]
    tails = [x[:, k:].sum(-1) for x in (q, p)]
    return (heads[0] - heads[1]).abs().sum(-1) + (tails[0] - tails[1]).abs()


def loss_of(student: torch.Tensor, teacher: TopK, choice: LossSettings) -> LossSums:
    vocab, targets = student.shape[-1], torch.arange(len(student)) % student.shape[-1]
    return head_loss(student, torch.eye(vocab), None, targets, teacher, choice, vocab)


@st.composite
def cases(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, LossSettings]:
    """A student's float32 logits [T, V], a teacher's float64 ones of another V, and a loss."""
    positions, own, other = (
        draw(st.integers(1, 4)),
        draw(st.integers(2, 40)),
        draw(st.integers(2, 40)),
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    spread = draw(st.sampled_from([0.3, 1.0, 4.0, 12.0]))
    student = (torch.randn((positions, own), generator=generator) * spread).float()
    teacher = torch.randn((positions, other), generator=generator, dtype=torch.float64) * spread
    alpha, temperature = draw(st.sampled_from([0.0, 0.4])), draw(st.sampled_from(TEMPERATURES))
    return student, teacher, uld(alpha, temperature)


@settings(deadline=None, max_examples=300)
@given(cases(), st.booleans(), st.data())
def test_value_and_gradient_follow_the_dense_oracle(
    case: tuple[torch.Tensor, torch.Tensor, LossSettings], whole: bool, data: st.DataObject
) -> None:
    """With all of the teacher's tokens it is the published distance, whatever the vocabularies."""
    student, teacher, choice = case
    t, vocab = choice.temperature, teacher.shape[-1]
    k = vocab if whole else data.draw(st.integers(1, vocab))
    exact = student.double().requires_grad_()
    by_position = (
        sorted_distance(exact, teacher, t) if whole else cut_distance(exact, teacher, t, k)
    )
    targets = torch.arange(len(student)) % student.shape[-1]
    hard = torch.nn.functional.cross_entropy(exact, targets, reduction="sum")
    (choice.alpha * hard + (1 - choice.alpha) * t * by_position.sum()).backward()
    logits = student.clone().requires_grad_()
    found = loss_of(logits, teacher_of(teacher, k, t), choice)
    found.loss.backward()
    assert found.divergence_T is not None
    torch.testing.assert_close(
        found.divergence_T.double(), t * by_position.detach(), rtol=1e-4, atol=1e-5 * t
    )
    torch.testing.assert_close(
        found.cross_entropy_T.sum().double(), hard.detach(), rtol=1e-4, atol=1e-4
    )
    assert torch.isfinite(logits.grad).all()
    # Where rounding can turn a sign or an order, the gradient may be that of the other side.
    p, q = ranked(teacher, t), ranked(exact.detach(), t)
    n = min(k, q.shape[-1], p.shape[-1])
    heads, tails = p[:, :n] - q[:, :n], p[:, k:].sum(-1) - q[:, k:].sum(-1)
    if min(heads.abs().amin(), tails.abs().amin(), q.diff(dim=-1).abs().amin()) > 1e-6:
        torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-3, atol=2e-5)


@settings(deadline=None, max_examples=200)
@given(cases(), st.data())
def test_a_truncated_cache_gives_a_lower_bound_by_twice_the_tail_at_most(
    case: tuple[torch.Tensor, torch.Tensor, LossSettings], data: st.DataObject
) -> None:
    student, teacher, choice = case
    t = choice.temperature
    k = data.draw(st.integers(1, teacher.shape[-1]))
    whole = t * sorted_distance(student, teacher, t)
    cut = loss_of(student, teacher_of(teacher, k, t), choice).divergence_T
    p, q = (
        (x.double() / t).softmax(-1).sort(-1, descending=True).values for x in (teacher, student)
    )
    lacking = 2 * t * torch.minimum(p[:, k:].sum(-1), q[:, k:].sum(-1))
    assert cut is not None
    assert (cut.double() <= whole + 1e-5 * t).all()
    assert (whole <= cut.double() + lacking + 1e-5 * t).all()


def test_by_hand_ranks_count_and_tokens_do_not() -> None:
    """Teacher 0.7, 0.2, 0.1; student 0.1, 0.5, 0.4 of other tokens: 0.2 + 0.2 + 0."""
    teacher = teacher_of(torch.tensor([[0.2, 0.1, 0.7]]).log(), 3, 1.0)
    student = torch.tensor([[0.1, 0.5, 0.4]]).log()
    for turned in (student, student.flip(1)):
        assert loss_of(turned, teacher, uld()).loss.item() == pytest.approx(0.4)
    same = torch.tensor([[0.7, 0.1, 0.2]]).log()
    assert loss_of(same, teacher, uld()).loss.item() == pytest.approx(0, abs=1e-6)
    two = torch.tensor([[0.6, 0.4]]).log()
    assert loss_of(two, teacher, uld()).loss.item() == pytest.approx(0.1 + 0.2 + 0.1)
    four = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    assert loss_of(four, teacher, uld()).loss.item() == pytest.approx(0.3 + 0.1 + 0.1 + 0.1)


def test_the_gradient_s_size_does_not_depend_on_the_temperature() -> None:
    generator = torch.Generator().manual_seed(4)
    student, teacher = torch.randn(2, 6, 50, generator=generator)
    sizes = []
    for temperature in (8.0, 16.0):
        logits = student.clone().requires_grad_()
        loss_of(logits, teacher_of(teacher, 50, temperature), uld(0, temperature)).loss.backward()
        sizes.append(logits.grad.norm().item())
    assert sizes[1] == pytest.approx(sizes[0], rel=0.15)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_position_without_a_teacher_learns_from_its_label_alone(temperature: float) -> None:
    generator = torch.Generator().manual_seed(5)
    student, teacher = (
        torch.randn(3, 9, generator=generator),
        torch.randn(3, 7, generator=generator),
    )
    kept = teacher_of(teacher, 4, temperature)
    kept.log_probs_Tk[1] = -torch.inf
    kept.log_tail_T[1] = 0.0
    logits = student.clone().requires_grad_()
    found = loss_of(logits, kept, uld(0.3, temperature))
    found.loss.backward()
    exact = student.clone().requires_grad_()
    (0.3 * torch.nn.functional.cross_entropy(exact[1:2], torch.tensor([1]))).backward()
    assert found.divergence_T is not None
    assert found.divergence_T[1] == 0
    assert (found.divergence_T[[0, 2]] > 0).all()
    torch.testing.assert_close(logits.grad[1], exact.grad[1], rtol=1e-4, atol=1e-6)
    expected = torch.nn.functional.cross_entropy(student, torch.arange(3), reduction="none")
    torch.testing.assert_close(found.cross_entropy_T, expected, rtol=1e-4, atol=1e-6)


def test_partners_follow_the_same_text_and_belong_to_one() -> None:
    a, b, c, end = Place(0, 0), Place(0, 3), Place(0, 5), Place(0, 9)
    assert partners([a, None, b, end], [a, c, end, None]).tolist() == [0, NONE, NONE, 2]
    assert partners([a, b], []).tolist() == [NONE, NONE]
    lengths = np.array([2, 1, 3, 1])
    assert chosen(lengths, np.array([2, 0])).tolist() == [3, 4, 5, 0, 1]
    assert chosen(lengths, np.array([1, 3])).tolist() == [2, 6]


# -- runs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of other merges, of other problems, and with another chat template."""
    table = make_dataset(WordProblems(seed=5, labelled=300, unlabelled=0, validation=1, test=1))
    texts = [m["content"] for messages in table["messages"].to_pylist() for m in messages]
    tokenizer = train_tokenizer(texts, 128, MAX_LENGTH)
    own = "message['content']"
    tokenizer.chat_template = tokenizer.chat_template.replace(own, f"' ' ~ {own}")
    folder = tmp_path_factory.mktemp("other")
    save_tokenizer(tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def foreign_cache(
    problems: pa.Table, other_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What a teacher that reads with the other tokenizer said over its tokens of the rows."""
    path = tmp_path_factory.mktemp("cache") / "part.parquet"
    teacher = make_student(SHAPE, load_tokenizer(other_tokenizer), 2 * MAX_LENGTH, seed=8)
    table = in_splits(problems, ["train"])
    write_cache_of(teacher, other_tokenizer, encoded_rows(table, other_tokenizer), path)
    return path


def paired(
    problems: pa.Table, own: Path, other: Path, cache: Path, temperature: float = 2.0
) -> DistilledDataset:
    return DistilledDataset(
        in_splits(problems, ["train"]),
        load_tokenizer(own),
        MAX_LENGTH,
        LogitCache([cache]),
        temperature,
        readers=[Reader(load_tokenizer(other), MAX_LENGTH)],
    )


def test_every_partner_follows_the_same_text(
    problems: pa.Table, tokenizer_folder: Path, other_tokenizer: Path, foreign_cache: Path
) -> None:
    dataset = paired(problems, tokenizer_folder, other_tokenizer, foreign_cache)
    own, other = load_tokenizer(tokenizer_folder), load_tokenizer(other_tokenizer)
    theirs = {row.id: row.encoded for row in encoded_rows(problems, other_tokenizer)}
    cache = LogitCache([foreign_cache])
    cached = {row.id: row for row in map(cache.row, range(len(cache)))}
    followed = targets = 0
    for index, row in enumerate(dataset.rows):
        teacher = dataset[index].teacher
        assert teacher is not None
        starts = np.flatnonzero(row.encoded.targets)
        assert len(teacher.kept) == len(starts)
        targets += len(starts)
        if row.id not in theirs:  # cut off before its answer, in the teacher's tokens
            assert not teacher.kept.any()
            continue
        others = np.flatnonzero(theirs[row.id].targets)
        # The template's space before an answer is no part of it.
        texts = {
            other.decode(theirs[row.id].input_ids[others[0] : at]).lstrip(" "): number
            for number, at in enumerate(others)
        }
        begun = np.cumsum(teacher.kept) - teacher.kept
        for number, at in enumerate(starts):
            before = own.decode(row.encoded.input_ids[starts[0] : at])
            if teacher.kept[number]:
                followed += 1
                partner = texts[before]
                width = cached[row.id].kept[:partner].sum()
                here = slice(width, width + cached[row.id].kept[partner])
                mine = slice(begun[number], begun[number] + teacher.kept[number])
                assert (teacher.logits[mine] == cached[row.id].logits[here]).all()
    assert dataset.paired() == [pytest.approx(followed / targets)]
    assert 0.3 < followed / targets < 1


def test_batches_hold_positions_with_and_without_partner(
    problems: pa.Table, tokenizer_folder: Path, other_tokenizer: Path, foreign_cache: Path
) -> None:
    dataset = paired(problems, tokenizer_folder, other_tokenizer, foreign_cache)
    batch = collator(pad_id=0)([dataset[0], dataset[1]])
    assert len(batch["teacher_ids"]) == (batch["labels"][:, 1:] != IGNORED).sum()
    has = (batch["teacher_logits"] > -torch.inf).any(1)
    assert has.any()
    assert not has.all()


def run(
    make_request: Make, name: str, tokenizer: Path, cache: Path, **changes: object
) -> tuple[TrainResult, dict[str, torch.Tensor]]:
    request = make_request(
        name,
        loss=uld(0.4, 2.0),
        cache=[cache],
        readings=[Reading(tokenizer=tokenizer, max_length=MAX_LENGTH)],
        **changes,
    )
    result = train_student(request, lambda *_: None, Tally())
    return result, dict(load_causal_lm(request.out, dtype="float32").state_dict())


def test_accumulation_changes_neither_curve_nor_weights_across_tokenizers(
    make_request: Make, other_tokenizer: Path, foreign_cache: Path
) -> None:
    whole, weights = run(make_request, "whole", other_tokenizer, foreign_cache)
    parts, same = run(
        make_request, "parts", other_tokenizer, foreign_cache, batch_size=2, accumulation=4
    )
    assert 0.3 < whole.paired[0] < 1
    assert whole.cross_entropy < whole.untrained_cross_entropy
    assert parts.cross_entropy == pytest.approx(whole.cross_entropy, rel=1e-3)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, same[name], rtol=1e-3, atol=1e-3)


def test_two_processes_train_what_one_does_on_two_foreign_datasets(
    make_request: Make, problems: pa.Table, other_tokenizer: Path, tmp_path: Path
) -> None:
    """By files: rows, caches and tokenizers of both lessons are read by other processes."""
    train, teachers = in_splits(problems, ["train"]), []
    lessons = (train.slice(0, 30), train.slice(30))
    for seed, table in enumerate(lessons):
        teacher = make_student(SHAPE, load_tokenizer(other_tokenizer), MAX_LENGTH, seed=seed)
        teachers.append(tmp_path / f"{seed}.parquet")
        rows = encoded_rows(table, other_tokenizer)
        write_cache_of(teacher, other_tokenizer, rows, teachers[-1])
    read = [Reading(tokenizer=other_tokenizer, max_length=MAX_LENGTH)]

    def request(name: str) -> TrainRequest:
        return make_request(
            name,
            "adafactor",
            loss=uld(0.4, 2.0),
            train=lessons[0],
            cache=teachers[:1],
            readings=read,
            further=[Source(train=lessons[1], cache=teachers[1:], readings=read)],
            max_steps=4,
            eval_every=2,
        )

    alone, several = request("alone"), request("several")
    one = train_on(1, 1, alone, lambda *_: None, Tally())
    assert len(one.paired) == len(one.sources) == 2
    close(one, train_on(1, 2, several, lambda *_: None, Tally()))
    close_weights(alone, several)


def test_one_tokenizer_on_both_sides_pairs_every_target(
    make_request: Make, problems: pa.Table, tokenizer_folder: Path, tmp_path: Path
) -> None:
    teacher = make_student(SHAPE, load_tokenizer(tokenizer_folder), MAX_LENGTH, seed=8)
    path = tmp_path / "cache.parquet"
    rows = encoded_rows(in_splits(problems, ["train"]), tokenizer_folder)
    write_cache_of(teacher, tokenizer_folder, rows, path)
    assert run(make_request, "same", tokenizer_folder, path)[0].paired == [1.0]


def test_a_cache_of_another_reading_than_said_is_refused(
    make_request: Make, tokenizer_folder: Path, other_tokenizer: Path, foreign_cache: Path
) -> None:
    with pytest.raises(AngelshareError, match="another tokenizer"):
        run(make_request, "wrong", tokenizer_folder, foreign_cache)
    request = make_request(
        loss=uld(),
        cache=[foreign_cache],
        readings=[Reading(tokenizer=other_tokenizer, max_length=48)],
    )
    with pytest.raises(AngelshareError, match=r"other tokens.*max_length \(here 48\)"):
        train_student(request, lambda *_: None, Tally())


def test_a_saved_request_keeps_how_its_teachers_read(
    make_request: Make, other_tokenizer: Path, tmp_path: Path
) -> None:
    local = Reading(tokenizer=other_tokenizer, max_length=32)
    named = Reading(tokenizer="some/model", revision="abc", trust_remote_code=True, max_length=9)
    make_request(readings=[local, named]).save(tmp_path)
    loaded = TrainRequest.load(tmp_path).readings
    assert loaded[1] == named
    assert loaded[0] == replace(local, tokenizer=tmp_path / "reading_1_1")
    assert len(load_tokenizer(loaded[0].tokenizer)) == 128
