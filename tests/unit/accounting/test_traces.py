"""Power over time from trace files: counters become watts, readings stand in, estimates say so."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from studies import sidecar, write

from angelshare.accounting.attempts import load_attempts
from angelshare.accounting.study import AttemptSource
from angelshare.accounting.traces import POINTS, trace_table


def attempts_with(folder: Path, columns: dict[str, list[float | None]]) -> pl.DataFrame:
    write(folder, sidecar("a", "student_train", 100.0))
    (record,) = folder.glob("*.json")
    pl.DataFrame(columns).write_parquet(record.with_suffix(".trace.parquet"))
    return load_attempts([AttemptSource(folder)])[0]


def test_counters_become_watts(tmp_path: Path) -> None:
    seconds = [0.5 * i for i in range(2001)]
    attempts = attempts_with(
        tmp_path,
        {
            "t_ns": [s * 1e9 for s in seconds],
            "cpu_s": [2.0 * s for s in seconds],
            # 100 W for 500 s, then 300 W.
            "gpu0_counter_mj": [1e5 * s if s < 500 else 5e7 + 3e5 * (s - 500) for s in seconds],
            "gpu1_counter_mj": [None] * 2001,
            "gpu1_usage_mw": [42e3] * 2001,
            "rss_bytes": [1.0] * 2001,
        },
    )
    found = trace_table(attempts)
    lines = {key[0]: line for key, line in found.group_by("component")}
    assert set(lines) == {"job", "gpu0", "gpu1"}
    assert lines["job"]["unit"].unique().to_list() == ["busy threads"]
    assert lines["job"]["value"].to_list() == pytest.approx([2.0] * POINTS)
    gpu = lines["gpu0"].sort("t_s")
    assert gpu["value"][0] == pytest.approx(100.0)
    assert gpu["value"][-1] == pytest.approx(300.0)
    assert gpu["value"].mean() == pytest.approx(200.0)
    assert lines["gpu1"]["value"].to_list() == pytest.approx([42.0] * POINTS)


def test_a_missing_or_short_trace_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, sidecar("a", "student_train", 100.0))
    attempts, _ = load_attempts([AttemptSource(tmp_path)])
    assert trace_table(attempts).is_empty()
    short = attempts_with(tmp_path / "short", {"t_ns": [0.0, 1e9], "cpu_s": [0.0, 1.0]})
    assert trace_table(short).is_empty()
