"""Reading attempt records (energy-sidecar/1) into two frames: attempts and their components.

One row per attempt, one row per device of an attempt; joules, seconds, grams. Failed and killed
attempts are rows like any other: their joules are on the job's bill. What a record does not say is
null, never 0; fields that this version does not know are passed over.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from angelshare.accounting.study import AttemptSource
from angelshare.energy.phases import TEACHER_FORWARD, TEACHER_LOAD
from angelshare.errors import AngelshareError

SCHEMA_NAME = "energy-sidecar/1"
STATUSES = ("ok", "failed", "killed", "preempted", "running")
WASTED = ("failed", "killed", "preempted")
TOKEN_KINDS = ("prompt", "generated", "trained", "cached", "evaluated")

ATTEMPT_SCHEMA: dict[str, Any] = {
    "job": pl.String,
    "rule": pl.String,
    "stage": pl.String,
    "run": pl.String,
    "artifact_kind": pl.String,
    "artifact_key": pl.String,
    "attempt": pl.Int64,
    "status": pl.String,
    "start_utc": pl.String,
    "duration_s": pl.Float64,
    "gpu_energy_j": pl.Float64,
    "cpu_energy_j": pl.Float64,
    "dram_energy_j": pl.Float64,
    "energy_j": pl.Float64,
    "energy_low_j": pl.Float64,
    "energy_high_j": pl.Float64,
    "measured_j": pl.Float64,
    "estimated_j": pl.Float64,
    "shift_5pct_j": pl.Float64,
    "tokens": pl.Int64,
    "j_per_token": pl.Float64,
    "tokens_per_s": pl.Float64,
    "co2e_g": pl.Float64,
    "hardware": pl.String,
    "id": pl.String,
    "host": pl.String,
    "boundary": pl.String,
    "exclusive": pl.Boolean,
    "missing": pl.String,
    "warnings": pl.String,
    "token_kind": pl.String,
    **{f"{kind}_tokens": pl.Int64 for kind in TOKEN_KINDS},
    **dict.fromkeys(("prefill_j", "decode_j", "teacher_online_j"), pl.Float64),
    "pue": pl.Float64,
    "grid_g_per_kwh": pl.Float64,
    "grid_source": pl.String,
    "slurm_cluster": pl.String,
    "slurm_job": pl.String,
    "slurm_restart": pl.Int64,
    "slurm_energy_j": pl.Float64,
    "slurm_ratio": pl.Float64,
    "record": pl.String,
}
"""Columns of `attempts.parquet`; `tokens` count the stage's work, in the sense of `token_kind`.
`prefill_j` and `decode_j` are null where a job did not mark them (see `efficiency`).
`teacher_online_j` is what a teacher in memory spent within a training, its loading included: part
of the training's joules, and of one run's bill alone. Null where there was none.

`shift_5pct_j` is the most that the joules of one of its phases (of the whole attempt where it has
none) change when both bounds of that phase move by 5 % of its length to either side.
What Slurm says (`beside_slurm`) is in no record: it is null until Slurm was asked.
"""

COMPONENT_SCHEMA: dict[str, Any] = {
    "id": pl.String,
    "run": pl.String,
    "artifact_kind": pl.String,
    "artifact_key": pl.String,
    "stage": pl.String,
    "component": pl.String,
    "kind": pl.String,
    "device": pl.String,
    "quality": pl.String,
    "method": pl.String,
    "attribution": pl.String,
    "board": pl.String,
    "energy_j": pl.Float64,
    "systematic_j95": pl.Float64,
    "random_j95": pl.Float64,
    "crosscheck_ok": pl.Boolean,
}
"""Columns of `components.parquet`; `board` names what the systematic part is correlated over."""

_STAGE_TOKENS = {
    "student_train": ("trained",),
    "demo_teacher": ("trained",),
    "assistant_train": ("trained",),
    "teacher_generation": ("generated",),
    "teacher_logits": ("cached",),
    "teacher_hidden": ("cached", "prompt"),
    "teacher_embeddings": ("cached", "prompt"),
    "evaluate": ("evaluated", "generated"),
    "teacher_evaluate": ("evaluated", "generated"),
    "judge": ("evaluated", "generated"),
    "preprocess": ("prompt",),
}


def load_attempts(sources: Iterable[AttemptSource]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Every attempt record of the folders as (attempts, components), in a fixed order.

    Raises AngelshareError naming file and field where a record cannot be read, and where a folder
    that should hold a run's or an artifact's records holds none: an unknown energy is not 0 J.
    """
    return attempt_frames(_records(sources))


def attempt_frames(
    records: Iterable[tuple[Record, AttemptSource]],
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The frames (attempts, components) of records and where they come from."""
    attempts: list[dict[str, Any]] = []
    components: list[dict[str, Any]] = []
    for record, source in records:
        attempts.append(_attempt(record, source))
        components.extend(_components(record, source))
    frame = pl.DataFrame(attempts, schema=ATTEMPT_SCHEMA).sort("job", "start_utc", "id")
    check_twice(frame)
    return frame, pl.DataFrame(components, schema=COMPONENT_SCHEMA).sort("id", "component")


def _records(sources: Iterable[AttemptSource]) -> Iterator[tuple[Record, AttemptSource]]:
    for source in sources:
        paths = [p for p in sorted(source.folder.glob("*.json")) if not p.name.startswith(".")]
        check_folder(source, len(paths))
        for path in paths:
            yield Record.read(path), source


def check_folder(source: AttemptSource, records: int) -> None:
    """Raise AngelshareError where a run's or an artifact's folder holds no record."""
    if not records and (source.run is not None or source.artifact_kind is not None):
        raise AngelshareError(
            f"{source.folder} holds no attempt record, so the energy of {_owner(source)} is "
            "unknown: run its job again, or copy the records along with what it made"
        )


class Record:
    """One parsed record; values are asked for by dotted path, with the file in every error."""

    def __init__(self, path: Path, value: Any) -> None:
        self.path = path
        self.value = value
        if self.get("schema", str) != SCHEMA_NAME:
            raise self.wrong("schema", f"is not {SCHEMA_NAME}")

    @staticmethod
    def read(path: Path) -> Record:
        """The record in a file; raises AngelshareError where it is no JSON."""
        try:
            return Record(path, json.loads(path.read_bytes()))
        except (OSError, ValueError) as error:
            raise AngelshareError(
                f"{path}: not a readable JSON file ({error}). Restore it from a copy, or remove it "
                "and note that its attempt's energy is then missing from the bill"
            ) from error

    def get(self, dotted: str, kind: type | tuple[type, ...], *, need: bool = True) -> Any:
        """The value at `dotted`, of type `kind`; None when absent or null and not needed."""
        value: Any = self.value
        for name in dotted.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is None and not need:
            return None
        if (
            value is None
            or not isinstance(value, kind)
            or isinstance(value, bool) != (kind is bool)
        ):
            raise self.wrong(dotted, "is missing" if value is None else f"is {value!r}")
        return value

    def number(self, dotted: str, *, need: bool = True) -> float | None:
        """The number at `dotted` as a float."""
        value = self.get(dotted, (int, float), need=need)
        return None if value is None else float(value)

    def wrong(self, dotted: str, what: str) -> AngelshareError:
        """The error for a field that does not hold what the contract says."""
        return AngelshareError(
            f"{self.path}: field `{dotted}` {what}; it must be as {SCHEMA_NAME} says. "
            "Restore the file from a copy, or run its job again"
        )


def _owner(source: AttemptSource) -> str:
    if source.run is not None:
        return f"run {source.run}"
    if source.artifact_kind is not None:
        return f"{source.artifact_kind}/{source.artifact_key}"
    return str(source.folder)


def _attempt(record: Record, source: AttemptSource) -> dict[str, Any]:
    rule, stage = record.get("record.rule", str), record.get("record.stage", str)
    wildcards = record.get("record.wildcards", dict, need=False) or {}
    named = ",".join(f"{name}={wildcards[name]}" for name in sorted(wildcards))
    status = record.get("record.status", str)
    if status not in STATUSES:
        raise record.wrong("record.status", f"is {status!r}")
    energy_j = record.number("total.energy_j.value", need=False)
    duration_s = record.number("time.duration_s")
    counts, kind = _tokens(record, stage)
    tokens = counts[f"{kind}_tokens"] if kind else None
    return {
        "job": f"{rule}[{named}]@{_owner(source)}",
        "rule": rule,
        "stage": stage,
        "run": source.run,
        "artifact_kind": source.artifact_kind,
        "artifact_key": source.artifact_key,
        "attempt": record.get("record.attempt", int),
        "status": status,
        "start_utc": record.get("time.start_utc", str),
        "duration_s": duration_s,
        **_by_kind(record),
        "energy_j": energy_j,
        "energy_low_j": record.number("total.energy_j.low", need=False),
        "energy_high_j": record.number("total.energy_j.high", need=False),
        "measured_j": record.number("total.measured_j"),
        "estimated_j": record.number("total.estimated_j"),
        "shift_5pct_j": _shift(record),
        "tokens": tokens,
        "j_per_token": energy_j / tokens if tokens and energy_j is not None else None,
        "tokens_per_s": tokens / duration_s if tokens and duration_s else None,
        "co2e_g": record.number("carbon.co2e_g.value", need=False),
        "hardware": _hardware(record),
        "id": record.get("record.id", str),
        "host": record.get("run.host", str),
        "boundary": record.get("scope.boundary", str, need=False),
        "exclusive": record.get("scope.exclusive", bool, need=False),
        "missing": ", ".join(record.get("total.missing", list)),
        "warnings": _warnings(record),
        "token_kind": kind,
        **counts,
        **_phases(record),
        **_carbon(record),
        **_slurm(record),
        "record": str(record.path),
    }


def _tokens(record: Record, stage: str) -> tuple[dict[str, int | None], str | None]:
    """Token counts per meaning, and the meaning that this stage's work is counted in."""
    counts = {
        f"{kind}_tokens": record.get(f"work.tokens.{kind}", int, need=False) for kind in TOKEN_KINDS
    }
    said = record.get("work.j_per_token.denominator", str, need=False)
    candidates = (said.rsplit(".", 1)[-1],) if said else _STAGE_TOKENS.get(stage, ())
    for kind in candidates:
        if counts.get(f"{kind}_tokens"):
            return counts, kind
    return counts, None


def _by_kind(record: Record) -> dict[str, float | None]:
    """Joules of GPUs, CPU packages and DRAM; null where no component of the kind has a value."""
    sums: dict[str, float | None] = {"gpu": None, "cpu_package": None, "dram": None}
    for part in record.get("components", list):
        kind, energy_j = part.get("kind"), part.get("energy_j")
        if kind in sums and energy_j is not None:
            sums[kind] = (sums[kind] or 0.0) + float(energy_j)
    return {
        "gpu_energy_j": sums["gpu"],
        "cpu_energy_j": sums["cpu_package"],
        "dram_energy_j": sums["dram"],
    }


def _phases(record: Record) -> dict[str, float | None]:
    """Joules of reading prompts and of writing answers, where the job marked both; and of a teacher
    in memory."""
    found: dict[str, float] = {}
    for phase in record.get("phases", list, need=False) or []:
        name = str(phase.get("name"))
        found[name] = found.get(name, 0.0) + float(phase.get("energy_j") or 0.0)
    both = "prefill" in found and "decode" in found
    online = [found[name] for name in (TEACHER_LOAD, TEACHER_FORWARD) if name in found]
    return {
        **{f"{name}_j": found[name] if both else None for name in ("prefill", "decode")},
        "teacher_online_j": sum(online) if online else None,
    }


def _hardware(record: Record) -> str | None:
    """The GPUs, or the processor where there is none: `2 x H100`, `Xeon Gold 6442Y`."""
    models = Counter(
        (part.get("device") or {}).get("model") or "GPU"
        for part in record.get("components", list)
        if part.get("kind") == "gpu"
    )
    if models:
        return " + ".join(f"{count} x {model}" for model, count in sorted(models.items()))
    return record.get("env.cpu_model", str, need=False)


def _warnings(record: Record) -> str:
    warnings = record.get("warnings", list, need=False) or []
    return ", ".join(sorted({str(warning.get("code")) for warning in warnings}))


def _carbon(record: Record) -> dict[str, Any]:
    grid = record.get("carbon.grid", list, need=False) or [{}]
    intensities = [float(hour["g_per_kwh"]) for hour in grid if hour.get("g_per_kwh") is not None]
    return {
        "pue": record.number("carbon.pue.value", need=False),
        "grid_g_per_kwh": sum(intensities) / len(intensities) if intensities else None,
        "grid_source": grid[0].get("source"),
    }


def _shift(record: Record) -> float | None:
    """The largest change of a phase's joules when its bounds move by 5 %."""
    phases = record.get("phases", list, need=False) or []
    names = ("shift_minus5pct_j", "shift_plus5pct_j")
    known = [phase[name] for phase in phases for name in names if phase.get(name) is not None]
    return max((abs(float(joules)) for joules in known), default=None)


def _slurm(record: Record) -> dict[str, Any]:
    """The Slurm job of an attempt; a job that never was requeued has restarted 0 times."""
    job = record.get("run.slurm.job_id", (str, int), need=False)
    restarts = record.get("run.slurm.restart_count", int, need=False)
    return {
        "slurm_cluster": record.get("run.slurm.cluster", str, need=False),
        "slurm_job": None if job is None else str(job),
        "slurm_restart": None if job is None else restarts or 0,
    }


def _components(record: Record, source: AttemptSource) -> list[dict[str, Any]]:
    """One row per device, its 95 % bound split into what is systematic on a board and the rest.

    Relative terms (gain, model, attribution) are systematic: repeats never reduce them. What is
    left of `u95_j` after them is independent between attempts.
    """
    host = record.get("run.host", str)
    rows = []
    for part in record.get("components", list):
        if not isinstance(part, Mapping) or not isinstance(part.get("id"), str):
            raise record.wrong("components", "holds an entry without an id")
        energy_j, u95_j = part.get("energy_j"), part.get("u95_j")
        terms, device = part.get("u") or {}, part.get("device") or {}
        systematic = random = None
        if energy_j is not None and u95_j is not None:
            named = (f"{term}_rel95" for term in ("gain", "model", "attribution"))
            relative = math.hypot(*(terms.get(name) or 0.0 for name in named))
            systematic = min(relative * energy_j, u95_j)
            random = (u95_j**2 - systematic**2) ** 0.5
        rows.append(
            {
                "id": record.get("record.id", str),
                "run": source.run,
                "artifact_kind": source.artifact_kind,
                "artifact_key": source.artifact_key,
                "stage": record.get("record.stage", str),
                "component": part["id"],
                "kind": part.get("kind"),
                "device": device.get("model"),
                "quality": part.get("quality"),
                "method": part.get("method"),
                "attribution": part.get("attribution"),
                "board": _board(part, host),
                "energy_j": energy_j,
                "systematic_j95": systematic,
                "random_j95": random,
                "crosscheck_ok": (part.get("crosscheck") or {}).get("ok"),
            }
        )
    return rows


def _board(part: Mapping[str, Any], host: str) -> str:
    """What a component's systematic error is common to: its board, or a host's estimator."""
    if part.get("quality") == "estimated":
        return f"{host}/{part.get('method')}"
    uuid = (part.get("device") or {}).get("uuid")
    return uuid or f"{host}/{part['id']}/{part.get('method')}"


def check_twice(attempts: pl.DataFrame) -> None:
    """Raise AngelshareError where one attempt stands in two records."""
    twice = attempts.filter(pl.col("id").is_duplicated()).sort("id", "record")
    if twice.height:
        first, second = twice["record"][0], twice["record"][1]
        raise AngelshareError(
            f"attempt {twice['id'][0]} stands in two records, {first} and {second}: "
            "its energy would be charged twice. Remove the copy"
        )
