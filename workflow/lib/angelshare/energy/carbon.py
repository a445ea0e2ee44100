"""Grams of CO2 equivalent: energy times PUE times grid intensity, applied once, with provenance.

1 kWh = 3.6e6 J. The bounds are those of the energy; intensity and PUE carry none here.
"""

from __future__ import annotations

from typing import Any

from angelshare.energy.constants import intensity
from angelshare.energy.measures import Interval
from angelshare.energy.settings import CarbonSettings
from angelshare.energy.sidecar import Carbon, Factor, Grid

JOULES_PER_KWH = 3.6e6


def plan_carbon(settings: CarbonSettings) -> dict[str, Any]:
    """What a closing window needs, as plain values: PUE and intensity with their sources.

    Raises AngelshareError for a country or region that codecarbon does not know.
    """
    pue = Factor(value=settings.pue, unit="1", source=settings.pue_source, kind=settings.pue_kind)
    if settings.grid_g_per_kwh is not None:
        grid: dict[str, Any] = {
            "g_per_kwh": settings.grid_g_per_kwh,
            "zone": settings.region or settings.country_iso,
            "source": settings.grid_source,
            "estimated": False,
        }
    else:
        known = intensity(settings.country_iso, settings.region)
        grid = {
            "g_per_kwh": known.g_per_kwh,
            "zone": known.zone,
            "source": known.source,
            "dataset_version": known.dataset_version,
            "estimated": known.estimated,
        }
    return {"pue": pue.model_dump(mode="json"), "grid": grid}


def carbon_of(plan: dict[str, Any], energy: Interval, start_utc: str, end_utc: str) -> Carbon:
    """The ``carbon`` block of a window from its plan and its joules."""
    pue = Factor.model_validate(plan["pue"])
    grid = Grid(start_utc=start_utc, end_utc=end_utc, basis="average", **plan["grid"])
    grams_per_joule = pue.value * grid.g_per_kwh / JOULES_PER_KWH
    return Carbon(
        pue=pue,
        grid=[grid],
        co2e_g=Interval(
            value=energy.value * grams_per_joule,
            low=energy.low * grams_per_joule,
            high=energy.high * grams_per_joule,
        ),
    )
