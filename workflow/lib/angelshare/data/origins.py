"""Where rows come from: a local JSONL or Parquet file, or a dataset of the hub, read alike.

Rows are sequences of mappings with random access, and only the wanted columns are held.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import pyarrow as pa
import pyarrow.parquet as pq

from angelshare.data.settings import BenchmarkFile, BenchmarkHub, FileOrigin, HubOrigin
from angelshare.errors import AngelshareError

Row = Mapping[str, Any]


def read_rows(origin: FileOrigin | HubOrigin, columns: Sequence[str]) -> Sequence[Row]:
    """The rows of ``origin`` with ``columns``, of which any may be missing.

    ``AngelshareError`` when the origin cannot be read.
    """
    if isinstance(origin, FileOrigin):
        return _file_rows(Path(origin.path), columns)
    return _hub_rows(origin, columns)


def read_texts(benchmark: BenchmarkFile | BenchmarkHub) -> list[str]:
    """The text of every item of an evaluation set; ``AngelshareError`` names a missing column."""
    rows = read_rows(benchmark, benchmark.text_fields)
    texts = []
    for number in range(len(rows)):
        row = rows[number]
        for name in benchmark.text_fields:
            if name not in row:
                raise AngelshareError(
                    f"benchmark {origin_name(benchmark)}, row {number + 1}: no field {name!r}; "
                    f"it has {', '.join(sorted(row))}"
                )
        texts.append("\n".join(str(row[name]) for name in benchmark.text_fields))
    return texts


def origin_name(origin: FileOrigin | HubOrigin) -> str:
    """The origin's name in messages: its path or hub name."""
    return origin.path if isinstance(origin, FileOrigin) else origin.name


class ArrowRows(Sequence[Row]):
    """The rows of a table, each made into plain values when it is asked for."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row: Row = self._table.slice(index, 1).to_pylist()[0]
        return row


def _file_rows(path: Path, columns: Sequence[str]) -> Sequence[Row]:
    if not path.is_file():
        raise AngelshareError(f"{path}: no such file; set the source's path to an existing one")
    if path.suffix == ".parquet":
        try:
            names = pq.read_schema(path).names
            kept = [name for name in columns if name in names] or names
            return ArrowRows(pq.read_table(path, columns=kept))
        except pa.ArrowInvalid as error:
            raise AngelshareError(f"{path}: not a readable Parquet file: {error}") from error
    if path.suffix == ".jsonl":
        return list(_json_lines(path))
    raise AngelshareError(f"{path}: a file source ends in .jsonl or .parquet")


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise AngelshareError(f"{path}, row {number}: not JSON: {error}") from error
            if not isinstance(row, dict):
                raise AngelshareError(f"{path}, row {number}: not a mapping")
            yield row


def _hub_rows(origin: HubOrigin, columns: Sequence[str]) -> Sequence[Row]:
    import datasets

    try:
        rows = datasets.load_dataset(
            origin.name, origin.subset, revision=origin.revision, split=origin.hub_split
        )
    except (OSError, ValueError) as error:
        raise AngelshareError(
            f"{origin.name} at {origin.revision}: cannot be loaded ({error}). Check name, "
            "subset, revision and hub_split; without a network, download it first on a machine "
            "that has one and set HF_HOME to that cache, or give a local file with source: file"
        ) from error
    kept: Sequence[Row] = rows.select_columns(
        [name for name in columns if name in rows.column_names] or rows.column_names
    )
    return kept
