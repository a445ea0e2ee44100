"""Encoded rows, their alignment with the cache, and the batches made of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from angelshare.data.sequences import Encoded
from angelshare.data.tables import in_splits
from angelshare.data.tokenizer import tokenizer_digest
from angelshare.errors import AngelshareError
from angelshare.student.cached import TeacherTargets
from angelshare.student.dataset import (
    DistilledDataset,
    EncodedDataset,
    Example,
    collator,
)
from angelshare.student.losses import IGNORED
from angelshare.student.models import make_student
from angelshare.student.settings import ScratchStudent
from angelshare.teacher.cache import CacheInfo, LogitCache, write_cache
from angelshare.teacher.codecs.rows import CachedTargets
from angelshare.teacher.codecs.rskd import Rskd
from angelshare.teacher.models import load_tokenizer

from .conftest import GRID, MAX_LENGTH, encoded_rows, position_logits, write_cache_of

SHAPE = ScratchStudent(hidden_size=16, layers=1, heads=2, intermediate_size=24)


@pytest.fixture(scope="module")
def cache_path(
    problems: pa.Table, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A cache over the training rows, in reverse order."""
    path = tmp_path_factory.mktemp("cache") / "part.parquet"
    teacher = make_student(SHAPE, load_tokenizer(tokenizer_folder), MAX_LENGTH, seed=8)
    rows = encoded_rows(in_splits(problems, ["train"]), tokenizer_folder)
    write_cache_of(teacher, tokenizer_folder, rows[::-1], path)
    return path


def distilled(
    table: pa.Table, tokenizer_folder: Path, cache_path: Path, temperature: float = 2.0
) -> DistilledDataset:
    tokenizer = load_tokenizer(tokenizer_folder)
    return DistilledDataset(table, tokenizer, MAX_LENGTH, LogitCache([cache_path]), temperature)


def test_batches_are_padded_on_the_right_and_labelled_on_targets_only() -> None:
    short = Encoded(input_ids=[5, 6, 7], targets=[False, False, True], sha256=b"")
    long = Encoded(input_ids=[5, 8, 9, 1, 4], targets=[False, True, True, False, True], sha256=b"")
    batch = collator(pad_id=0)([Example(short, None), Example(long, None)])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 0, 0], [5, 8, 9, 1, 4]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    no = IGNORED
    assert batch["labels"].tolist() == [[no, no, 7, no, no], [no, 8, 9, no, 4]]
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


def test_teacher_targets_follow_the_rows_of_the_batch(
    problems: pa.Table, tokenizer_folder: Path, cache_path: Path
) -> None:
    dataset = distilled(in_splits(problems, ["train"]), tokenizer_folder, cache_path)
    batch = collator(pad_id=0)([dataset[7], dataset[2]])
    teacher = make_student(SHAPE, load_tokenizer(tokenizer_folder), MAX_LENGTH, seed=8)
    exact = torch.cat([position_logits(teacher, dataset.rows[i]) for i in (7, 2)]).double()
    relative = exact.log_softmax(-1)
    assert batch["teacher_ids"].tolist() == relative.topk(8, dim=-1).indices.tolist()
    assert batch["teacher_tail"] is True
    expected = (exact / 2.0).log_softmax(-1).gather(-1, batch["teacher_ids"])
    found = batch["teacher_logits"] / 2.0 - batch["teacher_log_partition"][:, None]
    rounding = 2 * 2.0**-11 * relative.abs().max().item()
    torch.testing.assert_close(found.double(), expected, atol=rounding, rtol=0)
    assert (batch["labels"][:, 1:] != IGNORED).sum() == len(batch["teacher_ids"])


def test_positions_of_different_width_are_padded_by_hand() -> None:
    def targets(kept: list[int], ids: list[int], tail: bool) -> TeacherTargets:
        return TeacherTargets(
            kept=np.array(kept, np.int32),
            token_ids=np.array(ids, np.int32),
            logits=-np.arange(1, len(ids) + 1, dtype=np.float32),
            log_partition=np.arange(len(kept), dtype=np.float32),
            tail=tail,
        )

    two = Encoded(input_ids=[5, 6, 7], targets=[False, True, True], sha256=b"")
    one = Encoded(input_ids=[5, 6], targets=[False, True], sha256=b"")
    for tail in (True, False):
        batch = collator(pad_id=0)(
            [
                Example(two, targets([1, 3], [11, 12, 13, 14], tail)),
                Example(one, targets([2], [15, 16], tail)),
            ]
        )
        assert batch["teacher_ids"].tolist() == [[11, 0, 0], [12, 13, 14], [15, 16, 0]]
        no = float("-inf")
        assert batch["teacher_logits"].tolist() == [[-1, no, no], [-2, -3, -4], [-1, -2, no]]
        assert batch["teacher_log_partition"].tolist() == [0, 1, 0]
        assert batch["teacher_tail"] is tail


def test_draws_are_for_temperature_one(
    problems: pa.Table, tokenizer_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "draws.parquet"
    rows = encoded_rows(in_splits(problems, ["train"]), tokenizer_folder)
    tokenizer = load_tokenizer(tokenizer_folder)
    n = [sum(row.encoded.targets) for row in rows]
    cached = [
        CachedTargets(
            id=row.id,
            tokens_sha256=row.encoded.sha256,
            kept=np.full(count, 2, np.int32),
            token_ids=np.tile(np.array([3, 9], np.int32), count),
            logits=np.tile(np.log(np.array([0.75, 0.25], np.float32)), count),
            log_partition=np.zeros((count, 3), np.float32),
            log_tail=np.full((count, 3), -np.inf, np.float32),
            gold_logprob=np.zeros(count, np.float32),
            entropy=np.zeros(count, np.float32),
        )
        for row, count in zip(rows, n, strict=True)
    ]
    info = CacheInfo(
        codec=Rskd(samples=4, seed=0),
        temperatures=GRID,
        vocab_size=len(tokenizer),
        tokenizer_sha256=tokenizer_digest(tokenizer),
        sequences=len(rows),
        targets=sum(n),
    )
    write_cache(path, cached, info)
    with pytest.raises(AngelshareError, match=r"draws from the teacher at temperature 1 .*rskd"):
        distilled(in_splits(problems, ["train"]), tokenizer_folder, path, 2.0)
    dataset = distilled(in_splits(problems, ["train"]), tokenizer_folder, path, 1.0)
    batch = collator(pad_id=0)([dataset[0], dataset[1]])
    assert batch["teacher_tail"] is False
    assert batch["teacher_logits"].exp().sum(1).tolist() == [1.0] * (n[0] + n[1])
    assert batch["teacher_log_partition"].tolist() == [0.0] * (n[0] + n[1])


def test_other_tokens_than_the_teachers_are_refused(
    problems: pa.Table, tokenizer_folder: Path, cache_path: Path
) -> None:
    rows = in_splits(problems, ["train"]).to_pylist()
    rows[5]["messages"][1]["content"] = "1" + rows[5]["messages"][1]["content"]
    changed = pa.Table.from_pylist(rows, schema=problems.schema)
    with pytest.raises(AngelshareError) as caught:
        distilled(changed, tokenizer_folder, cache_path)
    message = str(caught.value)
    cached = {row.id: row for row in map(LogitCache([cache_path]).row, range(48))}
    new = EncodedDataset(changed, load_tokenizer(tokenizer_folder), MAX_LENGTH).rows[5].encoded
    assert repr(rows[5]["id"]) in message
    assert cached[rows[5]["id"]].tokens_sha256.hex() in message
    assert new.sha256.hex() in message
    assert "made from other tokens" in message
    assert "capture anew" in message


def test_rows_that_the_cache_lacks_are_refused(
    problems: pa.Table, tokenizer_folder: Path, cache_path: Path
) -> None:
    with pytest.raises(AngelshareError, match=r"'validation-0+' is not in the cache"):
        distilled(in_splits(problems, ["validation"]), tokenizer_folder, cache_path)


def test_a_temperature_off_the_grid_is_refused(
    problems: pa.Table, tokenizer_folder: Path, cache_path: Path
) -> None:
    with pytest.raises(AngelshareError, match=r"grid \[1\.0, 2\.0, 4\.0\]"):
        distilled(in_splits(problems, ["train"]), tokenizer_folder, cache_path, 3.0)
    assert 3.0 not in GRID


def with_another_template(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = f"{{# another #}}{tokenizer.chat_template}"


def with_another_special_token(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.pad_token = tokenizer.eos_token


def with_one_more_token(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.add_tokens(["never written"])


@pytest.mark.parametrize(
    "change", [with_another_template, with_another_special_token, with_one_more_token]
)
def test_another_tokenizer_is_refused(
    problems: pa.Table,
    tokenizer_folder: Path,
    cache_path: Path,
    change: Callable[[PreTrainedTokenizerBase], None],
) -> None:
    """Also one with the same ids for every text, and the way out is said."""
    tokenizer = load_tokenizer(tokenizer_folder)
    change(tokenizer)
    cache = LogitCache([cache_path])
    with pytest.raises(AngelshareError, match=r"another tokenizer .*from a synthetic corpus"):
        DistilledDataset(in_splits(problems, ["train"]), tokenizer, MAX_LENGTH, cache, 1.0)


def test_rows_without_an_answer_are_dropped_and_counted(
    problems: pa.Table, tokenizer_folder: Path
) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    dataset = EncodedDataset(in_splits(problems, ["train", "unlabelled"]), tokenizer, MAX_LENGTH)
    assert (len(dataset), dataset.dropped) == (48, 4)
    with pytest.raises(AngelshareError, match="none of 4 rows"):
        EncodedDataset(in_splits(problems, ["unlabelled"]), tokenizer, MAX_LENGTH)
