"""What codecarbon knows: TDP of CPUs (W), power of memory (W), carbon intensity (g/kWh).

Its tables and its matching are used, never copied. Importing them takes 0.3 s, so the answers are
kept in the user's cache, by codecarbon's version; a cache that cannot be written only costs that
time. Nothing here uses the network or writes into the working directory.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from angelshare.errors import AngelshareError
from angelshare.files import publish_json, read_json


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """Constants of the load model for one machine."""

    cpu_model: str
    cpu_tdp_w: float
    """Power of all its CPUs under full load."""
    cpu_source: str
    threads: int
    dram_w: float
    """Power of all its memory."""
    dram_bytes: int
    source: str


@dataclass(frozen=True, kw_only=True)
class Intensity:
    """Carbon intensity of a zone's electricity."""

    g_per_kwh: float
    zone: str
    source: str
    dataset_version: str
    estimated: bool


def estimator(cpu_tdp_w: float | None = None) -> Estimator:
    """The load model's constants for this machine; ``cpu_tdp_w`` overrides codecarbon's TDP."""
    threads = os.cpu_count() or 1
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    model = cpu_model()
    cpu_w, source = cpu_tdp_w, "declared"
    if cpu_w is None:
        cpu_w, source = _remembered(f"cpu|{model}|{threads}", lambda: _cpu_power(threads))
    gigabytes = round(memory_bytes / 2**30, 1)
    dram_w = _remembered(f"dram|{gigabytes}", lambda: _dram_power(gigabytes))
    return Estimator(
        cpu_model=model or "unknown",
        cpu_tdp_w=cpu_w,
        cpu_source=source,
        threads=threads,
        dram_w=dram_w,
        dram_bytes=memory_bytes,
        source=f"codecarbon {_version()}",
    )


def intensity(country_iso: str | None, region: str | None) -> Intensity:
    """codecarbon's intensity of a country or region; the world's average without a country.

    Raises AngelshareError for a country or region that codecarbon does not know.
    """
    zone = "-".join(filter(None, (country_iso, region))) or "world"
    g_per_kwh, year = _remembered(f"grid|{zone}", lambda: _grid(country_iso, region))
    return Intensity(
        g_per_kwh=g_per_kwh,
        zone=zone,
        source="codecarbon",
        dataset_version=f"codecarbon {_version()}" + (f", data of {year}" if year else ""),
        estimated=country_iso is None,
    )


def cpu_model() -> str | None:
    """The CPU's name as the kernel gives it; some architectures give none."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return None


def _version() -> str:
    return importlib.metadata.version("codecarbon")


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(root) / "angelshare" / f"codecarbon-{_version()}.json"


def _remembered(key: str, compute: Callable[[], Any]) -> Any:
    path = _cache()
    try:
        known = read_json(path)
    except (OSError, ValueError):
        known = {}
    if key not in known:
        logging.getLogger("codecarbon").disabled = True
        known[key] = compute()
        with contextlib.suppress(OSError):
            publish_json(path, known)
    return known[key]


def _cpu_power(threads: int) -> tuple[float, str]:
    """TDP of all sockets in codecarbon's registry, else its default per thread.

    ``TDP()`` itself is not made: it asks the CPU for a second what the kernel has told already, and
    under Slurm it needs scontrol.
    """
    from codecarbon.core.cpu import DEFAULT_POWER_PER_CORE, TDP
    from codecarbon.core.util import count_physical_cpus, detect_cpu_model

    model = cpu_model() or detect_cpu_model() or "unknown"
    known_w = TDP.__new__(TDP)._get_cpu_power_from_registry(model)
    if known_w:
        sockets = count_physical_cpus()
        return known_w * sockets, f"codecarbon {_version()}, {sockets} x {model}"
    text = f"codecarbon {_version()}, unknown CPU, {DEFAULT_POWER_PER_CORE} W per thread"
    return float(DEFAULT_POWER_PER_CORE * threads), text


def _dram_power(gigabytes: float) -> float:
    from codecarbon.external.ram import RAM

    return float(RAM(tracking_mode="machine")._calculate_ram_power(gigabytes))


def _grid(country_iso: str | None, region: str | None) -> tuple[float, int | None]:
    from codecarbon.core.emissions import Emissions
    from codecarbon.core.units import Energy
    from codecarbon.external.geography import GeoMetadata
    from codecarbon.input import DataSource, DataSourceException

    source = DataSource()
    if country_iso is None:
        return float(source.get_carbon_intensity_per_source_data()["world_average"]), None
    mix = source.get_global_energy_mix_data()
    if country_iso not in mix:
        raise AngelshareError(
            f"carbon.country_iso: codecarbon knows no country {country_iso!r}. Use a three-letter "
            "ISO 3166 code such as FRA, or set carbon.grid_g_per_kwh and carbon.grid_source."
        )
    emissions, one = Emissions(source), Energy.from_energy(kWh=1)
    place = GeoMetadata(country_iso_code=country_iso, region=region)
    country_kg = emissions.get_country_emissions(one, place)
    if region is None:
        return country_kg * 1000, mix[country_iso].get("year")
    try:
        region_kg = emissions.get_region_emissions(one, place)
    except (DataSourceException, KeyError, ValueError):
        region_kg = country_kg
    if region_kg == country_kg:
        raise AngelshareError(
            f"carbon.region: codecarbon has no figures of its own for {region!r} in {country_iso}. "
            "Leave the region out, or set carbon.grid_g_per_kwh and carbon.grid_source."
        )
    return region_kg * 1000, mix[country_iso].get("year")
