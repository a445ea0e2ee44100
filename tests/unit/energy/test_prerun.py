"""The prerun says what can be measured here and never dresses an estimate as a measurement."""

from __future__ import annotations

from pathlib import Path

from angelshare.energy import EnergySettings
from angelshare.energy.measures import Baseline
from angelshare.energy.prerun import idle_baseline, machine_snapshot, verdict


def test_snapshot_is_plain_values() -> None:
    snapshot = machine_snapshot()
    assert snapshot["run"]["host"]
    assert snapshot["env"]["cpu_count"] >= 1


def test_estimates_have_no_idle_power(settings: EnergySettings) -> None:
    found = idle_baseline(0.1, settings)
    assert Baseline.model_validate(found["baseline"]).idle_w == {}
    assert {row["quality"] for row in found["devices"]} == {"estimated"}
    assert all("ESTIMATED" in line for line in found["verdict"])


def test_a_counter_that_stands_still_has_no_idle_power(
    tmp_path: Path, settings: EnergySettings
) -> None:
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    for name, text in (("name", "package-0"), ("max_energy_range_uj", "9"), ("energy_uj", "5")):
        (zone / name).write_text(text)
    rapl = settings.model_copy(update={"cpu": "auto", "powercap": tmp_path})
    found = idle_baseline(0.1, rapl)
    # The counter stands still: that is not an idle power of zero.
    assert found["devices"][0]["meter"] == "rapl"
    assert found["devices"][0]["idle_w"] is None
    assert found["baseline"]["idle_w"] == {}
    assert "unresolved" in found["verdict"][0]


def test_verdict_says_what_not_to_publish() -> None:
    row = {"component": "gpu0", "device": "H100", "quality": "measured", "meter": "nvml_counter"}
    bad = {**row, "idle_w": 70.0, "agreement_rel": 0.07, "agreement_ok": False}
    gone = {**row, "quality": "missing"}
    assert "do not publish" in verdict([bad])[0]
    assert "MISSING" in verdict([gone])[0]
    assert "70.0 W" in verdict([{**bad, "agreement_ok": True}])[0]
