"""From a trace to a published record: the one way in which a window is closed, whoever closes it.

The job closes its own window; when it was killed its sampler does (``python -m``); when both are
dead the next reader of the folder does. All three call :func:`close_attempt`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Literal

from angelshare.energy.computing import Status, compute
from angelshare.energy.ranks import Look, attempts_folders, look_at, merge_looks, ranks_folder
from angelshare.energy.sidecar import Record, TraceFile, Warning
from angelshare.energy.trace import Trace, read_parquet, read_text, write_parquet
from angelshare.files import publish_json, sha256_file


def text_trace(attempt: Path) -> Path:
    """Where the trace of a running attempt is."""
    return attempt.with_suffix(".trace.jsonl")


def parquet_trace(attempt: Path) -> Path:
    """Where the trace of a closed attempt is."""
    return attempt.with_suffix(".trace.parquet")


def close_attempt(
    attempt: Path,
    *,
    status: Status,
    closed_by: Literal["meter", "sweeper"],
    exit_code: int | None = None,
    signal: int | None = None,
    trace: Trace | None = None,
) -> Record:
    """Compute and publish the record of ``attempt`` from its trace; the trace becomes Parquet.

    ``trace`` replaces the one beside the record. Raises OSError or ValueError when there is none.
    """
    if trace is None:
        text = text_trace(attempt)
        trace = read_text(text) if text.exists() else read_parquet(parquet_trace(attempt))
    columns = write_parquet(trace, parquet_trace(attempt))
    record = _record_of(attempt, trace, status)
    record.record.closed_by = closed_by
    record.record.complete &= not trace.broken_off
    record.record.exit_code = exit_code
    record.record.signal = signal
    record.trace = TraceFile(
        path=parquet_trace(attempt).name,
        format="parquet",
        sha256=sha256_file(parquet_trace(attempt)),
        rows=len(trace.samples),
        columns=columns,
        torn_rows=trace.torn_rows,
    )
    publish_json(attempt, record.to_json())
    text_trace(attempt).unlink(missing_ok=True)
    Path(trace.plan["live"]).unlink(missing_ok=True)
    return record


def _record_of(attempt: Path, trace: Trace, status: Status) -> Record:
    """What the trace gives, with the closed records of the ranks that the job started."""
    looks, left_out = looks_in(ranks_folder(attempt))
    own = look_at(trace, status)
    record = merge_looks([own, *looks], status=status) if looks else compute(trace, status=status)
    if left_out:
        text = f"{left_out} ranks are not closed or cannot be read: their joules are not in"
        record.warnings = [*(record.warnings or []), Warning(code="ranks_open", text=text)]
        record.record.complete = False
    return record


def looks_in(ranks: Path) -> tuple[list[Look], int]:
    """What the closed windows in a folder of ranks saw, and how many are open or cannot be read."""
    looks, left_out = [], 0
    for folder in attempts_folders([ranks]):
        for path in sorted(folder.glob("*.json")):
            try:
                status = json.loads(path.read_bytes())["record"]["status"]
                if status == "running":
                    left_out += 1
                else:
                    looks.append(look_at(read_parquet(parquet_trace(path)), status))
            except (KeyError, OSError, TypeError, ValueError):
                left_out += 1
    return looks, left_out


def main() -> None:
    """Close the record of a job that died; run by its sampler with the record's path."""
    from angelshare.energy.attempts import await_ranks, read_record, settle

    attempt = Path(sys.argv[1])
    if read_record(attempt).record.status == "running":
        await_ranks(attempt)
        close_attempt(attempt, status="killed", closed_by="meter")
        settle(attempt)


if __name__ == "__main__":
    os.umask(0o022)
    main()
