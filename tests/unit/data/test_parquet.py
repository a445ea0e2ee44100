import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from angelshare.data import parquet
from angelshare.data.parquet import open_parquet
from angelshare.data.tables import read_table, sequence_table, write_table
from angelshare.errors import AngelshareError
from angelshare.teacher.cache import LogitCache


@pytest.fixture
def small_limits(monkeypatch):
    monkeypatch.setattr(parquet, "ALWAYS_BYTES", 1 << 20)


def test_a_decompression_bomb_is_refused_by_every_reader(tmp_path, small_limits):
    path = tmp_path / "bomb.parquet"
    zeros = np.zeros(2 << 20, np.float64)
    pq.write_table(pa.table({"x": zeros}), path, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 100_000
    for read in (open_parquet, read_table, lambda path: LogitCache([path])):
        with pytest.raises(AngelshareError, match="decompress to"):
            read(path)


def test_one_value_said_a_million_times_is_refused(tmp_path, small_limits):
    """By run lengths the pages stay small; only the count of values tells."""
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"x": pa.array(["x"] * (3 << 20))}), path)
    assert path.stat().st_size < 10_000
    with pytest.raises(AngelshareError, match="decompress to"):
        open_parquet(path)


def test_repetitive_text_is_no_bomb(tmp_path):
    path = tmp_path / "rows.parquet"
    rows = [
        {"id": f"{i}", "split": "train", "messages": [{"role": "user", "content": "the same " * 9}]}
        for i in range(20_000)
    ]
    write_table(sequence_table(rows), path)
    assert read_table(path).equals(sequence_table(rows))


def test_what_is_no_parquet_is_one_clear_error(tmp_path):
    path = tmp_path / "rows.parquet"
    path.write_text("no parquet")
    with pytest.raises(AngelshareError, match="not a readable Parquet file"):
        read_table(path)
