"""Opening Parquet that somebody else may have made, without being made to fill the memory.

A few kilobytes of Parquet can stand for a terabyte of zeros. What a file's footer says of it is
bounded before any of it is decoded: at most `MOST_TIMES` its own size when decompressed, with
`ALWAYS_BYTES` free to every file, and no more values than that has bytes.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from angelshare.errors import AngelshareError

MOST_TIMES = 100
ALWAYS_BYTES = 256 << 20


def open_parquet(path: Path) -> pq.ParquetFile:
    """The file, opened and bounded; nothing of its rows is decoded yet.

    Raises:
        AngelshareError: when it is no Parquet, or a decompression bomb.
    """
    try:
        size = path.stat().st_size
        file = pq.ParquetFile(path, memory_map=True)
    except (OSError, pa.ArrowInvalid) as error:
        raise AngelshareError(f"{path}: not a readable Parquet file: {error}") from error
    limit = max(ALWAYS_BYTES, MOST_TIMES * size)
    metadata = file.metadata
    columns = [
        metadata.row_group(group).column(column)
        for group in range(metadata.num_row_groups)
        for column in range(metadata.num_columns)
    ]
    claimed = max(
        sum(abs(column.total_uncompressed_size) for column in columns),
        sum(abs(column.num_values) for column in columns),
    )
    if claimed > limit:
        raise AngelshareError(
            f"{path}: {size:,} bytes say that they decompress to {claimed:,} or more; at most "
            f"{limit:,} are allowed. No job of the workflow makes such a file: find out where it "
            "comes from, then take its artifact out of the store."
        )
    return file
