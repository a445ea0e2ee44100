"""The same tables from energies measured elsewhere: another harness, a published table, as CSV.

Stages: `run, pipeline, student, dataset, seed, stage, artifact, energy_kwh, tokens`; further
columns are hyperparameters of the run. A row with an artifact is one bill, however many runs name
it. A row without a run is on nobody's bill. Quality: `run, benchmark, score, teacher_score`, and
`stderr` where known. What such numbers lack (bounds, failed attempts, hardware, carbon) stays null
and is listed in `warnings`.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import polars as pl

from angelshare.accounting.attempts import ATTEMPT_SCHEMA, COMPONENT_SCHEMA
from angelshare.accounting.settings import AccountingSettings
from angelshare.accounting.study import Artifact, Run, Score, Study
from angelshare.accounting.tables import Tables, make_tables, publish_tables
from angelshare.accounting.units import J_PER_KWH
from angelshare.errors import AngelshareError

STAGE_COLUMNS = (
    *("run", "pipeline", "student", "dataset", "seed", "stage", "artifact", "energy_kwh", "tokens"),
)
QUALITY_COLUMNS = ("run", "benchmark", "score", "teacher_score")
LACKS = "imported, no_attempts, no_bounds, no_carbon, no_duration, no_hardware"

_KIND_OF_STAGE = {
    "preprocess": "dataset",
    "teacher_logits": "logits",
    "teacher_generation": "corpus",
    "teacher_hidden": "hidden",
    "teacher_embeddings": "embeddings",
    "judge": "scores",
}


def account_csv(
    stages: Path, quality: Path | None, out: Path, settings: AccountingSettings | None = None
) -> Tables:
    """Make and publish all tables in `out` from two CSV files.

    Raises AngelshareError naming file, line and column where the files are incomplete or
    contradict themselves.
    """
    rows = _read(stages, STAGE_COLUMNS)
    scores = () if quality is None else _scores(quality)
    study = Study(
        team="imported", runs=_runs(stages, rows), artifacts=_artifacts(rows), scores=scores
    )
    bills = _one_per_bill(stages, rows)
    attempts = pl.DataFrame([_attempt(stages, row) for row in bills], schema=ATTEMPT_SCHEMA)
    components = pl.DataFrame([_component(stages, row) for row in bills], schema=COMPONENT_SCHEMA)
    tables = make_tables(study, attempts, components, settings or AccountingSettings())
    publish_tables(tables, out)
    return tables


def _read(path: Path, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows of a CSV as text, empty cells as None, with their line numbers as `line`."""
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
    return [{**row, "line": line} for line, row in enumerate(stripped.rows(named=True), start=2)]


def _number(path: Path, row: dict[str, Any], column: str, *, need: bool = False) -> float | None:
    text = row.get(column)
    if text is None and not need:
        return None
    try:
        value = float(text or "")
    except ValueError:
        value = float("nan")
    if not value >= 0:
        raise AngelshareError(
            f"{path}, line {row['line']}: {column} must be a number of at least 0 (got {text!r})"
        )
    return value


def _kind(row: dict[str, Any]) -> str:
    return _KIND_OF_STAGE.get(row["stage"], row["stage"])


def _runs(path: Path, rows: list[dict[str, Any]]) -> tuple[Run, ...]:
    """One run per name; all its rows must describe it alike."""
    grouped: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["stage"] is None:
            raise AngelshareError(f"{path}, line {row['line']}: stage is empty")
        if row["run"] is not None:
            grouped[row["run"]].append(row)
    further = [name for name in (rows[0] if rows else {}) if name not in (*STAGE_COLUMNS, "line")]
    return tuple(_run(path, name, own, further) for name, own in grouped.items())


def _run(path: Path, name: str, rows: list[dict[str, Any]], further: list[str]) -> Run:
    said: dict[str, Any] = {}
    for column in ("pipeline", "student", "dataset", "seed", *further):
        values = {row[column] for row in rows if row[column] is not None}
        if len(values) > 1:
            raise AngelshareError(
                f"{path}: run {name} has several values of {column}: {', '.join(sorted(values))}"
            )
        said[column] = values.pop() if values else None
    if said["pipeline"] is None or said["student"] is None:
        raise AngelshareError(
            f"{path}, line {rows[0]['line']}: run {name} needs pipeline and student"
        )
    trained = [_number(path, row, "tokens") for row in rows if row["stage"] == "student_train"]
    artifacts = dict.fromkeys((_kind(row), row["artifact"]) for row in rows if row["artifact"])
    return Run(
        run=name,
        pipeline=said["pipeline"],
        student=said["student"],
        dataset=said["dataset"] or "",
        seed=int(_number(path, {"line": rows[0]["line"], **said}, "seed") or 0),
        hyperparameters={name: _plain(said[name]) for name in further if said[name] is not None},
        artifacts=tuple(artifacts),
        tokens=int(sum(count or 0 for count in trained)),
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
            score=_number(path, row, "score", need=True) or 0.0,
            stderr=_number(path, row, "stderr"),
            teacher_score=_number(path, row, "teacher_score"),
        )
        for row in rows
    )


def _one_per_bill(path: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with their energy in joules, rows of one artifact merged into one bill."""
    bills: list[dict[str, Any]] = []
    made: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        energy_kwh = _number(path, row, "energy_kwh", need=row["artifact"] is None)
        bill = {**row, "energy_j": None if energy_kwh is None else energy_kwh * J_PER_KWH}
        if row["artifact"] is None:
            bills.append(bill)
            continue
        first = made.setdefault((_kind(row), row["artifact"]), bill)
        if first["energy_j"] is None:
            first["energy_j"] = bill["energy_j"]
        elif bill["energy_j"] not in (None, first["energy_j"]):
            raise AngelshareError(
                f"{path}: lines {first['line']} and {row['line']} give artifact {row['artifact']} "
                f"different energies ({first['energy_kwh']} and {row['energy_kwh']} kWh): an "
                "artifact has one bill. Give artifacts that were made twice two names"
            )
    for (_, name), bill in made.items():
        if bill["energy_j"] is None:
            raise AngelshareError(f"{path}: no row gives the energy_kwh of artifact {name}")
    return [*bills, *made.values()]


def _attempt(path: Path, row: dict[str, Any]) -> dict[str, Any]:
    tokens = _number(path, row, "tokens")
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
        "status": "ok",
        "energy_j": row["energy_j"],
        "tokens": None if tokens is None else int(tokens),
        "j_per_token": row["energy_j"] / tokens if tokens else None,
        "id": f"{path.name}:{row['line']}",
        "missing": "",
        "warnings": LACKS,
        "record": f"{path}:{row['line']}",
    }


def _component(path: Path, row: dict[str, Any]) -> dict[str, Any]:
    shared = row["artifact"] is not None
    return {
        **dict.fromkeys(COMPONENT_SCHEMA),
        "id": f"{path.name}:{row['line']}",
        "run": None if shared else row["run"],
        "artifact_kind": _kind(row) if shared else None,
        "artifact_key": row["artifact"],
        "stage": row["stage"],
        "component": "total",
        "kind": "other",
        "quality": "declared",
        "method": "imported",
        "energy_j": row["energy_j"],
    }
