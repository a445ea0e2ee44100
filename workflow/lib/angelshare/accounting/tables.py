"""All accounting tables of a study, as frames and as the Parquet files of the contract."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

import polars as pl

from angelshare.accounting.attempts import load_attempts
from angelshare.accounting.bills import (
    artifact_bills,
    artifact_table,
    share_table,
    with_bounds,
)
from angelshare.accounting.break_even import break_even_table
from angelshare.accounting.consolidated import load_consolidated
from angelshare.accounting.dominance import dominance_table, sure_dominators
from angelshare.accounting.draws import Draws
from angelshare.accounting.efficiency import efficiency_table, with_phases
from angelshare.accounting.frontier import frontier_table
from angelshare.accounting.points import lent, lent_shares
from angelshare.accounting.predictions import prediction_table
from angelshare.accounting.runs import benchmark_names, hyperparameter_names, run_table
from angelshare.accounting.sensitivity import sensitivity_table
from angelshare.accounting.settings import AccountingSettings
from angelshare.accounting.slurm import beside_slurm, slurm_jobs
from angelshare.accounting.stages import stage_table
from angelshare.accounting.study import Study
from angelshare.accounting.summary import summary_table
from angelshare.accounting.traces import SCHEMA as TRACE_SCHEMA
from angelshare.accounting.traces import trace_table
from angelshare.accounting.uncertainty import Exposures, exposures
from angelshare.energy.slurm import ask_slurm
from angelshare.errors import AngelshareError
from angelshare.files import publishing

FEW_DRAWS = 200
"""Draws where only the conclusions count, not their probabilities."""


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables of `contracts/tables.md`, and beside them `components` (one row per device of an
    attempt), `stages` (run, view and stage), `dominance` (view and pair of settings), `predictions`
    (job that a plan predicted), `efficiency` (pipeline), `sensitivity` (shift of a boundary and
    conclusion) and `traces` (point of a power trace)."""

    attempts: pl.DataFrame
    components: pl.DataFrame
    artifacts: pl.DataFrame
    shares: pl.DataFrame
    runs: pl.DataFrame
    stages: pl.DataFrame
    summary: pl.DataFrame
    break_even: pl.DataFrame
    frontier: pl.DataFrame
    dominance: pl.DataFrame
    predictions: pl.DataFrame
    efficiency: pl.DataFrame
    sensitivity: pl.DataFrame
    traces: pl.DataFrame


TABLE_NAMES = tuple(field.name for field in fields(Tables))


def make_tables(
    study: Study, attempts: pl.DataFrame, components: pl.DataFrame, settings: AccountingSettings
) -> Tables:
    """Every table from the frames of `load_attempts`; a pure function, in a fixed row order."""
    study = _in_order(study)
    bills = artifact_bills(study, attempts, settings)
    shares = share_table(study, bills, settings)
    carried, parts = lent(study, attempts), lent(study, components)
    exposed = exposures(study, carried, parts, bills, settings)
    made, draws = _concluded(study, carried, exposed, settings)
    few = settings.model_copy(update={"draws": FEW_DRAWS})
    runs, summary = made["runs"], made["summary"]
    pairs = dominance_table(draws)
    ledger = with_phases(artifact_table(study, bills, shares), attempts)
    bounds = exposed.artifacts
    return Tables(
        attempts=attempts,
        components=components,
        artifacts=with_bounds(ledger, "energy", bills, bounds),
        shares=with_bounds(shares, "share", bills, bounds),
        runs=runs.sort("pipeline", "student", "setting", "dataset", "seed", "run"),
        stages=stage_table(study, carried, lent_shares(study, shares), settings),
        summary=summary,
        break_even=made["break_even"],
        frontier=sure_dominators(made["frontier"], pairs, draws),
        dominance=pairs,
        predictions=prediction_table(study, attempts),
        efficiency=efficiency_table(runs),
        sensitivity=sensitivity_table(
            carried,
            lent_shares(study, shares),
            made,
            lambda moved: _concluded(study, moved, exposed, few)[0],
        ),
        traces=pl.DataFrame(schema=TRACE_SCHEMA),
    )


def _concluded(
    study: Study, attempts: pl.DataFrame, exposed: Exposures, settings: AccountingSettings
) -> tuple[dict[str, pl.DataFrame], Draws]:
    """The frames that conclusions are drawn from, and the draws behind the frontier."""
    bills = artifact_bills(study, attempts, settings)
    shares = share_table(study, bills, settings)
    runs = run_table(study, attempts, bills, lent_shares(study, shares), exposed, settings)
    summary = summary_table(runs, exposed, hyperparameter_names(study), benchmark_names(study))
    draws = Draws.of(runs, summary, exposed, settings)
    frames = {
        "runs": runs,
        "summary": summary,
        "break_even": break_even_table(study, runs, shares, exposed, settings),
        "frontier": frontier_table(draws),
    }
    return frames, draws


def _in_order(study: Study) -> Study:
    """The same study by names, so that no sum and no draw depends on the order it came in."""
    return replace(
        study,
        runs=tuple(sorted(study.runs, key=lambda run: run.run)),
        artifacts=tuple(sorted(study.artifacts, key=lambda artifact: artifact.id)),
        scores=tuple(sorted(study.scores, key=lambda score: (score.run, score.benchmark))),
    )


def write_tables(
    study: Study, settings: AccountingSettings, out_dir: Path, memory: Path | None = None
) -> Tables:
    """Read the study's attempt records, make all tables and publish `<table>.parquet` in `out_dir`.

    With `memory`, a folder of this team's own, records that were read before are not parsed
    again. Where `sacct` is at hand, Slurm's own joules stand beside ours. Raises AngelshareError
    where a record is broken or an energy unknown.
    """
    if memory is None:
        attempts, components = load_attempts(study.sources)
    else:
        attempts, components = load_consolidated(study.sources, memory)
    attempts = beside_slurm(attempts, ask_slurm(slurm_jobs(attempts)))
    tables = make_tables(study, attempts, components, settings)
    tables = replace(tables, traces=trace_table(attempts))
    publish_tables(tables, out_dir)
    return tables


def publish_tables(tables: Tables, out_dir: Path) -> None:
    """Publish every table as `<table>.parquet`."""
    for name in TABLE_NAMES:
        with publishing(out_dir / f"{name}.parquet") as temporary:
            getattr(tables, name).write_parquet(temporary)


def read_tables(folder: Path) -> Tables:
    """The tables that `write_tables` left in `folder`."""
    return Tables(**{name: read_table(folder, name) for name in TABLE_NAMES})


def read_table(folder: Path, name: str) -> pl.DataFrame:
    """One of the tables that `write_tables` left in `folder`.

    Raises:
        AngelshareError: when it is not there or cannot be read.
    """
    path = folder / f"{name}.parquet"
    try:
        return pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise AngelshareError(
            f"{path} is no accounting table: {error}. Name a folder of them, or have them made "
            "again by the rule `account`."
        ) from error
