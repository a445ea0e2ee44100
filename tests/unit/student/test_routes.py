"""One run on several datasets, each with its own teacher's work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from angelshare.data.tables import in_splits
from angelshare.errors import AngelshareError
from angelshare.student.dataset import EncodedDataset, Example, JoinedDataset
from angelshare.student.models import make_student
from angelshare.student.requests import Reading, Source, TrainRequest, TrainResult
from angelshare.student.settings import LossSettings, ScratchStudent
from angelshare.student.train import train_student
from angelshare.teacher.models import load_causal_lm, load_tokenizer

from .conftest import MAX_LENGTH, Tally, encoded_rows, write_cache_of

Make = Callable[..., TrainRequest]
SHAPE = ScratchStudent(hidden_size=16, layers=1, heads=2, intermediate_size=24)


@pytest.fixture
def halves(problems: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The training rows cut in two."""
    train = in_splits(problems, ["train"])
    return train.slice(0, 30), train.slice(30)


def cache_of(table: pa.Table, tokenizer: Path, seed: int, path: Path) -> Path:
    teacher = make_student(SHAPE, load_tokenizer(tokenizer), MAX_LENGTH, seed=seed)
    write_cache_of(teacher, tokenizer, encoded_rows(table, tokenizer), path)
    return path


def trained(request: TrainRequest) -> tuple[TrainResult, dict[str, torch.Tensor]]:
    result = train_student(request, lambda *_: None, Tally())
    return result, dict(load_causal_lm(request.out, dtype="float32").state_dict())


def test_two_halves_of_one_teacher_train_as_the_whole_does(
    make_request: Make, halves: tuple[pa.Table, pa.Table], tokenizer_folder: Path, tmp_path: Path
) -> None:
    first, second = halves
    caches = [
        cache_of(table, tokenizer_folder, 8, tmp_path / f"{name}.parquet")
        for name, table in (("all", pa.concat_tables(halves)), ("a", first), ("b", second))
    ]
    choice = LossSettings(alpha=0.2, temperature=2.0)
    one, whole = trained(make_request("whole", loss=choice, cache=caches[:1]))
    two, routed = trained(
        make_request(
            "routed",
            loss=choice,
            train=first,
            cache=caches[1:2],
            further=[Source(train=second, cache=caches[2:])],
        )
    )
    assert two.train_rows == one.train_rows == 48
    assert one.sources == [1.0]
    assert sum(two.sources) == pytest.approx(1)
    assert two.sources[0] == pytest.approx(30 / 48, abs=0.05)
    assert two.history == one.history
    for name, weight in whole.items():
        assert torch.equal(weight, routed[name])
    other = cache_of(second, tokenizer_folder, 9, tmp_path / "c.parquet")
    further = [Source(train=second, cache=[other])]
    request = make_request("other", loss=choice, train=first, cache=caches[1:2], further=further)
    assert trained(request)[0].history != one.history


def test_equal_ids_of_two_datasets_are_told_apart(
    halves: tuple[pa.Table, pa.Table], tokenizer_folder: Path
) -> None:
    first, second = halves
    renamed = second.set_column(0, first.schema.field("id"), first["id"].slice(0, len(second)))
    tokenizer = load_tokenizer(tokenizer_folder)
    parts = [EncodedDataset(table, tokenizer, MAX_LENGTH) for table in (first, renamed)]
    joined = JoinedDataset(parts)
    assert len(joined) == 48
    for index in (0, 29, 30, 47):
        part, place = divmod(index, 30)
        found, wanted = joined[index], parts[part][place]
        assert isinstance(found, Example)
        assert found.encoded == wanted.encoded == joined.rows[index].encoded
    assert joined.nothing().encoded.input_ids == parts[0].rows[0].encoded.input_ids
    assert not np.any(joined.nothing().encoded.targets)
    with pytest.raises(AngelshareError, match="with one dataset"):
        joined.attach("features", None)  # type: ignore[arg-type]


def test_a_saved_request_keeps_its_further_sources(
    make_request: Make, halves: tuple[pa.Table, pa.Table], tokenizer_folder: Path, tmp_path: Path
) -> None:
    reading = Reading(tokenizer=tokenizer_folder, max_length=32)
    source = Source(train=halves[1], cache=[tmp_path / "b"], readings=[reading])
    make_request(train=halves[0], cache=[tmp_path / "a"], further=[source]).save(tmp_path)
    (loaded,) = TrainRequest.load(tmp_path).further
    assert loaded.train.equals(halves[1])
    assert list(loaded.cache) == [tmp_path / "b"]
    assert loaded.readings[0].max_length == 32
    assert len(load_tokenizer(loaded.readings[0].tokenizer)) == 160
