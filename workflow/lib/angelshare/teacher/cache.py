"""The logit cache: what a teacher thought at every target position, small enough to keep.

One Parquet row per sequence. Logits are natural-log probabilities at temperature 1 (relative to
the partition over the whole vocabulary); ``log_partition`` holds log sum_v exp(logit_v / T) for a
grid of temperatures, so that p_T(j) = exp(logits_j / T - log_partition_T) and the tail mass
1 - sum_j p_T(j) are exact at every grid temperature and none is baked in. Rows are aligned with
training data by ``tokens_sha256``, the digest of the sequence's ids and targets.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from angelshare.data.parquet import open_parquet
from angelshare.errors import AngelshareError
from angelshare.files import publishing

CODEC, VERSION = "topk", 1
METADATA_KEY = b"angelshare"
ROWS_PER_GROUP = 512
RESIDENT_GROUPS = 64

CACHE_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("tokens_sha256", pa.binary(), nullable=False),
        pa.field("targets", pa.int32(), nullable=False),
        pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("logits", pa.list_(pa.float32()), nullable=False),
        pa.field("log_partition", pa.list_(pa.float32()), nullable=False),
        pa.field("gold_logprob", pa.list_(pa.float32()), nullable=False),
        pa.field("entropy", pa.list_(pa.float32()), nullable=False),
    ]
)
FLOAT_COLUMNS = ("logits", "log_partition", "gold_logprob", "entropy")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheInfo:
    """What the schema's metadata says about a cache file."""

    k: int
    """Tokens kept per position."""
    temperatures: tuple[float, ...]
    """The grid of ``log_partition``, ascending; contains 1.0."""
    vocab_size: int
    """Tokens the distribution ranges over: the tokenizer's, without padding rows."""
    tokenizer_sha256: str
    """``tokenizer_digest`` of what the teacher read with: equal ids do not mean equal tokens."""
    sequences: int
    """Rows."""
    targets: int
    """Positions over all rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedTargets:
    """One sequence's n target positions, with k tokens kept and G grid temperatures."""

    id: str
    """The sequence's id in its table."""
    tokens_sha256: bytes
    """``Encoded.sha256`` of the sequence the teacher read."""
    token_ids: np.ndarray
    """int32 [n, k], best first."""
    logits: np.ndarray
    """float32 [n, k], log-probabilities at T = 1 in nats."""
    log_partition: np.ndarray
    """float32 [n, G], 0 at T = 1."""
    gold_logprob: np.ndarray
    """float32 [n], of the token that really stands there."""
    entropy: np.ndarray
    """float32 [n], in nats at T = 1."""


def write_cache(path: Path, rows: Iterable[CachedTargets], info: CacheInfo) -> None:
    """Publish ``rows`` as one cache file; equal rows give equal bytes.

    ``AngelshareError`` when the rows do not add up to what ``info`` says.
    """
    metadata = json.dumps({"codec": CODEC, "version": VERSION, **asdict(info)}, sort_keys=True)
    schema = CACHE_SCHEMA.with_metadata({METADATA_KEY: metadata.encode()})
    floats = [f"{name}.list.element" for name in FLOAT_COLUMNS]
    sequences = targets = 0
    with publishing(path) as temporary:
        with pq.ParquetWriter(
            temporary,
            schema,
            compression="zstd",
            use_dictionary=False,
            column_encoding={
                **dict.fromkeys(floats, "BYTE_STREAM_SPLIT"),
                "token_ids.list.element": "BYTE_STREAM_SPLIT",
            },
        ) as writer:
            for group in _groups(rows):
                sequences += len(group)
                targets += sum(len(row.gold_logprob) for row in group)
                writer.write_table(_group_table(group, info, schema))
        if (sequences, targets) != (info.sequences, info.targets):
            raise AngelshareError(
                f"{path}: {sequences} sequences with {targets} targets were written, "
                f"{info.sequences} with {info.targets} announced"
            )


def _groups(rows: Iterable[CachedTargets]) -> Iterable[list[CachedTargets]]:
    group: list[CachedTargets] = []
    for row in rows:
        group.append(row)
        if len(group) == ROWS_PER_GROUP:
            yield group
            group = []
    if group:
        yield group


def _group_table(group: Sequence[CachedTargets], info: CacheInfo, schema: pa.Schema) -> pa.Table:
    for row in group:
        n = len(row.gold_logprob)
        expected = [(n, info.k), (n, info.k), (n, len(info.temperatures)), (n,), (n,)]
        found = [row.token_ids.shape, row.logits.shape, row.log_partition.shape]
        if [*found, row.gold_logprob.shape, row.entropy.shape] != expected:
            raise AngelshareError(f"logit cache row {row.id}: shapes {found} are not {expected}")
    columns: list[pa.Array] = [
        pa.array([row.id for row in group]),
        pa.array([row.tokens_sha256 for row in group], pa.binary()),
        pa.array([len(row.gold_logprob) for row in group], pa.int32()),
    ]
    for name in ("token_ids", *FLOAT_COLUMNS):
        arrays = [getattr(row, name).ravel() for row in group]
        ends = accumulate((len(array) for array in arrays), initial=0)
        columns.append(
            pa.ListArray.from_arrays(
                pa.array(list(ends), pa.int32()), pa.array(np.concatenate(arrays))
            )
        )
    return pa.table(columns, schema=schema)


class LogitCache:
    """Rows of one or more part files, in the order of the files; decoded a row group at a time.

    The most recently used ``resident_groups`` groups of 512 rows stay in memory.
    """

    def __init__(self, paths: Sequence[Path], resident_groups: int = RESIDENT_GROUPS) -> None:
        """Open the parts; ``AngelshareError`` on a foreign file or parts that do not agree."""
        if not paths:
            raise AngelshareError("a logit cache has at least one part file")
        self._files = [open_parquet(Path(path)) for path in paths]
        infos = [_read_info(file, path) for file, path in zip(self._files, paths, strict=True)]
        self.info = replace(
            infos[0],
            sequences=sum(info.sequences for info in infos),
            targets=sum(info.targets for info in infos),
        )
        for info, path in zip(infos, paths, strict=True):
            if replace(info, sequences=0, targets=0) != replace(infos[0], sequences=0, targets=0):
                raise AngelshareError(
                    f"{path}: its k, temperatures, vocabulary or tokenizer differ: {infos}"
                )
        self._groups = [
            (file, group) for file in self._files for group in range(file.num_row_groups)
        ]
        counts = (file.metadata.row_group(group).num_rows for file, group in self._groups)
        self._starts = list(accumulate(counts, initial=0))
        self._resident: OrderedDict[int, _Group] = OrderedDict()
        self._resident_groups = resident_groups

    def __len__(self) -> int:
        return self._starts[-1]

    def row(self, index: int) -> CachedTargets:
        """Row ``index`` as views of decoded arrays; ``IndexError`` outside 0 ≤ index < len."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of a logit cache of {len(self)} rows")
        number = bisect_right(self._starts, index) - 1
        return self._group(number).row(index - self._starts[number], self.info)

    def _group(self, number: int) -> _Group:
        if number in self._resident:
            self._resident.move_to_end(number)
            return self._resident[number]
        file, group = self._groups[number]
        self._resident[number] = decoded = _Group(file.read_row_group(group))
        if len(self._resident) > self._resident_groups:
            self._resident.popitem(last=False)
        return decoded


class _Group:
    """One decoded row group: flat arrays and where each row starts in them."""

    def __init__(self, table: pa.Table) -> None:
        self.ids = table["id"].to_pylist()
        self.digests = table["tokens_sha256"].to_pylist()
        self.starts = np.concatenate([[0], np.cumsum(table["targets"].to_numpy())])
        self.flat = {
            name: table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            for name in ("token_ids", *FLOAT_COLUMNS)
        }

    def row(self, index: int, info: CacheInfo) -> CachedTargets:
        begin, end = int(self.starts[index]), int(self.starts[index + 1])

        def block(name: str, width: int) -> np.ndarray:
            return self.flat[name][begin * width : end * width].reshape(end - begin, width)

        return CachedTargets(
            id=self.ids[index],
            tokens_sha256=self.digests[index],
            token_ids=block("token_ids", info.k),
            logits=block("logits", info.k),
            log_partition=block("log_partition", len(info.temperatures)),
            gold_logprob=self.flat["gold_logprob"][begin:end],
            entropy=self.flat["entropy"][begin:end],
        )


def _read_info(file: pq.ParquetFile, path: Path) -> CacheInfo:
    schema = file.schema_arrow
    metadata = (schema.metadata or {}).get(METADATA_KEY)
    if metadata is None:
        raise AngelshareError(f"{path}: not a logit cache (no {METADATA_KEY.decode()!r} metadata)")
    values = json.loads(metadata)
    if (values.pop("codec", None), values.pop("version", None)) != (CODEC, VERSION):
        raise AngelshareError(
            f"{path}: codec {json.loads(metadata).get('codec')!r} version "
            f"{json.loads(metadata).get('version')!r}; this program reads {CODEC!r} {VERSION}. "
            "Capture the logits anew or use the program that wrote them"
        )
    if not schema.remove_metadata().equals(CACHE_SCHEMA):
        raise AngelshareError(f"{path}: columns are not those of a logit cache: {schema.names}")
    return CacheInfo(**{**values, "temperatures": tuple(values["temperatures"])})
