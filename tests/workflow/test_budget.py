"""A budget refuses what does not fit, stops what costs more than was planned, and can be raised."""

import json

import pytest

from angelshare.accounting.units import J_PER_KWH
from angelshare.config import load_config
from angelshare.grid import plan_study
from angelshare.planning.plan import make_plan
from tests.workflow.test_reuse import edit_grid


def test_a_budget_refuses_stops_in_mid_run_and_goes_on_when_raised(checkout, monkeypatch):
    # What is estimated costs a hundred times what this store's records say: no plan knows that.
    checkout.configure(energy={"cpu": "estimate", "gpu": "none", "cpu_tdp_w": 20_000})
    edit_grid(checkout, "kd", seeds=[1, 2, 7, 8])
    edit_grid(checkout, "sft", seeds=[1, 2, 7])
    spent_kwh, planned_kwh = spent_and_planned(checkout, monkeypatch)
    results = checkout.folder / "results"

    checkout.configure(budget={"kwh": spent_kwh + 0.5 * planned_kwh})
    assert "REFUSED, it does not fit" in checkout.snakemake("-n", "all_frontiers")
    printed = checkout.snakemake("all_frontiers", check=False)
    assert "the plan does not fit into the budget" in printed
    assert "Nothing was started. Raise budget.kwh, make the grid smaller" in printed
    assert trained(results) == {}

    checkout.configure(budget={"kwh": spent_kwh + 1.5 * planned_kwh})
    printed = checkout.snakemake("all_frontiers", check=False)
    assert "the budget is spent: " in printed
    assert "Raise budget.kwh and start the workflow again" in printed
    first = trained(results)
    assert 1 <= len(first) < 3
    assert scored(results) < 3
    assert "are whole" in checkout.run("angelshare", "verify")

    checkout.configure(budget={"kwh": spent_kwh + 10_000 * planned_kwh})
    checkout.snakemake("all_frontiers")
    again = trained(results)
    assert len(again) == scored(results) == 3
    assert {run: again[run] for run in first} == first
    assert "Nothing to be done" in checkout.snakemake("all_frontiers")


def spent_and_planned(checkout, monkeypatch) -> tuple[float, float]:
    """What the study has cost so far, and what a plan expects of the rest, in kWh."""
    monkeypatch.chdir(checkout.folder)
    config = load_config({**checkout.config, "budget": {"kwh": 1.0}})
    plan = make_plan(config, plan_study(config), config.store.open())
    assert len(plan.predictions) == 6
    return plan.spent_j / J_PER_KWH, plan.energy_j.value / J_PER_KWH


def trained(results) -> dict[str, float]:
    """The new runs that were trained, each with its bill."""
    found = {}
    for seed in (7, 8):
        for path in results.glob(f"students/*-s{seed}-*/training.json"):
            record = json.loads(path.with_name("energy.json").read_text())
            assert record["bill"]["attempts"] == 1
            found[path.parent.name] = pytest.approx(record["bill"]["energy_j"])
    return found


def scored(results) -> int:
    """How many of the new runs were scored."""
    return sum((results / "scores" / f"{run}.json").exists() for run in trained(results))
