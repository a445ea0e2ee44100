"""Sidecars as codecarbon's ``emissions.csv``, for tools that read that.

codecarbon's units: kWh, kg, watts. Unlike codecarbon's own figures, device energy here never
contains PUE; the ``emissions`` do, and the column ``pue`` says which.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from angelshare.energy.carbon import JOULES_PER_KWH
from angelshare.energy.sidecar import Record
from angelshare.files import publish_bytes


def emissions_row(record: Record) -> dict[str, Any]:
    """One record as a row of codecarbon's columns; what is missing stays empty, never 0."""
    from codecarbon.output_methods.emissions_data import EmissionsData

    duration_s = record.time.duration_s
    env = record.env
    carbon = record.carbon
    kilograms = carbon.co2e_g.value / 1e3 if carbon and carbon.co2e_g else None
    row: dict[str, Any] = dict.fromkeys(EmissionsData.__dataclass_fields__)
    row |= {
        "timestamp": record.time.end_utc[:19],
        "project_name": record.record.rule,
        "run_id": record.record.id,
        "experiment_id": record.run.workflow_id,
        "duration": duration_s,
        "emissions": kilograms,
        "emissions_rate": kilograms / duration_s if kilograms is not None and duration_s else None,
        "energy_consumed": record.total.energy_j.value / JOULES_PER_KWH,
        "tracking_mode": "process",
        "on_cloud": "N",
    }
    for name, kind in (("cpu", "cpu_package"), ("gpu", "gpu"), ("ram", "dram")):
        joules = _sum(record, kind)
        if joules is not None:
            row[f"{name}_energy"] = joules / JOULES_PER_KWH
            row[f"{name}_power"] = joules / duration_s if duration_s else None
    if env is not None:
        row |= {
            "os": env.os,
            "python_version": env.python,
            "codecarbon_version": (env.packages or {}).get("codecarbon"),
            "cpu_count": env.cpu_count,
            "cpu_model": env.cpu_model,
            "gpu_count": env.gpu_count,
            "gpu_model": env.gpu_model,
            "ram_total_size": env.ram_gb,
        }
    if carbon is not None:
        zone = carbon.grid[0].zone or "" if carbon.grid else ""
        country, _, region = zone.partition("-")
        row |= {"country_iso_code": country, "region": region}
        row["pue"] = carbon.pue.value if carbon.pue else None
    return row


def _sum(record: Record, kind: str) -> float | None:
    known = [one.energy_j for one in record.components if one.kind == kind]
    values = [one for one in known if one is not None]
    return sum(values) if values else None


def write_emissions(records: Iterable[Record], path: Path) -> None:
    """Publish the records as one emissions.csv at ``path``."""
    rows = [emissions_row(record) for record in records]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [])
    writer.writeheader()
    writer.writerows(rows)
    publish_bytes(path, text.getvalue().encode())
