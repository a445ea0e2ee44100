"""Settings of the meter and of what turns joules into grams.

Powers in watts, times in seconds, relative bounds are 95 % (k = 2) fractions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from angelshare.settings import Settings


class EnergySettings(Settings):
    """How a job is measured."""

    period_s: float = Field(default=0.5, ge=0.02, le=60)
    """Seconds between two samples of the trace."""

    gpu: Literal["auto", "none"] = "auto"
    """`auto` measures every GPU the job may use through NVML, `none` leaves GPUs out."""

    mig: Literal["whole_device", "slices"] = "whole_device"
    """A MIG instance is charged the whole GPU, or the share of its compute slices."""

    cpu: Literal["auto", "rapl", "estimate", "none"] = "auto"
    """`auto` reads RAPL where it is readable and estimates elsewhere; `none` lists it missing."""

    cpu_attribution: Literal["cpu_time_share", "cgroup", "whole_device"] = "cpu_time_share"
    """Charge the job the CPU time of its processes, of its control group (one job alone in it, as
    under Slurm), or the whole package (node alone)."""

    cpu_tdp_w: float | None = Field(default=None, gt=0)
    """Thermal design power of the machine's CPUs; without it codecarbon's own data are used."""

    dram: Literal["auto", "none"] = "auto"
    """`auto` reads RAPL's DRAM zone or estimates by codecarbon's model; `none` lists it missing."""

    live: Path | None = None
    """Folder that Prometheus' textfile collector reads; without it, the job's attempts folder."""

    powercap: Path = Path("/sys/class/powercap")
    """Where the kernel shows RAPL."""

    gain_rel95: float = Field(default=0.05, ge=0)
    """Systematic error of a GPU board's sensor; arXiv:2312.02741 found about 5 %."""

    rapl_rel95: float = Field(default=0.1, ge=0)
    """Systematic error of RAPL against a wall meter."""

    model_rel95: float = Field(default=0.5, ge=0)
    """Error of an estimated component; never call an estimate better than this."""

    crosscheck_warn: float = Field(default=0.02, gt=0)
    """Relative difference of counter and integrated power that earns a warning."""

    crosscheck_fail: float = Field(default=0.05, gt=0)
    """Relative difference at which the cross-check counts as failed."""


class CarbonSettings(Settings):
    """How joules become grams of CO2 equivalent, once, at the end."""

    country_iso: str | None = Field(default=None, pattern=r"^[A-Z]{3}$")
    """Three-letter country of the grid (codecarbon's own data); none means the world's average."""

    region: str | None = None
    """Region within the country, where codecarbon knows one."""

    pue: float = Field(default=1.0, ge=1.0)
    """Power usage effectiveness of the building; multiplies the devices' energy once."""

    pue_kind: Literal["measured", "declared", "default"] = "default"
    """Whether the PUE was measured, is declared by the site, or is a default."""

    pue_source: str = "no building overhead assumed"
    """Where the PUE comes from."""

    grid_g_per_kwh: float | None = Field(default=None, ge=0)
    """Grams of CO2e per kWh that override codecarbon's data."""

    grid_source: str | None = None
    """Where `grid_g_per_kwh` or `grid_csv` comes from; required with the former."""

    grid_csv: Path | None = None
    """Intensity over time: a CSV with start_utc, end_utc and g_per_kwh, used where it covers."""

    price_per_kwh: float | None = Field(default=None, ge=0)
    """What a kWh costs; the building's overhead (PUE) is paid too."""

    price_csv: Path | None = None
    """Price over time: a CSV with start_utc, end_utc and price_per_kwh, used where it covers; the
    constant price is for the rest."""

    currency: str = "EUR"
    """The price's currency."""

    price_source: str | None = None
    """Where the price comes from; required with it."""

    @model_validator(mode="after")
    def _figures_name_their_sources(self) -> CarbonSettings:
        if self.grid_g_per_kwh is not None and not self.grid_source:
            raise ValueError("grid_g_per_kwh needs grid_source: say where the figure comes from")
        if self.price_per_kwh is not None and not self.price_source:
            raise ValueError("price_per_kwh needs price_source: say where the figure comes from")
        if self.price_csv is not None and self.price_per_kwh is None:
            raise ValueError("price_csv needs price_per_kwh: the price where the CSV has no row")
        return self
