"""The logit cache: what a teacher thought at every target position, small enough to keep.

One Parquet row per sequence, in row groups of about 2,048 positions, readable by any Parquet
reader: the schema's metadata says in words how a codec's columns become probabilities
(``python -m json.tool`` of the key ``angelshare``). No temperature is baked in: for a grid of
temperatures the partition over the whole vocabulary is exact. Rows are aligned with training data
by ``tokens_sha256``, the digest of the sequence's ids and targets.

Columns of every cache: ``id``, ``tokens_sha256``, ``targets`` (positions n), ``kept`` [n],
``gold_logprob`` [n] and ``entropy`` [n]; the codec's own follow (`angelshare.teacher.codecs`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from angelshare.data.parquet import open_parquet
from angelshare.errors import AngelshareError
from angelshare.files import publishing
from angelshare.teacher.codecs import Codec, make_codec
from angelshare.teacher.codecs.alphabet import Alphabet
from angelshare.teacher.codecs.rows import CachedTargets, as_lists, half, list_field
from angelshare.teacher.groups import RowGroups

METADATA_KEY, ALPHABET_KEY = b"angelshare", b"angelshare.alphabet"
TARGETS_PER_GROUP = 2048
"""Positions after which a row group ends: about 0.2 MB, so that reading one row costs little."""
ALPHABET_TARGETS = 65536
"""The first positions of a file, whose kept tokens make its alphabet."""

COMPRESSION_LEVEL = 6
"""Of zstd: 4 to 9 % smaller than at pyarrow's 1, and as fast (some 300,000 positions a second).
Level 19 would take another 5 to 6 % off, at a tenth of that speed: a capture on a GPU would feel
it."""

KEYS = (
    pa.field("id", pa.string(), nullable=False),
    pa.field("tokens_sha256", pa.binary(), nullable=False),
    pa.field("targets", pa.int32(), nullable=False),
)
LISTS = (
    list_field("kept", pa.int32()),
    list_field("gold_logprob", pa.float32()),
    list_field("entropy", pa.float32()),
)
TOKENS = (
    "A token's rank r in token_ranks stands for alphabet[r] if r < len(alphabet), otherwise for "
    "token id r - len(alphabet); the alphabet is the JSON list in the metadata key "
    "'angelshare.alphabet'."
)
LIMITS = {
    "vllm": (
        "Made from the best log-probabilities at T = 1. The partition is known at T = 1 alone. "
        "log_tail there is what the kept tokens lack of 1, and includes what the model gives to "
        "rows of its head that no token has, if it has such rows and they are not among the best; "
        "a tail below 1e-6 is rounding. entropy is NaN: it was not computed."
    )
}
"""What a back end cannot give, in the words of the metadata."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheInfo:
    """What the schema's metadata says about a cache file."""

    codec: Codec
    """How positions are stored."""
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
    backend: str = "transformers"
    """The program that ran the teacher."""

    def metadata(self) -> dict[str, Any]:
        """Plain values, the decoding in words among them."""
        return {
            "backend": self.backend,
            **({"limits": LIMITS[self.backend]} if self.backend in LIMITS else {}),
            "codec": self.codec.name,
            "version": self.codec.version,
            "parameters": self.codec.parameters(),
            "decoding": f"{self.codec.decoding} {TOKENS}",
            "temperatures": list(self.temperatures),
            "vocab_size": self.vocab_size,
            "tokenizer_sha256": self.tokenizer_sha256,
            "sequences": self.sequences,
            "targets": self.targets,
        }


def cache_schema(codec: Codec) -> pa.Schema:
    """The columns of a cache file, without metadata."""
    return pa.schema([*KEYS, *LISTS, *codec.fields])


def write_cache(path: Path, rows: Iterable[CachedTargets], info: CacheInfo) -> None:
    """Publish ``rows`` as one cache file; equal rows give equal bytes.

    ``AngelshareError`` when the rows do not add up to what ``info`` says.
    """
    schema = cache_schema(info.codec)
    first, rows = _leading(iter(rows))
    alphabet = Alphabet.of(
        np.concatenate([row.token_ids for row in first] or [np.empty(0, np.int32)]),
        info.vocab_size,
    )
    ranks = alphabet.ranks()
    lists = [f"{field.name}.list.element" for field in schema if pa.types.is_list(field.type)]
    sequences = targets = 0
    with publishing(path) as temporary:
        with pq.ParquetWriter(
            temporary,
            schema,
            compression="zstd",
            compression_level=COMPRESSION_LEVEL,
            use_dictionary=False,
            column_encoding=dict.fromkeys(lists, "BYTE_STREAM_SPLIT"),
            store_schema=False,
        ) as writer:
            writer.add_key_value_metadata(
                {
                    METADATA_KEY: json.dumps(info.metadata(), sort_keys=True),
                    ALPHABET_KEY: json.dumps(alphabet.listed.tolist(), separators=(",", ":")),
                }
            )
            for group in _groups(chain(first, rows)):
                sequences += len(group)
                targets += sum(len(row.kept) for row in group)
                writer.write_table(_group_table(group, info, schema, ranks))
        if (sequences, targets) != (info.sequences, info.targets):
            raise AngelshareError(
                f"{path}: {sequences} sequences with {targets} targets were written, "
                f"{info.sequences} with {info.targets} announced"
            )


def _leading(rows: Iterator[CachedTargets]) -> tuple[list[CachedTargets], Iterator[CachedTargets]]:
    """The first rows, of at least ``ALPHABET_TARGETS`` positions if there are so many; the rest."""
    first: list[CachedTargets] = []
    targets = 0
    for row in rows:
        first.append(row)
        targets += len(row.kept)
        if targets >= ALPHABET_TARGETS:
            break
    return first, rows


def _groups(rows: Iterable[CachedTargets]) -> Iterator[list[CachedTargets]]:
    group: list[CachedTargets] = []
    targets = 0
    for row in rows:
        group.append(row)
        targets += len(row.kept)
        if targets >= TARGETS_PER_GROUP:
            yield group
            group, targets = [], 0
    if group:
        yield group


def _group_table(
    group: Sequence[CachedTargets], info: CacheInfo, schema: pa.Schema, ranks: np.ndarray
) -> pa.Table:
    for row in group:
        n, grid = len(row.kept), (len(row.kept), len(info.temperatures))
        kept = (int(row.kept.sum()),)
        expected = [kept, kept, grid, grid, (n,), (n,)]
        arrays = [row.token_ids, row.logits, row.log_partition, row.log_tail]
        found = [array.shape for array in [*arrays, row.gold_logprob, row.entropy]]
        if found != expected or (n and row.kept.min() < 1):
            raise AngelshareError(f"logit cache row {row.id}: shapes {found} are not {expected}")
    columns = {
        "id": pa.array([row.id for row in group]),
        "tokens_sha256": pa.array([row.tokens_sha256 for row in group], pa.binary()),
        "targets": pa.array([len(row.kept) for row in group], pa.int32()),
        "kept": as_lists([row.kept for row in group]),
        "gold_logprob": as_lists([half(row.gold_logprob) for row in group]),
        "entropy": as_lists([half(row.entropy) for row in group]),
        **info.codec.encode(group, ranks),
    }
    arrays = [columns[field.name].cast(field.type) for field in schema]
    return pa.table(arrays, schema=schema)


class LogitCache(RowGroups):
    """Rows of one or more part files, each decoded when it is asked for."""

    def __init__(self, paths: Sequence[Path], resident_bytes: int | None = None) -> None:
        """Open the parts; ``AngelshareError`` on a foreign file or parts that do not agree."""
        if not paths:
            raise AngelshareError("a logit cache has at least one part file")
        files = [open_parquet(Path(path)) for path in paths]
        infos = [_read_info(file, path) for file, path in zip(files, paths, strict=True)]
        self.info = replace(
            infos[0],
            sequences=sum(info.sequences for info in infos),
            targets=sum(info.targets for info in infos),
        )
        for info, path in zip(infos, paths, strict=True):
            if replace(info, sequences=0, targets=0) != replace(infos[0], sequences=0, targets=0):
                raise AngelshareError(
                    f"{path}: its codec, temperatures, vocabulary, tokenizer or back end differ: "
                    f"{infos}"
                )
        super().__init__(files, resident_bytes)
        self._ids = [
            _read_alphabet(file, path, self.info.vocab_size)
            for file, path in zip(files, paths, strict=True)
        ]

    def row(self, index: int) -> CachedTargets:
        """Row ``index``, decoded; ``IndexError`` outside 0 ≤ index < len."""
        part, group, place = self.find(index)
        kept = group.lists["kept"][place]
        return CachedTargets(
            id=group.ids[place].as_py(),
            tokens_sha256=group.digests[place].as_py(),
            kept=kept,
            gold_logprob=group.lists["gold_logprob"][place],
            entropy=group.lists["entropy"][place],
            **self.info.codec.decode(
                group.lists, place, kept, self._ids[part], self.info.temperatures
            ),
        )


def _read_info(file: pq.ParquetFile, path: Path) -> CacheInfo:
    schema = file.schema_arrow
    metadata = (schema.metadata or {}).get(METADATA_KEY)
    if metadata is None:
        raise AngelshareError(f"{path}: not a logit cache (no {METADATA_KEY.decode()!r} metadata)")
    try:
        values = json.loads(metadata)
        codec = make_codec(values["codec"], values["version"], values.get("parameters", {}))
        info = CacheInfo(
            codec=codec,
            temperatures=tuple(float(value) for value in values["temperatures"]),
            vocab_size=int(values["vocab_size"]),
            tokenizer_sha256=str(values["tokenizer_sha256"]),
            sequences=int(values["sequences"]),
            targets=int(values["targets"]),
            backend=str(values.get("backend", "transformers")),
        )
    except AngelshareError as error:
        raise AngelshareError(f"{path}: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise AngelshareError(
            f"{path}: the metadata of this logit cache cannot be read ({error!r}); the file is "
            "damaged or was changed. Capture it anew"
        ) from error
    if not schema.remove_metadata().equals(cache_schema(codec)):
        raise AngelshareError(f"{path}: columns are not those of a logit cache: {schema.names}")
    if file.metadata.num_rows != info.sequences or 1.0 not in info.temperatures:
        raise AngelshareError(
            f"{path}: {file.metadata.num_rows} rows, its metadata say {info.sequences} and "
            f"temperatures {list(info.temperatures)}; the file is damaged or was changed"
        )
    return info


def _read_alphabet(file: pq.ParquetFile, path: Path, vocab_size: int) -> np.ndarray:
    """int32, the id of every rank of this part."""
    try:
        listed = json.loads(file.schema_arrow.metadata[ALPHABET_KEY])
        alphabet = Alphabet(np.asarray(listed, dtype=np.int32).reshape(-1), vocab_size)
        if len(listed) and not 0 <= alphabet.listed.min() <= alphabet.listed.max() < vocab_size:
            raise ValueError("an id outside the vocabulary")
    except (ValueError, KeyError, TypeError) as error:
        raise AngelshareError(
            f"{path}: its alphabet of token ids cannot be read ({error!r}); the file is damaged or "
            "was changed. Capture it anew"
        ) from error
    return alphabet.ids()
