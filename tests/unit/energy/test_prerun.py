"""The prerun says what can be measured here and never dresses an estimate as a measurement."""

from __future__ import annotations

from pathlib import Path

from angelshare.energy import EnergySettings
from angelshare.energy.measures import Baseline
from angelshare.energy.prerun import idle_baseline, machine_snapshot, trust_table, verdict


def test_snapshot_is_plain_values() -> None:
    snapshot = machine_snapshot()
    assert snapshot["run"]["host"]
    assert snapshot["env"]["cpu_count"] >= 1


def test_estimates_have_no_idle_power(settings: EnergySettings) -> None:
    found = idle_baseline(0.1, settings)
    assert Baseline.model_validate(found["baseline"]).idle_w == {}
    assert {row["quality"] for row in found["devices"]} == {"estimated"}
    assert {row["trust"] for row in found["table"]} == {"estimate"}
    assert len(found["verdict"]) == len(found["devices"]) + 1


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
    assert found["table"][0]["trust"] == "no"
    assert "unresolved" in found["verdict"][1]


def test_one_table_says_what_to_trust() -> None:
    row = {"component": "gpu0", "device": "H100", "quality": "measured", "meter": "nvml_counter"}
    good = {**row, "idle_w": 70.0, "tick_ms": 100.0, "agreement_rel": 0.003, "agreement_ok": True}
    bad = {**good, "agreement_rel": 0.07, "agreement_ok": False}
    still = {**row, "idle_w": None, "agreement_ok": None}
    gone = {**row, "device": None, "quality": "missing"}
    guess = {**row, "quality": "estimated", "meter": "load_model"}
    table = trust_table([good, bad, still, gone, guess, {**good, "agreement_ok": None}])
    assert [one["trust"] for one in table] == ["measured", "no", "no", "no", "estimate", "measured"]
    assert (table[0]["idle"], table[0]["tick"], table[0]["agreement"]) == (
        "70.0 W",
        "100 ms",
        "+0.3%",
    )
    assert "do not publish" in table[1]["why"]
    assert (table[3]["idle"], table[3]["device"]) == ("", "unknown model")
    head, first, *_ = verdict([good, gone])
    assert head.split() == list(table[0])
    assert first.index("measured") == head.index("trust")
    assert "no device" in verdict([])[0]


def test_both_idle_states_stand_in_one_table() -> None:
    gpu = {"component": "gpu0", "device": "H100", "quality": "measured", "meter": "nvml_counter"}
    gpu |= {"idle_w": 70.0, "tick_ms": 100.0, "agreement_rel": 0.003, "agreement_ok": True}
    cpu = {**gpu, "component": "cpu0", "idle_w": None, "quality": "estimated"}
    table = trust_table([gpu, cpu], [{**gpu, "idle_w": 118.4}, cpu])
    assert [(row["idle"], row["with context"]) for row in table] == [
        ("70.0 W", "118.4 W"),
        ("", ""),
    ]
    assert "118.4 W" in verdict([gpu, cpu], [{**gpu, "idle_w": 118.4}, cpu])[1]
