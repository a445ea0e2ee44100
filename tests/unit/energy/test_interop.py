"""Any command, codecarbon's file, and Slurm's own figures."""

from __future__ import annotations

import csv
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from angelshare.energy import CarbonSettings, EnergySettings, Job, window
from angelshare.energy.attempts import every_record, read_attempts, validate_sidecar
from angelshare.energy.command import CommandFailed, meter
from angelshare.energy.export import write_emissions
from angelshare.energy.slurm import ask_slurm, slurm_energies
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


def test_every_attempt_is_exported_once(
    job: JobMaker, settings: EnergySettings, tmp_path: Path
) -> None:
    one = job(sidecar=tmp_path / "made" / "energy.json", attempts=tmp_path / "made" / "attempts")
    with pytest.raises(ZeroDivisionError), window(one, settings):
        _ = 1 / 0
    with window(one, settings):
        time.sleep(0.05)
    names = [attempt.record.id for attempt in read_attempts(one.attempts)]
    assert len(names) == 2
    assert [record.record.id for record in every_record([tmp_path])] == names
    assert [record.record.id for record in every_record([one.attempts])] == names
    ranks = one.attempts / "x.ranks" / "0.attempts"
    ranks.mkdir(parents=True)
    (ranks / "0.json").write_text("is never read")
    assert len(every_record([tmp_path])) == 2


SACCT = """Cluster|JobIDRaw|State|ElapsedRaw|ConsumedEnergyRaw|Restarts
north|17|PREEMPTED|60|0|0
north|17.batch|CANCELLED|60|6000|0
north|17|COMPLETED|100|20000|1
north|17.batch|COMPLETED|100|19000|1
north|18|COMPLETED|10|18446744073709551614|0
"""
KNOWN = {("north", "17", 0): 6000.0, ("north", "17", 1): 20000.0, ("north", "18", 0): None}


def test_slurms_figures_by_job_and_restart() -> None:
    assert slurm_energies(SACCT) == KNOWN
    old = "\n".join(line.rpartition("|")[0] for line in SACCT.splitlines())
    assert slurm_energies(old) == KNOWN, "without the column, restarts are counted"


def sacct(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> Path:
    """A `sacct` on the PATH; the file to which it writes what it was asked."""
    tool, asked = folder / "bin" / "sacct", folder / "asked"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n{body}\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    return asked


def test_slurm_is_asked_for_the_jobs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = sacct(tmp_path, monkeypatch, f"cat <<'EOF'\n{SACCT}EOF")
    assert ask_slurm([("north", "17", 1), ("south", "18", 0)]) == {("north", "17", 1): 20000.0}
    assert asked.read_text().split()[-2:] == ["-j", "17,18"]
    assert ask_slurm([]) == {}


def test_an_old_or_broken_sacct_breaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuses = 'case "$*" in *Restarts*) exit 1;; esac\n'
    plain = "\n".join(line.rpartition("|")[0] for line in SACCT.splitlines())
    asked = sacct(tmp_path, monkeypatch, f"{refuses}cat <<'EOF'\n{plain}\nEOF")
    assert ask_slurm([("north", "17", 0)]) == {("north", "17", 0): 6000.0}
    assert len(asked.read_text().splitlines()) == 2
    (tmp_path / "bin" / "sacct").write_text("#!/bin/sh\nexit 3\n")
    assert ask_slurm([("north", "17", 0)]) == {}
