"""What this team's jobs of a study have spent so far, and the refusal to go beyond the budget.

Every job sums the attempt records itself when it opens: there is no shared counter that a killed
job could leave wrong, and what is done stays whole. Attempts that still run count with their live
figure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from angelshare.accounting.units import J_PER_KWH
from angelshare.errors import AngelshareError
from angelshare.files import read_json

if TYPE_CHECKING:
    from angelshare.config import Config
    from angelshare.plans import Study
    from angelshare.store.artifacts import ArtifactStore

FREE_STAGES = frozenset({"prerun", "accounting"})
"""Stages that no budget refuses: looking at the machine, and reporting on what was done."""


def spent_j(config: Config, study: Study, store: ArtifactStore) -> float:
    """Joules of every attempt in this results folder, and of those on the study's artifacts that
    this team made."""
    team = config.store.team_id()
    results = Path(config.results)
    folders = [*results.glob("*/*/energy.attempts"), *results.glob("*/*.energy.attempts")]
    folders += [*results.glob("*/energy.attempts"), *results.glob("*.energy.attempts")]
    own = (_energy_j(record, path) for path, record in _records(folders))
    shared = [store.artifact(plan.kind, plan.key).attempts for plan in study.artifacts.values()]
    ours = (
        _energy_j(record, path)
        for path, record in _records(shared)
        if record["run"].get("workflow_id") == team
    )
    return math.fsum([*own, *ours])


def budget_spent(config: Config, study: Study, store: ArtifactStore) -> str | None:
    """That the budget is spent, in words; None while it is not, or where there is none."""
    if config.budget.kwh is None:
        return None
    used_kwh = spent_j(config, study, store) / J_PER_KWH
    if used_kwh < config.budget.kwh:
        return None
    return (
        f"the budget is spent: {used_kwh:.4g} of {config.budget.kwh:.4g} kWh. What is done is "
        "whole and stays. Raise budget.kwh and start the workflow again: it goes on from here"
    )


def check_budget(config: Config, study: Study, store: ArtifactStore, stage: str) -> None:
    """Raise AngelshareError where the budget is spent; nothing has been started then."""
    if stage not in FREE_STAGES and (said := budget_spent(config, study, store)):
        raise AngelshareError(said)


def _records(folders: list[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    for folder in folders:
        for path in folder.glob("*.json"):
            if path.name.startswith("."):
                continue
            try:
                record = read_json(path)
            except (OSError, ValueError):
                continue
            if isinstance(record, dict) and "total" in record:
                yield path, record


def _energy_j(record: dict[str, Any], path: Path) -> float:
    """Joules of an attempt; of one that still runs, what its meter last said."""
    if record["record"]["status"] == "running":
        return _live_j(path.with_name(f"angelshare-{record['record']['id']}.prom"))
    energy = record["total"].get("energy_j")
    return float(energy["value"]) if energy else 0.0


def _live_j(path: Path) -> float:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0.0
    joules = [line for line in lines if line.startswith("angelshare_energy_joules{")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in joules)
