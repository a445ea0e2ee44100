"""The sequence table: every dataset and every corpus is rows of chat messages.

Columns ``id`` (unique), ``split`` and ``messages``; a row without an answer ends with a user
message. A corpus adds how each answer ended and its token counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from angelshare.data.parquet import open_parquet
from angelshare.errors import AngelshareError
from angelshare.files import publishing

SPLITS = ("train", "unlabelled", "validation", "test")

SEQUENCE_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field(
            "messages",
            pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
            nullable=False,
        ),
    ]
)

CORPUS_SCHEMA = pa.schema(
    [
        *SEQUENCE_SCHEMA,
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        pa.field("generated_tokens", pa.int32(), nullable=False),
    ]
)


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


def sequence_table(rows: Iterable[dict[str, Any]], schema: pa.Schema = SEQUENCE_SCHEMA) -> pa.Table:
    """Rows ``{id, split, messages, …}`` as a table; ``AngelshareError`` if two rows share an id."""
    table = pa.Table.from_pylist(list(rows), schema=schema)
    counts = pc.value_counts(table["id"])
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        raise AngelshareError(f"row ids must be unique; {repeated[0]} occurs more than once")
    return table


def in_splits(table: pa.Table, splits: Iterable[str]) -> pa.Table:
    """The rows of the named splits, in table order."""
    return table.filter(pc.is_in(table["split"], pa.array(list(splits), pa.string())))


def write_table(table: pa.Table, path: Path) -> None:
    """Publish a table as Parquet (zstd); equal tables give equal bytes."""
    with publishing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=8192)


def read_table(path: Path) -> pa.Table:
    """A sequence table from Parquet.

    ``AngelshareError`` if a column is missing or foreign, or the file is no bounded Parquet.
    """
    table = open_parquet(path).read()
    for field in SEQUENCE_SCHEMA:
        if field.name not in table.column_names:
            raise AngelshareError(f"{path}: no column {field.name!r}; this is no sequence table")
        if table.schema.field(field.name).type != field.type:
            raise AngelshareError(
                f"{path}: column {field.name!r} is {table.schema.field(field.name).type}, "
                f"a sequence table has {field.type}"
            )
    return table
