"""Attempt records read once: what was read stays in two Parquet files, only what is new is parsed.

A record that has ended never changes; one that still runs is read again each time. A kept row
counts only while its file stands there unchanged (time and size) and belongs to the same owner,
so the result is always what reading everything would give.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import polars as pl

from angelshare.accounting.attempts import (
    ATTEMPT_SCHEMA,
    COMPONENT_SCHEMA,
    Record,
    attempt_frames,
    check_folder,
    check_twice,
)
from angelshare.accounting.study import AttemptSource
from angelshare.files import publishing

_OWNER = ("run", "artifact_kind", "artifact_key")
_KEY = ("record", "stamp", *_OWNER)
_KEPT_SCHEMA = {**ATTEMPT_SCHEMA, "stamp": pl.String}


def load_consolidated(
    sources: Iterable[AttemptSource], folder: Path
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What `load_attempts` gives, with `folder` as the memory between calls."""
    sources = list(sources)
    kept, kept_parts = _kept(folder)
    present = _present(sources)
    current = kept.join(present, on=list(_KEY), how="semi", nulls_equal=True)
    missing = present.join(current, on=list(_KEY), how="anti", nulls_equal=True)
    attempts, components = attempt_frames(
        (Record.read(Path(record)), AttemptSource(Path(record).parent, *owner))
        for record, _, *owner in missing.select(_KEY).rows()
    )
    stamped = attempts.join(missing.select("record", "stamp"), on="record", how="left")
    every = pl.concat([current, stamped.select(list(_KEPT_SCHEMA))])
    check_twice(every)
    parts = pl.concat([kept_parts.join(current, on="id", how="semi"), components])
    if missing.height or current.height < kept.height:
        _keep(folder, every.filter(pl.col("status") != "running"), parts)
    ordered = every.drop("stamp").sort("job", "start_utc", "id")
    return ordered, parts.sort("id", "component")


def _kept(folder: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows of the last call; nothing where there was none, or of another version's columns."""
    paths = [folder / f"{name}.parquet" for name in ("attempts", "components")]
    if all(path.is_file() for path in paths):
        attempts, components = (pl.read_parquet(path) for path in paths)
        if attempts.schema == _KEPT_SCHEMA and components.schema == COMPONENT_SCHEMA:
            return attempts, components
    return pl.DataFrame(schema=_KEPT_SCHEMA), pl.DataFrame(schema=COMPONENT_SCHEMA)


def _present(sources: list[AttemptSource]) -> pl.DataFrame:
    """One row per record file that stands there: its path, stamp and owner."""
    rows: list[tuple[str | None, ...]] = []
    for source in sources:
        found = []
        if source.folder.is_dir():
            with os.scandir(source.folder) as entries:
                for entry in entries:
                    if entry.name.endswith(".json") and not entry.name.startswith("."):
                        facts = entry.stat()
                        found.append((entry.path, f"{facts.st_mtime_ns}-{facts.st_size}"))
        check_folder(source, len(found))
        owner = (source.run, source.artifact_kind, source.artifact_key)
        rows.extend((path, stamp, *owner) for path, stamp in sorted(found))
    return pl.DataFrame(rows, schema=dict.fromkeys(_KEY, pl.String), orient="row")


def _keep(folder: Path, attempts: pl.DataFrame, components: pl.DataFrame) -> None:
    ended = components.join(attempts, on="id", how="semi")
    for name, frame in (("attempts", attempts), ("components", ended)):
        with publishing(folder / f"{name}.parquet") as temporary:
            frame.write_parquet(temporary)
