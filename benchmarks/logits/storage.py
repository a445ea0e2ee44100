"""Bytes per target token of every codec, beside the paper's storage and the entropy of the rows.

(a) The paper's storage, written from its description: the top 100 log-probabilities as float64 and
their ids as int64 at every position, prompts and padding included, as an Arrow file.
(d) The order-0 entropy of the numbers stored, column by column: what a coder of single numbers
reaches at best. Sorted log-probabilities resemble their neighbours, so zstd may get below it.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from angelshare.teacher.cache import CacheInfo, write_cache
from angelshare.teacher.codecs.rows import CachedTargets

from .teachers import PROMPT_PER_TARGET

Captures = Mapping[str, tuple[Sequence[CachedTargets], CacheInfo]]


def file_bytes(rows: Sequence[CachedTargets], info: CacheInfo) -> dict[str, Any]:
    """What one cache file takes, per target, and what the entropy of its numbers would."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cache.parquet"
        write_cache(path, rows, info)
        file = pq.ParquetFile(path)
        columns: dict[str, float] = {}
        for group in range(file.metadata.num_row_groups):
            for number in range(file.metadata.num_columns):
                chunk = file.metadata.row_group(group).column(number)
                name = chunk.path_in_schema.split(".")[0]
                columns[name] = columns.get(name, 0) + chunk.total_compressed_size / info.targets
        total = path.stat().st_size / info.targets
        table = file.read()
    limit = sum(
        _entropy_bytes(np.concatenate(table[field.name].to_numpy())) / info.targets
        for field in table.schema
        if pa.types.is_list(field.type)
    )
    return {
        "bytes_per_target": total,
        "entropy_bytes_per_target": limit,
        "kept": float(np.concatenate([row.kept for row in rows]).mean()),
        "columns": {name: round(value, 2) for name, value in columns.items()},
    }


def paper_bytes(rows: Sequence[CachedTargets]) -> float:
    """Bytes a position of the paper's storage, for rows of a top-100 capture."""
    count = sum(len(row.kept) for row in rows)
    values = np.concatenate([row.logits for row in rows]).astype(np.float64)
    ids = np.concatenate([row.token_ids for row in rows]).astype(np.int64)
    width = len(values) // count
    ends = pa.array(np.arange(count + 1) * width, pa.int32())
    table = pa.table(
        {
            "logprobs": pa.ListArray.from_arrays(ends, pa.array(values)),
            "indices": pa.ListArray.from_arrays(ends, pa.array(ids)),
        }
    )
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return len(sink.getvalue()) / count


def _entropy_bytes(values: np.ndarray) -> float:
    _, counts = np.unique(values, return_counts=True)
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


def storage(captures: Captures) -> dict[str, Any]:
    """Bytes of each capture; the one named ``top 100`` is what the paper stores."""
    paper = paper_bytes(captures["top 100"][0])
    found: dict[str, Any] = {
        "paper": {
            "bytes_per_position": paper,
            "bytes_per_target": paper * (1 + PROMPT_PER_TARGET),
        }
    }
    for name, (rows, info) in captures.items():
        one = file_bytes(rows, info)
        one["paper_per_position_over_ours"] = paper / one["bytes_per_target"]
        one["ours_over_entropy"] = one["bytes_per_target"] / one["entropy_bytes_per_target"]
        found[name] = one
    return found
