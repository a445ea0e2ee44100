"""Plans kept beside the results, so that accounting can hold them against what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from angelshare.accounting.study import Prediction
from angelshare.errors import AngelshareError
from angelshare.files import publish_json, read_json
from angelshare.planning.plan import Plan

SCHEMA = "angelshare/plan/1"


def store_plan(plan: Plan, results: Path) -> Path | None:
    """Publish the plan of a run that starts as ``<results>/plans/<time>.json``; its path.

    None where there is nothing to predict.
    """
    items = [_item(one) for one in plan.predictions if one.energy_j is not None]
    if not items:
        return None
    now = datetime.now(UTC)
    path = results / "plans" / f"{now:%Y%m%dT%H%M%S%fZ}.json"
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "utc": now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "hardware": plan.hardware,
        "energy_j": list(plan.energy_j),
        "duration_s": list(plan.duration_s),
        "items": items,
    }
    publish_json(path, content)
    return path


def stored_predictions(results: Path) -> Iterator[Prediction]:
    """Every prediction of every plan of a results folder, plans in the order of their start.

    Raises:
        AngelshareError: for a file that is no plan.
    """
    for path in sorted((results / "plans").glob("*.json")):
        try:
            plan = read_json(path)
            if plan["schema"] != SCHEMA:
                raise ValueError(f"schema is not {SCHEMA}")
            for item in plan["items"]:
                yield Prediction(plan_utc=plan["utc"], hardware=plan["hardware"], **item)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise AngelshareError(
                f"{path} is no stored plan ({error!r}): remove it, its predictions are then not "
                "compared with what was measured"
            ) from error


def _item(one: Any) -> dict[str, Any]:
    energy, seconds = one.energy_j, one.duration_s
    return {
        "job": one.item.job,
        "stage": one.item.stage,
        "basis": one.basis,
        "fit": one.fit,
        "energy_j": energy.value,
        "energy_low_j": energy.low,
        "energy_high_j": energy.high,
        "duration_s": seconds.value,
        "duration_low_s": seconds.low,
        "duration_high_s": seconds.high,
    }
