"""The cache file: what is written is read back within its bounds, by us and by others."""

from __future__ import annotations

import json

import duckdb
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from angelshare.errors import AngelshareError
from angelshare.teacher.cache import CacheInfo, LogitCache, write_cache
from angelshare.teacher.codecs import CODECS
from angelshare.teacher.codecs.rows import CachedTargets
from angelshare.teacher.codecs.rskd import Rskd
from angelshare.teacher.codecs.topk_tail import TopkTail

GRID = (0.5, 1.0, 2.0)
VOCABULARY = 40
HALF = 2.0**-11
"""What rounding to float16 may change, relative to a value's size."""
TOPK, DRAWS = TopkTail(top_k=7, top_p=1.0), Rskd(samples=8, seed=0)


def info_of(rows: list[CachedTargets], codec=TOPK) -> CacheInfo:
    return CacheInfo(
        codec=codec,
        temperatures=GRID,
        vocab_size=VOCABULARY,
        tokenizer_sha256="ab",
        sequences=len(rows),
        targets=sum(len(row.kept) for row in rows),
    )


def make_rows(lengths: list[int], seed: int = 0, codec=TOPK) -> list[CachedTargets]:
    """Rows of random distributions, kept as the codec would."""
    draw = np.random.default_rng(seed)
    return [_row(f"{seed}-{index}", n, draw, codec) for index, n in enumerate(lengths)]


def _row(name: str, n: int, draw: np.random.Generator, codec) -> CachedTargets:
    logits = draw.normal(size=(n, VOCABULARY)) * 4
    logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    ids = np.argsort(-logp, axis=1).astype(np.int32)
    best = np.take_along_axis(logp, ids, 1)
    if codec.name == "topk_tail":
        kept = draw.integers(1, codec.top_k, n, dtype=np.int32, endpoint=True)
        values = best
    else:
        kept = np.full(n, 2, np.int32)
        values = np.log(np.tile([0.625, 0.375] + [0.0] * (VOCABULARY - 2), (n, 1)) + 1e-99)
    inside = np.arange(VOCABULARY) < kept[:, None]
    scaled = [best / t for t in GRID]
    rest = [np.where(inside, -np.inf, s) for s in scaled]
    tails = np.stack([np.logaddexp.reduce(r, axis=1) for r in rest], 1)
    return CachedTargets(
        id=name,
        tokens_sha256=draw.bytes(32),
        kept=kept,
        token_ids=ids[inside],
        logits=values[inside].astype(np.float32),
        log_partition=np.stack([np.logaddexp.reduce(s, axis=1) for s in scaled], 1).astype("f4"),
        log_tail=(tails if codec.tail else np.full_like(tails, -np.inf)).astype(np.float32),
        gold_logprob=logp[:, 0].astype(np.float32),
        entropy=-(np.exp(logp) * logp).sum(1).astype(np.float32),
    )


def assert_within_rounding(found: CachedTargets, expected: CachedTargets) -> None:
    assert (found.id, found.tokens_sha256) == (expected.id, expected.tokens_sha256)
    np.testing.assert_array_equal(found.kept, expected.kept)
    np.testing.assert_array_equal(found.token_ids, expected.token_ids)
    for name in ("gold_logprob", "entropy"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=HALF)
    biggest = max(np.abs(expected.logits).max(), np.abs(expected.log_partition).max())
    for name in ("logits", "log_partition"):
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), atol=2 * HALF * biggest + 1e-6
        )
    for name in ("logits", "log_partition", "log_tail", "gold_logprob", "entropy"):
        assert getattr(found, name).dtype == np.float32


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=12),
    resident_bytes=st.sampled_from([0, 1000, 1 << 20]),
    codec=st.sampled_from([TOPK, DRAWS]),
)
def test_parts_read_back_in_order(tmp_path_factory, lengths, resident_bytes, codec) -> None:
    folder = tmp_path_factory.mktemp("cache")
    parts, rows = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("angelshare.teacher.cache.TARGETS_PER_GROUP", 9)
        patch.setattr("angelshare.teacher.cache.ALPHABET_TARGETS", 5)
        patch.setattr("angelshare.teacher.codecs.alphabet.WORTH_LISTING", 2)
        for seed in range(2):
            part = make_rows(lengths, seed, codec)
            write_cache(folder / f"{seed}.parquet", part, info_of(part, codec))
            parts.append(folder / f"{seed}.parquet")
            rows += part
    cache = LogitCache(parts, resident_bytes)
    assert (len(cache), cache.info.targets) == (2 * len(lengths), 2 * sum(lengths))
    assert list(cache.keys()) == [(row.id, row.tokens_sha256) for row in rows]
    for index in [*range(len(rows)), *reversed(range(len(rows)))]:
        assert_within_rounding(cache.row(index), rows[index])
    with pytest.raises(IndexError):
        cache.row(len(rows))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 5))
def test_head_and_tail_sum_to_one_at_every_temperature(tmp_path_factory, seed, n) -> None:
    """By construction, whatever float16 did; the tail keeps its own digits."""
    path = tmp_path_factory.mktemp("cache") / "cache.parquet"
    (row,) = rows = make_rows([n], seed)
    write_cache(path, rows, info_of(rows))
    found = LogitCache([path]).row(0)
    starts = np.cumsum(found.kept) - found.kept
    for column, temperature in enumerate(GRID):
        partition = np.repeat(found.log_partition[:, column], found.kept)
        head = np.add.reduceat(np.exp(found.logits / temperature - partition), starts)
        tail = np.exp(found.log_tail[:, column] - found.log_partition[:, column])
        np.testing.assert_allclose(head + tail, 1, atol=2e-6)
        true_tail = row.log_tail[:, column] - row.log_partition[:, column]
        bound = 3 * HALF * (np.abs(row.log_tail).max() + np.abs(row.log_partition).max()) + 1e-6
        np.testing.assert_allclose(np.log(tail), true_tail, atol=bound)
    assert found.log_partition[:, 1].tolist() == [0.0] * n


def test_others_read_the_file_by_what_its_metadata_say(tmp_path, monkeypatch) -> None:
    """Polars and pyarrow; the decoding in words is followed by hand, without our reader."""
    monkeypatch.setattr("angelshare.teacher.codecs.alphabet.WORTH_LISTING", 2)
    rows = make_rows([1, 2, 3])
    path = tmp_path / "cache.parquet"
    write_cache(path, rows, info_of(rows))
    metadata = json.loads(pq.read_schema(path).metadata[b"angelshare"])
    decoding = metadata.pop("decoding")
    assert metadata == {
        "backend": "transformers",
        "codec": "topk_tail",
        "version": 1,
        "parameters": {"top_k": 7, "top_p": 1.0},
        "temperatures": [0.5, 1.0, 2.0],
        "vocab_size": 40,
        "tokenizer_sha256": "ab",
        "sequences": 3,
        "targets": 6,
    }
    assert "p_T(j) = exp(logprobs[j] / T) / (sum" in decoding
    assert "alphabet[r] if r < len(alphabet), otherwise" in decoding
    alphabet = json.loads(pl.read_parquet_metadata(path)["angelshare.alphabet"])
    assert len(alphabet) > 0
    for table in (pl.read_parquet(path).to_dicts(), pq.read_table(path).to_pylist()):
        assert [row["targets"] for row in table] == [1, 2, 3]
        row = table[2]
        ids = [alphabet[r] if r < len(alphabet) else r - len(alphabet) for r in row["token_ranks"]]
        assert ids == rows[2].token_ids.tolist()
        first = np.exp(np.array(row["logprobs"][: row["kept"][0]], np.float64) / 2.0)
        whole = first.sum() + np.exp(float(row["log_tail"][2]))
        expected = np.exp(rows[2].logits[: row["kept"][0]] / 2.0 - rows[2].log_partition[0, 2])
        np.testing.assert_allclose(first / whole, expected, rtol=0.01)


def test_duckdb_reads_the_file(tmp_path) -> None:
    for codec in (TOPK, DRAWS):
        rows = make_rows([1, 2, 3], codec=codec)
        path = tmp_path / f"{codec.name}.parquet"
        write_cache(path, rows, info_of(rows, codec))
        found = duckdb.sql(f"select kept, entropy, token_ranks from '{path}' order by targets")
        kept, entropy, ranks = found.fetchall()[2]
        assert list(kept) == rows[2].kept.tolist()
        np.testing.assert_allclose(entropy, rows[2].entropy, rtol=HALF)
        assert len(ranks) == len(rows[2].token_ids)
        keys = duckdb.sql(f"select decode(key) from parquet_kv_metadata('{path}')").fetchall()
        assert {"angelshare", "angelshare.alphabet"} <= {key for (key,) in keys}


def test_equal_rows_give_equal_bytes(tmp_path) -> None:
    for name in ("a", "b"):
        rows = make_rows([1, 2, 3])
        write_cache(tmp_path / name, rows, info_of(rows))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_rows_that_do_not_add_up_are_not_published(tmp_path) -> None:
    rows = make_rows([1, 2, 3])
    with pytest.raises(AngelshareError, match="2 sequences with 3 targets were written, 3 with 6"):
        write_cache(tmp_path / "cache.parquet", rows[:2], info_of(rows))
    rows[0].kept[0] += 1
    with pytest.raises(AngelshareError, match="row 0-0: shapes"):
        write_cache(tmp_path / "cache.parquet", rows, info_of(rows))
    assert not list(tmp_path.iterdir())


def rewritten(path, change) -> None:
    table = pq.read_table(path)
    pq.write_table(change(table), path)


def with_metadata(**changes):
    def change(table):
        values = json.loads(table.schema.metadata[b"angelshare"]) | changes
        return table.replace_schema_metadata(
            {**table.schema.metadata, b"angelshare": json.dumps(values)}
        )

    return change


def with_alphabet(text: str):
    return lambda table: table.replace_schema_metadata(
        {**table.schema.metadata, b"angelshare.alphabet": text}
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.replace_schema_metadata(None), "not a logit cache"),
        (with_metadata(codec="zip"), "codec 'zip' version 1; this program reads 'topk_tail' 1"),
        (with_metadata(version=7), "codec 'topk_tail' version 7"),
        (with_metadata(parameters={"k": 3}), "parameters {'k': 3} are not those of version 1"),
        (with_metadata(temperatures=[2.0]), r"temperatures \[2.0\]; the file is damaged"),
        (with_metadata(sequences=2), "3 rows, its metadata say 2"),
        (with_metadata(targets="many"), "the metadata of this logit cache cannot be read"),
        (with_alphabet("[1, 99]"), "its alphabet of token ids cannot be read"),
        (with_alphabet("[1, "), "its alphabet of token ids cannot be read"),
        (lambda table: table.drop_columns(["entropy"]), "columns are not those of a logit cache"),
    ],
)
def test_foreign_and_damaged_files_are_refused(tmp_path, change, message: str) -> None:
    path = tmp_path / "cache.parquet"
    rows = make_rows([1, 2, 3])
    write_cache(path, rows, info_of(rows))
    rewritten(path, change)
    with pytest.raises(AngelshareError, match=message) as caught:
        LogitCache([path])
    assert str(path) in str(caught.value)


def test_parts_that_disagree_or_cannot_be_read_are_refused(tmp_path) -> None:
    for name, codec in (("a", TOPK), ("b", TopkTail(top_k=7, top_p=0.9)), ("d", DRAWS)):
        rows = make_rows([1, 2, 3], codec=codec)
        write_cache(tmp_path / name, rows, info_of(rows, codec))
    for other in ("b", "d"):
        with pytest.raises(AngelshareError, match=f"{other}: its codec, temperatures, vocabulary"):
            LogitCache([tmp_path / "a", tmp_path / other])
    (tmp_path / "c").write_bytes(b"not parquet")
    with pytest.raises(AngelshareError, match="c: not a readable Parquet file"):
        LogitCache([tmp_path / "c"])
    with pytest.raises(AngelshareError, match="at least one part"):
        LogitCache([])


def test_row_groups_hold_few_positions_and_residents_few_bytes(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("angelshare.teacher.cache.TARGETS_PER_GROUP", 5)
    rows = make_rows([1, 2, 3, 9, 1, 1])
    write_cache(tmp_path / "cache.parquet", rows, info_of(rows))
    file = pq.ParquetFile(tmp_path / "cache.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [3, 1, 2]
    reads = []
    original = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda self, group, **options: reads.append(group) or original(self, group, **options),
    )
    cache = LogitCache([tmp_path / "cache.parquet"], resident_bytes=0)
    list(cache.keys())
    assert reads == []
    for index in (0, 1, 2, 3, 2, 5):
        cache.row(index)
    assert reads == [0, 1, 0, 2]
    roomy = LogitCache([tmp_path / "cache.parquet"])
    for index in (0, 3, 2, 5, 0, 3):
        roomy.row(index)
    assert reads[4:] == [0, 1, 2]


def test_every_codec_says_how_it_decodes() -> None:
    for codec in CODECS.values():
        assert "kept[i] tokens belong to position i" in codec.decoding
