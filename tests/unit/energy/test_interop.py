"""Any command, codecarbon's file, ranks and Slurm's own figures."""

from __future__ import annotations

import csv
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from angelshare.energy import CarbonSettings, EnergySettings, Job, window
from angelshare.energy.attempts import read_attempts, validate_sidecar
from angelshare.energy.command import CommandFailed, meter
from angelshare.energy.export import write_emissions
from angelshare.energy.measures import Component, Device, Interval
from angelshare.energy.ranks import merge_ranks
from angelshare.energy.sidecar import Record
from angelshare.energy.slurm import reconcile, slurm_energies
from angelshare.energy.totals import total_of
from angelshare.errors import AngelshareError

JobMaker = Callable[..., Job]
SPIN = "import time\nwhile time.process_time() < 0.3: pass"
GRID = CarbonSettings(grid_g_per_kwh=400.0, grid_source="a test", pue=1.5, country_iso="FRA")


def test_any_command(tmp_path: Path, settings: EnergySettings) -> None:
    out = tmp_path / "energy.json"
    meter([sys.executable, "-I", "-S", "-c", SPIN], out, settings)
    record = validate_sidecar(out)
    cpu = record.components[0]
    assert (cpu.energy_j or 0.0) >= 0.28 * 16.0 / (os.cpu_count() or 1)


def test_a_failing_command_keeps_its_status_and_its_record(
    tmp_path: Path, settings: EnergySettings
) -> None:
    out = tmp_path / "energy.json"
    with pytest.raises(CommandFailed) as failure:
        meter([sys.executable, "-I", "-S", "-c", "raise SystemExit(3)"], out, settings)
    assert failure.value.code == 3
    assert not out.exists()
    (record,) = read_attempts(tmp_path / "energy.attempts")
    assert (record.record.status, record.record.exit_code) == ("failed", 3)
    with pytest.raises(AngelshareError, match="no-such-command"):
        meter(["no-such-command"], out, settings)


def test_codecarbons_columns(job: JobMaker, settings: EnergySettings, tmp_path: Path) -> None:
    one = job()
    with window(one, settings, GRID):
        time.sleep(0.05)
    record = validate_sidecar(one.sidecar)
    path = tmp_path / "emissions.csv"
    write_emissions([record], path)
    with path.open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    joules = record.total.energy_j.value
    assert float(row["energy_consumed"]) == pytest.approx(joules / 3.6e6)
    assert float(row["emissions"]) == pytest.approx(joules / 3.6e6 * 0.4 * 1.5)
    assert float(row["cpu_energy"]) + float(row["ram_energy"]) == pytest.approx(joules / 3.6e6)
    assert row["gpu_energy"] == "", "what was not measured is empty, not zero"
    assert (row["country_iso_code"], row["pue"]) == ("FRA", "1.5")


@pytest.fixture
def base(job: JobMaker) -> Record:
    one = job()
    with window(one, EnergySettings(cpu="none", dram="none")):
        pass
    return validate_sidecar(one.sidecar)


def rank_of(base: Record, rank: int, host: str, parts: list[Component]) -> Record:
    record = base.model_copy(deep=True)
    record.run.rank, record.run.host = rank, host
    record.components = parts
    record.total = total_of(parts)
    return record


def gpu(uuid: str, joules: float, index: int = 0) -> Component:
    return Component(
        id=f"gpu{index}",
        kind="gpu",
        device=Device(uuid=uuid),
        quality="measured",
        method="nvml_counter",
        attribution="whole_device",
        energy_j=joules,
        u95_j=1.0,
    )


def cpu(joules: float) -> Component:
    return Component(
        id="cpu0",
        kind="cpu_package",
        quality="estimated",
        method="load_model",
        attribution="cpu_time_share",
        energy_j=joules,
        u95_j=joules / 2,
    )


def test_ranks_count_no_device_twice(base: Record) -> None:
    long = rank_of(base, 0, "n1", [gpu("GPU-a", 110.0), cpu(10.0)])
    long.time.duration_s = 11.0
    same = rank_of(base, 1, "n1", [gpu("GPU-a", 100.0), gpu("GPU-b", 50.0, 1), cpu(5.0)])
    same.time.duration_s = 10.0
    other = rank_of(base, 2, "n2", [gpu("GPU-a2", 70.0), cpu(2.0)])
    merged = merge_ranks([same, long, other])
    # GPU-a once (the longer look), GPU-b, the other node's GPU, and three shares of CPUs.
    assert merged.total.energy_j.value == pytest.approx(110 + 50 + 70 + 10 + 5 + 2)
    assert merged.run.world == 3
    assert "ranks_overlap" in {one.code for one in merged.warnings or []}
    assert len({part.id for part in merged.components}) == 6
    stranger = other.model_copy(deep=True)
    stranger.record.rule = "another"
    with pytest.raises(AngelshareError, match="cannot be merged"):
        merge_ranks([same, stranger])


SACCT = """JobIDRaw|State|ElapsedRaw|ConsumedEnergyRaw|Restarts
17|PREEMPTED|60|0|0
17.batch|CANCELLED|60|6000|0
17|COMPLETED|100|20000|1
17.batch|COMPLETED|100|19000|1
18|COMPLETED|10|18446744073709551614|0
"""


def test_slurms_figures_by_job_and_restart() -> None:
    assert slurm_energies(SACCT) == {("17", 0): 6000.0, ("17", 1): 20000.0, ("18", 0): None}


def test_reconciliation(base: Record) -> None:
    record = base.model_copy(deep=True)
    record.run.slurm = {"job_id": "17", "restart_count": 1}
    record.total.energy_j = Interval(value=18000.0, low=17000.0, high=19000.0)
    unknown = record.model_copy(deep=True)
    unknown.run.slurm = {"job_id": "18"}
    first, second = reconcile([base, record, unknown], SACCT)
    assert (first["slurm_energy_j"], first["ratio"]) == (20000.0, 0.9)
    assert (second["slurm_energy_j"], second["ratio"]) == (None, None)
