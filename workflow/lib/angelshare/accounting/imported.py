"""The same tables from energies measured elsewhere: another harness, a published table, as CSV.

Stages: `run, pipeline, student, dataset, seed, stage, artifact, energy_kwh, tokens`, and where
known the columns of `FACTS`; further columns are hyperparameters of the run. A row with an artifact
is one bill, however many runs name it. A row without a run is on nobody's bill. Quality: `run,
benchmark, score, teacher_score`, and `stderr` where known. What such numbers lack (bounds, failed
attempts, hardware, carbon) stays null and is listed in `warnings`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from angelshare.accounting.attempts import ATTEMPT_SCHEMA, COMPONENT_SCHEMA, STATUSES
from angelshare.accounting.settings import AccountingSettings
from angelshare.accounting.study import Artifact, Run, Score, Study
from angelshare.accounting.tables import Tables, make_tables, publish_tables
from angelshare.accounting.units import J_PER_KWH
from angelshare.errors import AngelshareError

STAGE_COLUMNS = (
    *("run", "pipeline", "student", "dataset", "seed", "stage", "artifact", "energy_kwh", "tokens"),
)
QUALITY_COLUMNS = ("run", "benchmark", "score", "teacher_score")
FACTS = (
    *("duration_s", "energy_low_kwh", "energy_high_kwh", "gpu_kwh", "cpu_kwh", "dram_kwh"),
    *("co2e_g", "hardware", "status", "source", "lacks"),
)
"""Columns that need not be there. `status` is `ok` unless it says `failed`, `killed` or
`preempted`: such an attempt is on the bill of its run or artifact too."""

_KIND_OF_STAGE = {
    "preprocess": "dataset",
    "teacher_logits": "logits",
    "teacher_generation": "corpus",
    "teacher_hidden": "states",
    "teacher_embeddings": "states",
    "teacher_evaluate": "scores",
    "judge": "scores",
}


def account_csv(
    stages: Path | Sequence[Path],
    quality: Path | Sequence[Path] | None,
    out: Path,
    settings: AccountingSettings | None = None,
) -> Tables:
    """Make and publish all tables in `out` from CSV files of stages and of quality.

    Several files make one study, so that numbers of different origin meet on one frontier. Raises
    AngelshareError naming file, line and column where files are incomplete or contradict each
    other.
    """
    files = _several(stages)
    rows = [row for path in files for row in _read(path, STAGE_COLUMNS)]
    scores = [score for path in _several(quality) for score in _scores(path)]
    study = Study(
        team="imported", runs=_runs(rows), artifacts=_artifacts(rows), scores=tuple(scores)
    )
    bills = _one_per_bill(rows)
    attempts = pl.DataFrame([_attempt(row) for row in bills], schema=ATTEMPT_SCHEMA)
    components = pl.DataFrame([_component(row) for row in bills], schema=COMPONENT_SCHEMA)
    tables = make_tables(study, attempts, components, settings or AccountingSettings())
    publish_tables(tables, out)
    return tables


def _several(paths: Path | Sequence[Path] | None) -> list[Path]:
    return [] if paths is None else [paths] if isinstance(paths, Path) else list(paths)


def _read(path: Path, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows of a CSV as text, empty cells as None, with the `path` and `line` of each."""
    try:
        frame = pl.read_csv(path, infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise AngelshareError(f"{path}: not a readable CSV file ({error})") from error
    frame = frame.rename(lambda name: name.strip())
    if missing := [name for name in columns if name not in frame.columns]:
        raise AngelshareError(
            f"{path}: lacks the column {missing[0]}; it needs {', '.join(columns)}"
        )
    stripped = frame.with_columns(pl.all().str.strip_chars().replace("", None))
    numbered = enumerate(stripped.rows(named=True), start=2)
    return [{**row, "path": path, "line": line} for line, row in numbered]


def _number(row: dict[str, Any], column: str, *, need: bool = False) -> float | None:
    text = row.get(column)
    if text is None and not need:
        return None
    try:
        value = float(text or "")
    except ValueError:
        value = float("nan")
    if not value >= 0:
        raise AngelshareError(
            f"{row['path']}, line {row['line']}: {column} must be a number of at least 0 "
            f"(got {text!r})"
        )
    return value


def _kind(row: dict[str, Any]) -> str:
    return _KIND_OF_STAGE.get(row["stage"], row["stage"])


def _runs(rows: list[dict[str, Any]]) -> tuple[Run, ...]:
    """One run per name; all its rows must describe it alike."""
    grouped: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["stage"] is None:
            raise AngelshareError(f"{row['path']}, line {row['line']}: stage is empty")
        if row["run"] is not None:
            grouped[row["run"]].append(row)
    told = {*STAGE_COLUMNS, *FACTS, "path", "line", "id"}
    further = list(dict.fromkeys(name for row in rows for name in row if name not in told))
    return tuple(_run(name, own, further) for name, own in grouped.items())


def _run(name: str, rows: list[dict[str, Any]], further: list[str]) -> Run:
    path, line = rows[0]["path"], rows[0]["line"]
    said: dict[str, Any] = {}
    for column in ("pipeline", "student", "dataset", "seed", *further):
        values = {row[column] for row in rows if row.get(column) is not None}
        if len(values) > 1:
            raise AngelshareError(
                f"{path}: run {name} has several values of {column}: {', '.join(sorted(values))}"
            )
        said[column] = values.pop() if values else None
    if said["pipeline"] is None or said["student"] is None:
        raise AngelshareError(f"{path}, line {line}: run {name} needs pipeline and student")
    trained = [_number(row, "tokens") for row in rows if row["stage"] == "student_train"]
    artifacts = dict.fromkeys((_kind(row), row["artifact"]) for row in rows if row["artifact"])
    scored = [row["artifact"] for row in rows if row["stage"] == "teacher_evaluate"]
    return Run(
        run=name,
        pipeline=said["pipeline"],
        student=said["student"],
        dataset=said["dataset"] or "",
        seed=int(_number({"path": path, "line": line, **said}, "seed") or 0),
        hyperparameters={name: _plain(said[name]) for name in further if said[name] is not None},
        artifacts=tuple(artifacts),
        tokens=int(sum(count or 0 for count in trained)),
        teacher_scores=("scores", scored[0]) if scored and scored[0] else None,
    )


def _plain(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _artifacts(rows: list[dict[str, Any]]) -> tuple[Artifact, ...]:
    found = dict.fromkeys((_kind(row), row["artifact"]) for row in rows if row["artifact"])
    return tuple(Artifact(kind, key, key, 0, 0) for kind, key in found)


def _scores(path: Path) -> tuple[Score, ...]:
    rows = _read(path, QUALITY_COLUMNS)
    return tuple(
        Score(
            run=row["run"] or "",
            benchmark=row["benchmark"] or "",
            score=_number(row, "score", need=True) or 0.0,
            stderr=_number(row, "stderr"),
            teacher_score=_number(row, "teacher_score"),
        )
        for row in rows
    )


def _one_per_bill(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with their energy in joules, rows of one artifact merged into one bill.

    Equal rows of an attempt that failed are one attempt too.
    """
    bills: list[dict[str, Any]] = []
    made: dict[tuple[str, str], dict[str, Any]] = {}
    lost: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        energy_kwh = _number(row, "energy_kwh", need=row["artifact"] is None)
        bill = {**row, "energy_j": None if energy_kwh is None else energy_kwh * J_PER_KWH}
        if row["artifact"] is None:
            bills.append(bill)
            continue
        if (status := _status(row)) != "ok":
            attempt = (_kind(row), row["artifact"], status, row.get("id"), energy_kwh)
            lost.setdefault(attempt, bill)
            continue
        first = made.setdefault((_kind(row), row["artifact"]), bill)
        if first["energy_j"] is None:
            first["energy_j"] = bill["energy_j"]
        elif bill["energy_j"] not in (None, first["energy_j"]):
            raise AngelshareError(
                f"{first['path']}, line {first['line']}, and {row['path']}, line {row['line']}, "
                f"give artifact {row['artifact']} different energies ({first['energy_kwh']} and "
                f"{row['energy_kwh']} kWh): an artifact has one bill. Give artifacts that were "
                "made twice two names"
            )
    for (_, name), bill in made.items():
        if bill["energy_j"] is None:
            raise AngelshareError(f"{bill['path']}: no row gives the energy_kwh of artifact {name}")
    return [*bills, *made.values(), *lost.values()]


def _status(row: dict[str, Any]) -> str:
    status = row.get("status") or "ok"
    if status not in STATUSES:
        raise AngelshareError(
            f"{row['path']}, line {row['line']}: status is {status!r}, not one of "
            f"{', '.join(STATUSES)}"
        )
    return str(status)


def _joules(row: dict[str, Any], column: str) -> float | None:
    kwh = _number(row, column)
    return None if kwh is None else kwh * J_PER_KWH


def _lacks(row: dict[str, Any]) -> str:
    """What this figure lacks beside one of our own records, in the words of `warnings`."""
    found = ["imported"]
    if row.get("status") is None:
        found.append("no_attempts")
    for word, column in (
        ("no_bounds", "energy_low_kwh"),
        ("no_carbon", "co2e_g"),
        ("no_duration", "duration_s"),
        ("no_hardware", "hardware"),
    ):
        if row.get(column) is None:
            found.append(word)
    return ", ".join(dict.fromkeys([*found, *filter(None, (row.get("lacks") or "").split("; "))]))


def _attempt(row: dict[str, Any]) -> dict[str, Any]:
    tokens, duration_s = _number(row, "tokens"), _number(row, "duration_s")
    shared = row["artifact"] is not None
    owner = f"{_kind(row)}/{row['artifact']}" if shared else f"run {row['run']}"
    return {
        **dict.fromkeys(ATTEMPT_SCHEMA),
        "job": f"imported[stage={row['stage']},line={row['line']}]@{owner}",
        "rule": "imported",
        "stage": row["stage"],
        "run": None if shared else row["run"],
        "artifact_kind": _kind(row) if shared else None,
        "artifact_key": row["artifact"],
        "attempt": 1,
        "status": _status(row),
        "duration_s": duration_s,
        "energy_j": row["energy_j"],
        "energy_low_j": _joules(row, "energy_low_kwh"),
        "energy_high_j": _joules(row, "energy_high_kwh"),
        "gpu_energy_j": _joules(row, "gpu_kwh"),
        "cpu_energy_j": _joules(row, "cpu_kwh"),
        "dram_energy_j": _joules(row, "dram_kwh"),
        "tokens": None if tokens is None else int(tokens),
        "j_per_token": row["energy_j"] / tokens if tokens else None,
        "tokens_per_s": tokens / duration_s if tokens and duration_s else None,
        "co2e_g": _number(row, "co2e_g"),
        "hardware": row.get("hardware"),
        "id": f"{row['path'].name}:{row['line']}",
        "missing": "",
        "warnings": _lacks(row),
        "record": f"{row['path']}:{row['line']}",
    }


def _component(row: dict[str, Any]) -> dict[str, Any]:
    shared = row["artifact"] is not None
    return {
        **dict.fromkeys(COMPONENT_SCHEMA),
        "id": f"{row['path'].name}:{row['line']}",
        "run": None if shared else row["run"],
        "artifact_kind": _kind(row) if shared else None,
        "artifact_key": row["artifact"],
        "stage": row["stage"],
        "component": "total",
        "kind": "other",
        "quality": "declared",
        "method": row.get("source") or "imported",
        "energy_j": row["energy_j"],
    }
