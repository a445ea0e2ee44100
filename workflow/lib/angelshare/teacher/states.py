"""The cache of hidden states: what a teacher held at some points of its blocks.

One Parquet row per sequence, readable by any Parquet reader: the metadata key ``angelshare`` of the
schema says in words what the columns are. Rows are aligned with training data by ``tokens_sha256``,
the digest of the sequence's ids and targets, as those of a logit cache are.

Columns: ``id``, ``tokens_sha256``, ``targets`` (positions n); ``chosen`` [m], the m of n targets
that are kept, where vectors stand at targets; ``layer_007`` [m · width] for every layer and, for
int8, ``scale_007`` [m]. Where there is one vector a sequence, m is 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from angelshare.data.parquet import open_parquet
from angelshare.data.sequences import Encoded
from angelshare.errors import AngelshareError
from angelshare.files import publishing
from angelshare.teacher.codecs.rows import Lists, as_lists, list_field
from angelshare.teacher.groups import RowGroups

METADATA_KEY = b"angelshare"
KIND, VERSION = "hidden states", 1
GROUP_BYTES = 1 << 18
"""Vectors after which a row group ends, so that reading one row costs little."""
DTYPES = {"float16": np.float16, "int8": np.int8}
ZERO = 128
"""Added to int8: Parquet keeps small integers in 32 bits, and of those without a sign the empty
bytes cost nothing once they are split apart."""
POSITIONS = {
    "targets": (
        "A vector at each chosen target: the state at the position before it, which predicts it; "
        "chosen counts the sequence's targets from 0."
    ),
    "mean_of_targets": "One vector a sequence: the mean over the positions that predict a target.",
    "mean_of_tokens": "One vector a sequence: the mean over all of its tokens.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StatesInfo:
    """What the schema's metadata says about a file of hidden states."""

    format: str
    """float16 or int8."""
    positions: str
    """A key of `POSITIONS`."""
    fraction: float
    """Share of the targets that is kept."""
    layers: tuple[int, ...]
    """Which are kept; layer i is the output of block i, 0 what goes into the first."""
    depth: int
    """Blocks of the teacher."""
    width: int
    """Elements of a vector."""
    tokenizer_sha256: str
    """``tokenizer_digest`` of what the teacher read with."""
    sequences: int
    """Rows."""
    vectors: int
    """Vectors of each layer, over all rows."""
    mean_square: tuple[float, ...] = ()
    """Of the elements of each layer: what a loss can be measured in."""

    @property
    def pooled(self) -> bool:
        """Whether there is one vector a sequence."""
        return self.positions != "targets"

    def metadata(self) -> dict[str, Any]:
        """Plain values, the meaning of the columns among them."""
        scaled = (
            f"; less {ZERO}, times the vector's element of scale_NNN, each is a number"
            if self.format == "int8"
            else ""
        )
        return {
            "kind": KIND,
            "version": VERSION,
            "meaning": (
                f"Column layer_NNN holds the output of block NNN (0: the input of block 1), before "
                f"any norm that follows: vectors of {self.width} elements one after the other"
                f"{scaled}. {POSITIONS[self.positions]}"
            ),
            **{name: getattr(self, name) for name in self.__slots__},
            "layers": list(self.layers),
            "mean_square": list(self.mean_square),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedStates:
    """One sequence's m vectors in each of L layers, as they are stored."""

    id: str
    tokens_sha256: bytes
    targets: int
    """Targets of the sequence."""
    chosen: np.ndarray
    """int32 [m], which of the targets, ascending; empty where there is one vector a sequence."""
    values: np.ndarray
    """float16 or int8 [L, m, width]."""
    scales: np.ndarray
    """float32 [L, m]; of float16, empty."""

    def vectors(self) -> np.ndarray:
        """float32 [L, m, width]."""
        values = self.values.astype(np.float32)
        return values * self.scales[..., None] if self.scales.size else values


def kept_positions(encoded: Encoded, positions: str, chosen: np.ndarray) -> np.ndarray:
    """bool [T], the positions of a sequence whose states are kept, or enter its mean.

    A target at t is predicted at t - 1, and that is where its state stands.
    """
    if positions == "mean_of_tokens":
        return np.ones(len(encoded.input_ids), bool)
    targets = np.flatnonzero(encoded.targets)
    kept = np.zeros(len(encoded.input_ids), bool)
    kept[(targets[chosen] if positions == "targets" else targets) - 1] = True
    return kept


def states_schema(info: StatesInfo) -> pa.Schema:
    """The columns of a file, without metadata."""
    fields = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("tokens_sha256", pa.binary(), nullable=False),
        pa.field("targets", pa.int32(), nullable=False),
    ]
    if not info.pooled:
        fields.append(list_field("chosen", pa.int32()))
    element = pa.uint8() if info.format == "int8" else pa.float16()
    for layer in info.layers:
        fields.append(list_field(f"layer_{layer:03d}", element))
        if info.format == "int8":
            fields.append(list_field(f"scale_{layer:03d}", pa.float32()))
    return pa.schema(fields)


def as_table(rows: Sequence[CachedStates], info: StatesInfo) -> pa.Table:
    """Some rows as columns; ``AngelshareError`` for values that their format cannot hold."""
    for row in rows:
        if not np.isfinite(row.scales if row.scales.size else row.values).all():
            raise AngelshareError(
                f"row {row.id}: a hidden state is beyond what {info.format} holds"
                + (": use format int8" if info.format == "float16" else "")
            )
    columns: dict[str, pa.Array] = {
        "id": pa.array([row.id for row in rows]),
        "tokens_sha256": pa.array([row.tokens_sha256 for row in rows], pa.binary()),
        "targets": pa.array([row.targets for row in rows], pa.int32()),
        "chosen": as_lists([row.chosen for row in rows]),
    }
    for place, layer in enumerate(info.layers):
        values = [row.values[place] for row in rows]
        if info.format == "int8":
            values = [(one.astype(np.int16) + ZERO).astype(np.uint8) for one in values]
        columns[f"layer_{layer:03d}"] = as_lists(values)
        if info.format == "int8":
            columns[f"scale_{layer:03d}"] = as_lists([row.scales[place] for row in rows])
    schema = states_schema(info)
    return pa.table([columns[field.name].cast(field.type) for field in schema], schema=schema)


def packed(rows: Sequence[CachedStates], info: StatesInfo) -> bytes:
    """Some rows as a piece of a journal: the columns of the file as Arrow's IPC stream."""
    table = as_table(rows, info)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def unpacked(piece: bytes, info: StatesInfo) -> list[CachedStates]:
    """The rows of a piece."""
    table = pa.ipc.open_stream(piece).read_all()
    lists = {f.name: Lists(table[f.name]) for f in table.schema if pa.types.is_list(f.type)}
    names = ("id", "tokens_sha256", "targets")
    keys = zip(*(table[name].to_pylist() for name in names), strict=True)
    return [
        _row(row_id, digest, targets, lists, place, info)
        for place, (row_id, digest, targets) in enumerate(keys)
    ]


def _row(
    row_id: str,
    digest: bytes,
    targets: int,
    lists: dict[str, Lists],
    place: int,
    info: StatesInfo,
) -> CachedStates:
    values = [lists[f"layer_{layer:03d}"][place] for layer in info.layers]
    scales = []
    if info.format == "int8":
        values = [(one.astype(np.int16) - ZERO).astype(np.int8) for one in values]
        scales = [lists[f"scale_{layer:03d}"][place] for layer in info.layers]
    return CachedStates(
        id=row_id,
        tokens_sha256=digest,
        targets=targets,
        chosen=np.empty(0, np.int32) if info.pooled else lists["chosen"][place],
        values=np.stack(values).reshape(len(info.layers), -1, info.width),
        scales=np.stack(scales) if scales else np.empty(0, np.float32),
    )


def write_states(path: Path, rows: Iterable[CachedStates], info: StatesInfo) -> None:
    """Publish ``rows`` as one file; equal rows give equal bytes.

    The mean square of each layer is found on the way. ``AngelshareError`` when the rows do not add
    up to what ``info`` says.
    """
    sequences = vectors = 0
    squares = np.zeros(len(info.layers))
    with publishing(path) as temporary:
        with pq.ParquetWriter(
            temporary,
            states_schema(info),
            compression="zstd",
            use_dictionary=False,
            column_encoding=_split_bytes(info),
            store_schema=False,
        ) as writer:
            for group in _groups(rows):
                sequences += len(group)
                for row in group:
                    vectors += row.values.shape[1]
                    squares += np.square(row.vectors(), dtype=np.float64).sum((1, 2))
                writer.write_table(as_table(group, info))
            mean_square = tuple((squares / max(1, vectors * info.width)).tolist())
            metadata = replace(info, mean_square=mean_square).metadata()
            writer.add_key_value_metadata({METADATA_KEY: json.dumps(metadata, sort_keys=True)})
        if (sequences, vectors) != (info.sequences, info.vectors):
            raise AngelshareError(
                f"{path}: {sequences} sequences with {vectors} vectors were written, "
                f"{info.sequences} with {info.vectors} announced"
            )


def _split_bytes(info: StatesInfo) -> dict[str, str] | None:
    """The columns whose values are stored byte by byte; of float16 some readers know no such."""
    if info.format != "int8":
        return None
    return {f"layer_{layer:03d}.list.element": "BYTE_STREAM_SPLIT" for layer in info.layers}


def _groups(rows: Iterable[CachedStates]) -> Iterator[list[CachedStates]]:
    group: list[CachedStates] = []
    size = 0
    for row in rows:
        group.append(row)
        size += row.values.nbytes
        if size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


class StateCache(RowGroups):
    """Rows of one or more part files, each decoded when it is asked for."""

    def __init__(self, paths: Sequence[Path], resident_bytes: int | None = None) -> None:
        """Open the parts; ``AngelshareError`` on a foreign file or parts that do not agree."""
        if not paths:
            raise AngelshareError("a cache of hidden states has at least one part file")
        files = [open_parquet(Path(path)) for path in paths]
        infos = [_read_info(file, path) for file, path in zip(files, paths, strict=True)]
        for info, path in zip(infos, paths, strict=True):
            if _common(info) != _common(infos[0]):
                raise AngelshareError(f"{path}: its parts were not made alike: {infos}")
        vectors = [info.vectors for info in infos]
        squares = np.array([info.mean_square for info in infos])
        self.info = replace(
            infos[0],
            sequences=sum(info.sequences for info in infos),
            vectors=sum(vectors),
            mean_square=tuple(np.average(squares, axis=0, weights=vectors).tolist()),
        )
        super().__init__(files, resident_bytes)

    def row(self, index: int) -> CachedStates:
        """Row ``index``; ``IndexError`` outside 0 ≤ index < len."""
        _, group, place = self.find(index)
        row_id, digest = group.ids[place].as_py(), group.digests[place].as_py()
        targets = group.table["targets"][place].as_py()
        return _row(row_id, digest, targets, group.lists, place, self.info)


def _common(info: StatesInfo) -> StatesInfo:
    """What all parts of an artifact must have alike."""
    return replace(info, sequences=0, vectors=0, mean_square=())


def _read_info(file: pq.ParquetFile, path: Path) -> StatesInfo:
    schema = file.schema_arrow
    try:
        values = json.loads((schema.metadata or {})[METADATA_KEY])
        if (values["kind"], values["version"]) != (KIND, VERSION):
            raise ValueError(f"{values['kind']}, version {values['version']}")
        lists = {name: tuple(values[name]) for name in ("layers", "mean_square")}
        info = StatesInfo(**{name: values[name] for name in StatesInfo.__slots__} | lists)
        if not schema.remove_metadata().equals(states_schema(info)):
            raise ValueError(f"columns {schema.names}")
        if file.metadata.num_rows != info.sequences or len(info.mean_square) != len(info.layers):
            raise ValueError(f"{file.metadata.num_rows} rows, {info}")
    except (ValueError, KeyError, TypeError) as error:
        raise AngelshareError(
            f"{path}: not a cache of hidden states that this version reads ({error!r}); the file "
            "is another kind, damaged or was changed. Capture it anew"
        ) from error
    return info
