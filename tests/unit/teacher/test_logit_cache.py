from __future__ import annotations

import json

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from angelshare.errors import AngelshareError
from angelshare.teacher.cache import CachedTargets, CacheInfo, LogitCache, write_cache

INFO = CacheInfo(
    k=3, temperatures=(1.0, 2.0), vocab_size=9, tokenizer_sha256="ab", sequences=3, targets=6
)


def make_rows(lengths: list[int], seed: int = 0, k: int = 3, grid: int = 2) -> list[CachedTargets]:
    draw = np.random.default_rng(seed)
    return [
        CachedTargets(
            id=f"{seed}-{index}",
            tokens_sha256=draw.bytes(32),
            token_ids=draw.integers(0, 9, (n, k), dtype=np.int32),
            logits=draw.normal(size=(n, k)).astype(np.float32),
            log_partition=draw.normal(size=(n, grid)).astype(np.float32),
            gold_logprob=draw.normal(size=n).astype(np.float32),
            entropy=draw.normal(size=n).astype(np.float32),
        )
        for index, n in enumerate(lengths)
    ]


def assert_same(found: CachedTargets, expected: CachedTargets) -> None:
    assert (found.id, found.tokens_sha256) == (expected.id, expected.tokens_sha256)
    for name in ("token_ids", "logits", "log_partition", "gold_logprob", "entropy"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert getattr(found, name).dtype == getattr(expected, name).dtype


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 7), min_size=1, max_size=12), resident=st.integers(1, 3))
def test_parts_read_back_in_order(tmp_path_factory, lengths: list[int], resident: int) -> None:
    folder = tmp_path_factory.mktemp("cache")
    parts, rows = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("angelshare.teacher.cache.ROWS_PER_GROUP", 4)
        for seed in range(2):
            part = make_rows(lengths, seed)
            info = CacheInfo(
                tokenizer_sha256="ab",
                k=3,
                temperatures=(1.0, 2.0),
                vocab_size=9,
                sequences=len(lengths),
                targets=sum(lengths),
            )
            write_cache(folder / f"{seed}.parquet", part, info)
            parts.append(folder / f"{seed}.parquet")
            rows += part
    cache = LogitCache(parts, resident_groups=resident)
    assert (len(cache), cache.info.targets) == (2 * len(lengths), 2 * sum(lengths))
    for index in [*range(len(rows)), *reversed(range(len(rows)))]:
        assert_same(cache.row(index), rows[index])
    with pytest.raises(IndexError):
        cache.row(len(rows))


def test_the_file_is_plain_parquet_with_its_codec_in_the_metadata(tmp_path) -> None:
    rows = make_rows([1, 2, 3])
    write_cache(tmp_path / "cache.parquet", rows, INFO)
    frame = pl.read_parquet(tmp_path / "cache.parquet")
    assert frame["targets"].to_list() == [1, 2, 3]
    assert frame["logits"][2].to_list() == rows[2].logits.ravel().tolist()
    metadata = json.loads(pq.read_schema(tmp_path / "cache.parquet").metadata[b"angelshare"])
    assert metadata == {
        "codec": "topk",
        "version": 1,
        "k": 3,
        "temperatures": [1.0, 2.0],
        "vocab_size": 9,
        "tokenizer_sha256": "ab",
        "sequences": 3,
        "targets": 6,
    }


def test_equal_rows_give_equal_bytes(tmp_path) -> None:
    for name in ("a", "b"):
        write_cache(tmp_path / name, make_rows([1, 2, 3]), INFO)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_rows_that_do_not_add_up_are_not_published(tmp_path) -> None:
    with pytest.raises(AngelshareError, match="2 sequences with 3 targets were written, 3 with 6"):
        write_cache(tmp_path / "cache.parquet", make_rows([1, 2]), INFO)
    with pytest.raises(AngelshareError, match="row 0-0: shapes"):
        write_cache(tmp_path / "cache.parquet", make_rows([1, 2, 3], k=2), INFO)
    assert not list(tmp_path.iterdir())


def rewritten(path, change) -> None:
    table = pq.read_table(path)
    pq.write_table(change(table), path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.replace_schema_metadata(None), "not a logit cache"),
        (
            lambda table: table.replace_schema_metadata({"angelshare": '{"codec": "rskd"}'}),
            "codec 'rskd' version None; this program reads 'topk' 1",
        ),
        (lambda table: table.drop_columns(["entropy"]), "columns are not those of a logit cache"),
    ],
)
def test_foreign_files_are_refused(tmp_path, change, message: str) -> None:
    path = tmp_path / "cache.parquet"
    write_cache(path, make_rows([1, 2, 3]), INFO)
    rewritten(path, change)
    with pytest.raises(AngelshareError, match=message):
        LogitCache([path])


def test_parts_that_disagree_or_cannot_be_read_are_refused(tmp_path) -> None:
    write_cache(tmp_path / "a", make_rows([1, 2, 3]), INFO)
    other = CacheInfo(
        k=2, temperatures=(1.0, 2.0), vocab_size=9, tokenizer_sha256="ab", sequences=1, targets=4
    )
    write_cache(tmp_path / "b", make_rows([4], k=2), other)
    with pytest.raises(
        AngelshareError, match="b: its k, temperatures, vocabulary or tokenizer differ"
    ):
        LogitCache([tmp_path / "a", tmp_path / "b"])
    (tmp_path / "c").write_bytes(b"not parquet")
    with pytest.raises(AngelshareError, match="c: not a readable Parquet file"):
        LogitCache([tmp_path / "c"])
    with pytest.raises(AngelshareError, match="at least one part"):
        LogitCache([])


def test_row_groups_stay_small(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("angelshare.teacher.cache.ROWS_PER_GROUP", 2)
    write_cache(tmp_path / "cache.parquet", make_rows([1, 2, 3]), INFO)
    file = pq.ParquetFile(tmp_path / "cache.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [2, 1]
    assert isinstance(file.schema_arrow, pa.Schema)
