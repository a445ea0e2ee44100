"""The rows of a cache's part files, read by row group; the groups read last stay in memory."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import accumulate

import pyarrow as pa
import pyarrow.parquet as pq

from angelshare.teacher.codecs.rows import Lists

RESIDENT_BYTES = 512 << 20


class Group:
    """One row group, decompressed and not yet decoded."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self.nbytes = table.nbytes
        self.ids = table["id"]
        self.digests = table["tokens_sha256"]
        self.lists = {
            field.name: Lists(table[field.name])
            for field in table.schema
            if pa.types.is_list(field.type)
        }


class RowGroups:
    """Rows of one or more files, in the order of the files; memory-mapped.

    Opening reads footers only. Groups stay in memory, decompressed, up to ``resident_bytes``
    (512 MiB). Not to be shared between threads.
    """

    def __init__(self, files: Sequence[pq.ParquetFile], resident_bytes: int | None = None) -> None:
        self._files = files
        self._groups = [
            (part, group) for part, file in enumerate(files) for group in range(file.num_row_groups)
        ]
        counts = (files[part].metadata.row_group(group).num_rows for part, group in self._groups)
        self._starts = list(accumulate(counts, initial=0))
        self._resident: OrderedDict[int, Group] = OrderedDict()
        self._resident_bytes = RESIDENT_BYTES if resident_bytes is None else resident_bytes
        self._free_bytes = self._resident_bytes

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def stays_in_memory(self) -> bool:
        """Whether all of it is kept once it was read."""
        groups = ((self._files[part], group) for part, group in self._groups)
        whole = sum(file.metadata.row_group(group).total_byte_size for file, group in groups)
        return whole <= self._resident_bytes

    def keys(self) -> Iterator[tuple[str, bytes]]:
        """``id`` and ``tokens_sha256`` of every row, in order; nothing else is read."""
        for file in self._files:
            for batch in file.iter_batches(columns=["id", "tokens_sha256"]):
                yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)

    def find(self, index: int) -> tuple[int, Group, int]:
        """Part number, group and place in it of row ``index``; ``IndexError`` if there is none."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of a cache of {len(self)} rows")
        number = bisect_right(self._starts, index) - 1
        return self._groups[number][0], self._group(number), index - self._starts[number]

    def _group(self, number: int) -> Group:
        if number in self._resident:
            self._resident.move_to_end(number)
            return self._resident[number]
        part, group = self._groups[number]
        table = self._files[part].read_row_group(group, use_threads=False)
        self._resident[number] = read = Group(table)
        self._free_bytes -= read.nbytes
        while self._free_bytes < 0 and len(self._resident) > 1:
            self._free_bytes += self._resident.popitem(last=False)[1].nbytes
        return read
