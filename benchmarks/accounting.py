"""The accounting tables over 10^3 to 10^6 attempts, beside pandas and beside reading the bytes.

    python benchmarks/accounting.py [--attempts 1000 10000] [--folder DIR]
                                    [--out benchmarks/results/accounting.json]

*first*: all records parsed, all tables made, what was read kept. *again*: the same once the records
are consolidated; only what is new is parsed, every file is looked at. *pandas*: each JSON file read
into a DataFrame and summed by run, artifact and stage, no more. *bytes*: each file read and nothing
done. *kept bytes*: the consolidated Parquet read and nothing done. Each in a process of its own:
wall seconds and peak memory (MiB), with a warm page cache. A run has ten attempts, at most 1,000
runs; the rest are attempts of parts of shared artifacts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from angelshare.accounting.settings import AccountingSettings
from angelshare.accounting.study import Artifact, AttemptSource, Consumer, Run, Score, Study
from angelshare.accounting.tables import write_tables

MOST_RUNS = 1_000
PER_RUN = 10
MEASURES = ("bytes", "pandas", "first", "again", "kept bytes")
PIPELINES = ("sft", "kd", "synthetic_sft")


def record(number: int, stage: str, energy_j: float, tokens: dict[str, int]) -> bytes:
    """A record as jobs leave it, with three components."""
    parts = [
        {
            "id": name,
            "kind": kind,
            "device": {"uuid": f"{kind}-{number % 8}", "model": "H100" if kind == "gpu" else None},
            "quality": "measured" if kind == "gpu" else "estimated",
            "method": "nvml_counter" if kind == "gpu" else "load_model",
            "attribution": "whole_device",
            "energy_j": share * energy_j,
            "u95_j": 0.05 * share * energy_j,
            "u": {"gain_rel95": 0.05},
        }
        for name, kind, share in (
            ("gpu0", "gpu", 0.8),
            ("cpu0", "cpu_package", 0.15),
            ("dram", "dram", 0.05),
        )
    ]
    value = {
        "schema": "energy-sidecar/1",
        "record": {
            "id": f"{number:08x}",
            "rule": f"rule_{stage}",
            "stage": stage,
            "wildcards": {"part": str(number)},
            "attempt": 1,
            "status": "failed" if number % 50 == 7 else "ok",
            "complete": True,
        },
        "run": {"workflow_id": "w", "host": f"n{number % 8}"},
        "time": {"start_utc": f"2026-01-01T00:00:00.{number % 1000:03d}Z", "duration_s": 60.0},
        "env": {"cpu_model": "a processor"},
        "scope": {"boundary": "gpu board + cpu package + dram", "exclusive": True},
        "components": parts,
        "total": {
            "energy_j": {"value": energy_j, "low": 0.95 * energy_j, "high": 1.05 * energy_j},
            "measured_j": 0.8 * energy_j,
            "estimated_j": 0.2 * energy_j,
            "missing": [],
        },
        "work": {"tokens": tokens},
        "carbon": {
            "pue": {"value": 1.2},
            "grid": [{"g_per_kwh": 300.0, "source": "a grid"}],
            "co2e_g": {"value": energy_j / 1e4},
        },
        "warnings": [],
    }
    return json.dumps(value).encode()


def make(root: Path, attempts: int) -> None:
    """Write the records of a study of this many attempts."""
    runs = max(3, min(MOST_RUNS, attempts // (2 * PER_RUN)))
    number = 0
    for run in range(runs):
        folder = root / "runs" / str(run)
        folder.mkdir(parents=True)
        for attempt in range(PER_RUN):
            stage = "evaluate" if attempt == PER_RUN - 1 else "student_train"
            kind = "evaluated" if stage == "evaluate" else "trained"
            content = record(number, stage, 100.0 + number % 7, {kind: 1000})
            (folder / f"{number:08d}.json").write_bytes(content)
            number += 1
    for kind in ("logits", "corpus"):
        (root / kind).mkdir()
    while number < attempts:
        kind, stage = (
            ("logits", "teacher_logits") if number % 2 else ("corpus", "teacher_generation")
        )
        content = record(number, stage, 50.0 + number % 11, {"cached": 500, "generated": 400})
        (root / kind / f"{number:08d}.json").write_bytes(content)
        number += 1


def study_of(root: Path) -> Study:
    """The study of the records in a folder."""
    count = sum(1 for _ in (root / "runs").iterdir())
    needs = {"sft": (), "kd": (("logits", "l"),), "synthetic_sft": (("corpus", "c"),)}
    runs, scores = [], []
    readers: dict[str, list[str]] = {"logits": [], "corpus": []}
    for number in range(count):
        pipeline = PIPELINES[number % 3]
        name, student = f"r{number}", f"s{number // 3 % 30}"
        runs.append(
            Run(
                name,
                pipeline,
                student,
                "d",
                number,
                {},
                needs[pipeline],
                9000,
                1 + number // 3 % 30,
            )
        )
        scores.append(Score(name, "exact_match", 0.3 + 0.001 * (number % 300), 0.01, 0.9))
        for kind, _ in needs[pipeline]:
            readers[kind].append(Consumer(name, name, "ours", 9000, "2026-01-02"))
    artifacts = tuple(
        Artifact(kind, key, kind, 1000, 1000, True, tuple(readers[kind]))
        for kind, key in (("logits", "l"), ("corpus", "c"))
    )
    sources = [AttemptSource(root / "runs" / str(n), run=f"r{n}") for n in range(count)]
    sources += [
        AttemptSource(root / kind, artifact_kind=kind, artifact_key=key)
        for kind, key in (("logits", "l"), ("corpus", "c"))
    ]
    return Study("ours", tuple(runs), artifacts, tuple(scores), tuple(sources))


def measure(name: str, root: Path) -> dict[str, float]:
    """Do one measurement in this process."""
    memory = root.with_name(f"{root.name}-memory")
    tables = root.with_name(f"{root.name}-tables")
    study = study_of(root)
    began = time.perf_counter()
    if name in ("first", "again"):
        write_tables(study, AccountingSettings(), tables, memory)
    elif name == "pandas":
        _pandas(study)
    elif name == "bytes":
        for source in study.sources:
            for entry in os.scandir(source.folder):
                Path(entry.path).read_bytes()
    else:
        for path in memory.iterdir():
            path.read_bytes()
    elapsed_s = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": elapsed_s, "peak_mib": peak}


def _pandas(study: Study) -> None:
    import pandas as pd

    rows = []
    for source in study.sources:
        for entry in os.scandir(source.folder):
            with open(entry.path, "rb") as stream:
                found = json.load(stream)
            rows.append(
                {
                    "run": source.run,
                    "artifact": source.artifact_key,
                    "stage": found["record"]["stage"],
                    "status": found["record"]["status"],
                    "energy_j": found["total"]["energy_j"]["value"],
                    "co2e_g": found["carbon"]["co2e_g"]["value"],
                }
            )
    frame = pd.DataFrame(rows)
    frame.groupby(["run", "artifact", "stage"], dropna=False)[["energy_j", "co2e_g"]].sum()


def main() -> None:
    """Measure, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--attempts", type=int, nargs="*", default=[1_000, 10_000])
    parser.add_argument("--folder", type=Path, help="Where to measure; default: a temporary one.")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure[0], Path(arguments.measure[1]))))
        return
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        for attempts in arguments.attempts:
            root = Path(name) / str(attempts)
            root.mkdir()
            make(root, attempts)
            results[str(attempts)] = {what: _apart(what, root) for what in MEASURES}
            for what, found in results[str(attempts)].items():
                print(
                    f"{attempts:>9,} {what:11} {found['seconds']:9.3f} s"
                    f" {found['peak_mib']:9.0f} MiB",
                    flush=True,
                )
    if arguments.out is not None:
        machine = {"cpus": len(os.sched_getaffinity(0)), "python": platform.python_version()}
        command = " ".join(["python", "benchmarks/accounting.py", *sys.argv[1:]])
        found = {"command": command, "machine": machine, "attempts": results}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


def _apart(what: str, root: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, "--measure", what, str(root)],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
