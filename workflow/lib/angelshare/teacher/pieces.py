"""Captured sequences as pieces of a journal, by which an attempt goes on where a killed one ended.

A piece holds the rows of one window as Arrow's IPC stream: every array as it came from the device,
before any rounding, so that a cache written from pieces has the bytes of an undisturbed capture.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from angelshare.teacher.codecs.rows import CachedTargets, Lists, as_lists

FLAT = ("kept", "token_ids", "logits", "gold_logprob", "entropy")
ON_GRID = ("log_partition", "log_tail")


def packed(rows: Sequence[CachedTargets]) -> bytes:
    """Some rows as a piece of a journal."""
    columns = {
        "id": pa.array([row.id for row in rows]),
        "tokens_sha256": pa.array([row.tokens_sha256 for row in rows], pa.binary()),
        **{name: as_lists([getattr(row, name) for row in rows]) for name in (*FLAT, *ON_GRID)},
    }
    batch = pa.record_batch(list(columns.values()), names=list(columns))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def unpacked(piece: bytes, temperatures: int) -> list[CachedTargets]:
    """The rows of a piece, equal to the last bit; ``temperatures`` is the size of the grid."""
    table = pa.ipc.open_stream(piece).read_all()
    lists = {name: Lists(table[name]) for name in (*FLAT, *ON_GRID)}
    keys = zip(table["id"].to_pylist(), table["tokens_sha256"].to_pylist(), strict=True)
    return [
        CachedTargets(
            id=row_id,
            tokens_sha256=digest,
            **{name: lists[name][index] for name in FLAT},
            **{name: lists[name][index].reshape(-1, temperatures) for name in ON_GRID},
        )
        for index, (row_id, digest) in enumerate(keys)
    ]
