"""The plan of a study: what is reused and fetched, what is still to be made, and what it will cost.

`make_plan` reads a few hundred small JSON files and imports nothing heavy, so that a starting
workflow can afford it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from angelshare.accounting.units import J_PER_KWH
from angelshare.config import Config
from angelshare.energy.settings import CarbonSettings
from angelshare.files import read_json
from angelshare.planning.devices import Device, find_device, processor
from angelshare.planning.predict import Prediction, Predictor
from angelshare.planning.ranges import Range, common_sum, independent_sum
from angelshare.planning.records import hardware_of, read_history
from angelshare.planning.spending import spent_j
from angelshare.planning.study_models import downloads, recipe_models, study_models
from angelshare.planning.work import (
    Reused,
    WorkItem,
    WorkList,
    reused,
)
from angelshare.plans import Study
from angelshare.store.artifacts import ArtifactStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a study still needs, with predictions; `energy_j` and `duration_s` sum what is known."""

    reused: list[Reused]
    downloads: list[str]
    predictions: list[Prediction]
    hardware: str
    hardware_basis: str
    spent_j: float
    budget_j: float | None
    carbon: CarbonSettings

    @property
    def energy_j(self) -> Range:
        """The whole energy; errors of one stage and basis are common, others independent."""
        return _total(self.predictions, lambda one: one.energy_j)

    @property
    def duration_s(self) -> Range:
        """The sum of the jobs' durations: the time they take one after the other."""
        return _total(self.predictions, lambda one: one.duration_s)

    @property
    def unknown(self) -> list[Prediction]:
        """Items that nothing can be said of."""
        return [one for one in self.predictions if one.energy_j is None]

    @property
    def exceeds(self) -> bool:
        """Whether what was spent and what is expected do not fit into the budget."""
        if self.budget_j is None or not self.predictions:
            return False
        return self.spent_j + self.energy_j.value > self.budget_j

    def by_stage(self) -> list[tuple[tuple[str, str, str], list[Prediction]]]:
        """Predictions grouped by action, stage and basis, in that order."""

        def key(one: Prediction) -> tuple[str, str, str]:
            return (one.item.action, one.item.stage, one.basis)

        return [
            (name, list(found)) for name, found in groupby(sorted(self.predictions, key=key), key)
        ]

    def rate_g_per_kwh(self) -> float:
        """Grams of CO2e per kWh of the devices, building overhead included."""
        from angelshare.energy.carbon import plan_carbon

        planned = plan_carbon(self.carbon)
        rates = [row["g_per_kwh"] for row in planned["series"]] or [planned["grid"]["g_per_kwh"]]
        return float(planned["pue"]["value"] * sum(rates) / len(rates))

    def cost(self) -> Range | None:
        """What the electricity will cost, in the configuration's currency; None without a price."""
        price = self.carbon.price_per_kwh
        if price is None:
            return None
        return self.energy_j.scaled(price * self.carbon.pue / J_PER_KWH)

    def co2e_g(self) -> Range:
        """Grams of CO2 equivalent."""
        return self.energy_j.scaled(self.rate_g_per_kwh() / J_PER_KWH)


def make_plan(
    config: Config,
    study: Study,
    store: ArtifactStore,
    *,
    offers: Mapping[str, str] | None = None,
    wanted: Callable[[WorkItem], bool] | None = None,
    device: str | None = None,
) -> Plan:
    """The plan of what `wanted` says is to be made (default: whatever is not there yet).

    `offers` says which remote has which artifact, key to address: it is fetched instead of made.
    `device` overrides what records, the prerun and `budget.device` say of the hardware.
    """
    results = Path(config.results)
    history = read_history(store, results, recipe_models(study, study_models(config)))
    machine = _machine(results)
    named = device or config.budget.device
    hardware, basis = _hardware(named, machine, history.hardware())
    calibration = machine.get("calibration") if machine else None
    if calibration and calibration["hardware"] != hardware:
        calibration = None
    predictor = Predictor(
        history, hardware, calibration, _device(hardware, named, config.hardware.threads)
    )
    todo = wanted or (lambda item: not item.done)
    works = WorkList(config, study, store, history, offers or {})
    items = [item for item in works.items() if todo(item)]
    budget = config.budget.kwh
    return Plan(
        reused=reused(study, store),
        downloads=downloads(config, study),
        predictions=[predictor.predict(item) for item in items],
        hardware=hardware,
        hardware_basis=basis,
        spent_j=spent_j(config, study, store) if budget is not None else 0.0,
        budget_j=None if budget is None else budget * J_PER_KWH,
        carbon=config.carbon,
    )


def _machine(results: Path) -> dict[str, Any] | None:
    """What the prerun found, if it ran."""
    try:
        found = read_json(results / "prerun" / "machine.json")
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _hardware(
    named: str | None, machine: dict[str, Any] | None, recorded: str | None
) -> tuple[str, str]:
    """The hardware to plan for, and who says so."""
    if named:
        return named, "as told"
    if machine:
        parts = [
            {"kind": "gpu", "device": {"model": row["device"]}}
            for row in machine["devices"]
            if row["component"].startswith("gpu")
        ]
        return hardware_of(parts, (machine.get("env") or {}).get("cpu_model")), "the prerun's"
    if recorded:
        return recorded, "the latest record's"
    return "processor", "nothing says which, so a processor is assumed (`budget.device` says more)"


def _device(hardware: str, named: str | None, threads: int) -> Device:
    found = find_device(hardware)
    if found is None:
        return processor(threads, named or hardware)
    return found


def _total(predictions: Iterable[Prediction], what: Callable[[Prediction], Range | None]) -> Range:
    groups: dict[tuple[str, str], list[Range]] = {}
    for one in predictions:
        value = what(one)
        if value is not None:
            groups.setdefault(one.group, []).append(value)
    return independent_sum(common_sum(found) for found in groups.values())
