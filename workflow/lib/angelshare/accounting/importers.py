"""Energies of other programs, brought into the columns that `angelshare account` reads.

* `harness`: the stage JSON files and `experiment_summary.json` of the paper's harness (arXiv
  2605.13981, StellarLuminosity/Energy),
* `codecarbon`: `emissions.csv`,
* `sacct`: `sacct -P -o JobIDRaw,JobName,State,ElapsedRaw,ConsumedEnergyRaw`,
* `tables`: a folder of this project's own accounting tables.

Each row says in `lacks` what its source does not know. What a source cannot say at all (which run,
pipeline, student or shared artifact it belongs to) comes from a CSV with the column `id` and any of
those columns, or is guessed from names (harness) or left empty for the user to fill in.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from angelshare.accounting.imported import FACTS, QUALITY_COLUMNS, STAGE_COLUMNS
from angelshare.accounting.tables import read_table
from angelshare.accounting.units import J_PER_KWH
from angelshare.energy.slurm import UNKNOWN
from angelshare.errors import AngelshareError
from angelshare.files import publish_bytes

Row = dict[str, Any]

_HARNESS_STAGES = (
    ("prerun", ("prerun", "idle")),
    ("preprocess", ("preprocess",)),
    ("evaluate", ("eval", "bench", "gsm8k", "mmlu", "ifeval")),
    ("teacher_generation", ("synthetic_gen", "generation", "generate")),
    ("teacher_logits", ("logit", "logprob", "cache")),
)
_STATES = {"COMPLETED": "ok", "PREEMPTED": "preempted", "CANCELLED": "killed", "TIMEOUT": "killed"}
_RUNNING = ("RUNNING", "PENDING", "SUSPENDED", "REQUEUED")


def read_harness(path: Path) -> Iterator[Row]:
    """The stages of an `experiment_summary.json`, or the one of a stage's own file.

    Its rows are guesses in all but the energy: stages carry the experiment's name. Of snapshots of
    one stage, which are cumulative, `import_rows` keeps the longest.
    """
    content = _json(path)
    stages = content.get("stages")
    if stages is None:
        if "stage_name" not in content and "stage_id" not in content:
            raise AngelshareError(f"{path}: neither a stage's JSON nor an experiment_summary.json")
        stages = {str(content.get("stage_id") or content["stage_name"]): content}
    for name, stage in stages.items():
        experiment = str(content.get("experiment_name") or stage.get("stage_name") or name)
        yield _harness_stage(path, name, experiment, stage)


def _harness_stage(path: Path, name: str, experiment: str, stage: Mapping[str, Any]) -> Row:
    kind = _harness_kind(f"{name} {stage.get('stage_name', '')}")
    gpu_kwh = _positive(stage, "gpu_energy_joules", J_PER_KWH)
    cpu_kwh = _positive(stage, "cpu_energy_joules", J_PER_KWH)
    total = _positive(stage, "total_energy_kwh") or _positive(stage, "kwh_total")
    if total is None:
        raise AngelshareError(f"{path}: stage {name} has no energy (its total is 0 or missing)")
    tokens = _positive(stage, "tokens_processed") if kind != "preprocess" else None
    kilograms = _positive(stage, "codecarbon_emissions_kg")
    lacks = ["no_dram", "no_uncertainty", "no_failed_attempts", "no_artifact_identity"]
    lacks += ["no_cpu"] * (cpu_kwh is None) + ["no_gpu"] * (gpu_kwh is None)
    lacks += ["no_tokens"] * (tokens is None) + ["snapshot"] * bool(stage.get("snapshot"))
    teacher = kind in ("teacher_generation", "teacher_logits")
    return {
        "id": name,
        **_harness_names(experiment),
        "stage": kind,
        "artifact": f"{kind} {experiment}" if teacher else None,
        "energy_kwh": total,
        "tokens": tokens,
        "duration_s": _positive(stage, "duration_seconds"),
        "gpu_kwh": gpu_kwh,
        "cpu_kwh": cpu_kwh,
        "co2e_g": None if kilograms is None else 1e3 * kilograms,
        "source": "paper harness",
        "lacks": "; ".join(lacks),
    }


def _harness_kind(name: str) -> str:
    lowered = name.lower()
    for stage, words in _HARNESS_STAGES:
        if any(word in lowered for word in words):
            return stage
    return "student_train"


def _harness_names(experiment: str) -> Row:
    """Run, pipeline, student, seed and hyperparameters as far as an experiment's name says them."""
    lowered = experiment.lower()
    pipeline = next((name for name in ("kd", "dpo", "sft") if lowered.startswith(name)), None)
    if pipeline == "sft" and ("synth" in lowered or "_to_" in lowered):
        pipeline = "synthetic_sft"
    size = re.search(r"_to_(\d+(?:\.\d+)?b)", lowered) or re.search(r"(\d+(?:\.\d+)?b)", lowered)
    data = next((name for name in ("tulu", "openr1", "codeforces") if name in lowered), None)
    found: Row = {
        "run": experiment,
        "pipeline": pipeline,
        "student": size[1].upper() if size else None,
        "dataset": data,
        "seed": None,
    }
    for name, pattern in (
        ("alpha", r"alpha_?(\d)(\d)"),
        ("temperature", r"temp(?:erature)?_?(\d)"),
    ):
        if match := re.search(pattern, lowered):
            found[name] = ".".join(match.groups())
    return found


def read_codecarbon(path: Path) -> Iterator[Row]:
    """The rows of an `emissions.csv`.

    codecarbon multiplies its energies by the building's PUE; it is divided out again, because
    device energy here never contains it. A file that this project exported has it in `emissions`
    alone: its run ids are no UUIDs.
    """
    for line, row in _csv(path, ",", ("energy_consumed", "project_name")):
        ours = re.fullmatch(r"[0-9a-f]{8}", row.get("run_id") or "") is not None
        pue = 1.0 if ours else _float(path, line, row, "pue") or 1.0
        energy = _float(path, line, row, "energy_consumed")
        if energy is None:
            raise AngelshareError(f"{path}, line {line}: energy_consumed is empty")
        kilograms = _float(path, line, row, "emissions")
        models = [row.get("gpu_model"), row.get("cpu_model")]
        parts = {
            column: _float(path, line, row, f"{name}_energy")
            for column, name in (("gpu_kwh", "gpu"), ("cpu_kwh", "cpu"), ("dram_kwh", "ram"))
        }
        yield {
            "id": row.get("run_id") or row["project_name"],
            "run": row.get("run_id") or row["project_name"],
            "stage": row["project_name"],
            "energy_kwh": energy / pue,
            **{name: None if kwh is None else kwh / pue for name, kwh in parts.items()},
            "duration_s": _float(path, line, row, "duration"),
            "co2e_g": None if kilograms is None else 1e3 * kilograms,
            "hardware": next((model for model in models if model), None),
            "source": f"codecarbon {row.get('codecarbon_version') or ''}".strip(),
            "lacks": "no_uncertainty; no_failed_attempts; no_tokens; measured_or_estimated",
        }


def read_sacct(path: Path) -> Iterator[Row]:
    """The jobs in an output of `sacct -P`: joules of whole nodes, requeued jobs as attempts."""
    jobs: dict[tuple[str, int], Row] = {}
    seen: dict[str, int] = {}
    for line, row in _csv(path, "|", ("JobIDRaw", "State")):
        job, _, step = row["JobIDRaw"].partition(".")
        seen[job] = seen.get(job, 0) + (not step)
        energy = _slurm_joules(path, line, row)
        held = jobs.setdefault((job, seen[job]), {"id": job, "energy_j": None})
        if energy is not None:
            held["energy_j"] = max(held["energy_j"] or 0.0, energy)
        if not step:
            held |= {"name": row.get("JobName") or job, "state": row["State"].split(" ")[0]}
            held["duration_s"] = _float(path, line, row, "ElapsedRaw")
    for held in jobs.values():
        state = held.get("state", "COMPLETED")
        if held["energy_j"] is None or state in _RUNNING:
            continue
        yield {
            "id": held["id"],
            "run": held["id"],
            "stage": held.get("name"),
            "energy_kwh": held["energy_j"] / J_PER_KWH,
            "duration_s": held.get("duration_s"),
            "status": _STATES.get(state, "failed"),
            "source": "sacct ConsumedEnergy",
            "lacks": "no_uncertainty; no_tokens; whole_nodes; no_components",
        }


def _slurm_joules(path: Path, line: int, row: Mapping[str, str]) -> float | None:
    """`ConsumedEnergyRaw`, else `ConsumedEnergy` with its K, M or G; None where Slurm has none."""
    raw = (row.get("ConsumedEnergyRaw") or row.get("ConsumedEnergy") or "").strip()
    if raw in UNKNOWN:
        return None
    factor = {"K": 1e3, "M": 1e6, "G": 1e9}.get(raw[-1:].upper(), 1.0)
    value = _float(path, line, {"energy": raw[:-1] if factor > 1 else raw}, "energy")
    return None if not value else value * factor


def read_tables_folder(folder: Path) -> Iterator[Row]:
    """Our own attempts, with what is charged to whom, so that they can meet others' numbers."""
    runs = {row["run"]: row for row in read_table(folder, "runs").rows(named=True)}
    attempts = read_table(folder, "attempts")
    shares = read_table(folder, "shares").filter("ours")
    readers: dict[tuple[str, str], list[str]] = {}
    for kind, key, run in shares.select("kind", "key", "run").rows():
        readers.setdefault((kind, key), []).append(run)
    for row in attempts.rows(named=True):
        owner = (row["artifact_kind"], row["artifact_key"])
        named = [row["run"]] if row["run"] else readers.get(owner, [])
        for run in named:
            yield _own_row(row, run, runs[run])


def _own_row(row: Mapping[str, Any], run: str, said: Mapping[str, Any]) -> Row:
    def kwh(name: str) -> float | None:
        return None if row[name] is None else row[name] / J_PER_KWH

    key = row["artifact_key"]
    return {
        "id": row["id"],
        **{name: said[name] for name in ("run", "pipeline", "student", "dataset", "seed")},
        "stage": row["stage"],
        # One bill per attempt: an artifact of several parts is as many artifacts here.
        "artifact": f"{key[:12]} {row['id']}" if key else None,
        "energy_kwh": kwh("energy_j"),
        "tokens": row["tokens"],
        "duration_s": row["duration_s"],
        "energy_low_kwh": kwh("energy_low_j"),
        "energy_high_kwh": kwh("energy_high_j"),
        "gpu_kwh": kwh("gpu_energy_j"),
        "cpu_kwh": kwh("cpu_energy_j"),
        "dram_kwh": kwh("dram_energy_j"),
        "co2e_g": row["co2e_g"],
        "hardware": row["hardware"],
        "status": row["status"],
        "source": "angelshare",
        "lacks": "; ".join(filter(None, (row["warnings"] or "").split(", "))),
    }


FORMATS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "harness": read_harness,
    "codecarbon": read_codecarbon,
    "sacct": read_sacct,
    "tables": read_tables_folder,
}
"""The formats by name, and what reads one file of each."""


def import_rows(form: str, paths: Iterable[Path], runs: Path | None = None) -> list[Row]:
    """The rows of all files in `account`'s columns, named as the CSV `runs` says.

    Raises AngelshareError naming file and line, and where `runs` names an id that no file has.
    """
    read = FORMATS[form]
    rows = [row for path in _files(form, paths) for row in read(path)]
    if form == "harness":
        rows = _longest(rows)
    if not rows:
        raise AngelshareError(f"no {form} record with an energy in {', '.join(map(str, paths))}")
    if runs is None:
        return rows
    named = {row["id"]: row for _, row in _csv(runs, ",", ("id",))}
    if strange := sorted(set(named) - {row["id"] for row in rows}):
        raise AngelshareError(f"{runs} names {strange[0]}, which no {form} file has")
    return [
        {**row, **{name: value for name, value in named.get(row["id"], {}).items() if value}}
        for row in rows
    ]


def _files(form: str, paths: Iterable[Path]) -> list[Path]:
    """The files to read; a folder of the harness stands for the JSON files in it."""
    found: list[Path] = []
    for path in paths:
        if form != "tables" and path.is_dir():
            found.extend(
                one
                for one in sorted(path.rglob("*.json" if form == "harness" else "*.csv"))
                if not one.name.startswith(("config_", "environment_"))
            )
        else:
            found.append(path)
    return found


def _longest(rows: Sequence[Row]) -> list[Row]:
    """One row per stage: snapshots are cumulative, and a summary repeats its stages' files."""
    best: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = (str(row["run"]), row["id"])
        if key not in best or (row["duration_s"] or 0) > (best[key]["duration_s"] or 0):
            best[key] = row
    return list(best.values())


def write_stages(rows: Sequence[Row], out: Path) -> list[str]:
    """Publish rows as a CSV of stages; the names of the columns in which some row needs more."""
    known = ["id", *STAGE_COLUMNS, *FACTS]
    columns = known + sorted({name for row in rows for name in row} - set(known))
    _write(out, columns, rows)
    return [
        name
        for name in ("run", "pipeline", "student", "stage")
        if any(row.get(name) in (None, "") for row in rows)
    ]


def write_own_quality(folder: Path, out: Path) -> None:
    """Publish the scores of our own accounting tables as a CSV of quality.

    The tables keep Q and the scores, not the teacher's: Q goes as one benchmark of its own, with
    the teacher at 1.
    """
    runs = read_table(folder, "runs").filter(pl.col("quality").is_not_null())
    rows = [
        {"run": run, "benchmark": "Q", "score": quality, "teacher_score": 1.0, "stderr": stderr}
        for run, quality, stderr in runs.select("run", "quality", "quality_stderr").rows()
    ]
    _write(out, [*QUALITY_COLUMNS, "stderr"], rows)


def _write(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    publish_bytes(path, text.getvalue().encode())


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise AngelshareError(f"{path}: not a readable JSON file ({error})") from error
    if not isinstance(content, dict):
        raise AngelshareError(f"{path}: not a JSON object")
    return content


def _csv(path: Path, separator: str, needed: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """The rows of a table as text, with their line numbers."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, delimiter=separator)
            missing = [name for name in needed if name not in (reader.fieldnames or ())]
            if missing:
                raise AngelshareError(f"{path}: lacks the column {missing[0]}")
            return [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise AngelshareError(f"{path}: not a readable table ({error})") from error


def _float(path: Path, line: int, row: Mapping[str, str | None], column: str) -> float | None:
    text = (row.get(column) or "").strip()
    if not text:
        return None
    try:
        return float(text)
    except ValueError as error:
        raise AngelshareError(f"{path}, line {line}: {column} is no number ({text!r})") from error


def _positive(values: Mapping[str, Any], name: str, factor: float = 1.0) -> float | None:
    """A figure of a source that writes 0 where it knows nothing."""
    value = values.get(name)
    return float(value) / factor if isinstance(value, (int, float)) and value > 0 else None
