"""The words follow the tables."""

from __future__ import annotations

from pathlib import Path

import pytest
from studies import demo_study

from angelshare.accounting.findings import findings, headlines, percent
from angelshare.accounting.imported import account_csv
from angelshare.accounting.settings import AccountingSettings
from angelshare.accounting.tables import Tables, write_tables
from angelshare.accounting.units import energy, energy_unit, number


def test_headlines_of_the_paper(paper: Path, tmp_path: Path) -> None:
    frontier, break_even, reuse = headlines(
        account_csv(paper / "stages.csv", paper / "quality.csv", tmp_path)
    )
    assert "one-off: SFT 1B, synthetic SFT 1B, SFT 7B, SFT 13B;" in frontier
    assert "KD 1B N* 10.0 (no interval, spread not known; 3 consumers, not reached)" in break_even
    assert "synthetic SFT 13B N* 2.36 (no interval, spread not known; 3 consumers, reached)" in (
        break_even
    )
    assert reuse == (
        "Reuse: 2 of 2 teacher artifacts served more than one run (6 runs of this study, 0 of "
        "others); 21.6 kWh of teacher work, and 43.2 kWh not spent that making it once per run "
        "would have cost."
    )


def test_findings_of_the_paper(paper: Path, tmp_path: Path) -> None:
    found = findings(account_csv(paper / "stages.csv", paper / "quality.csv", tmp_path))
    texts = dict(found)
    every = " ".join(finding.text for finding in found)
    assert "only while the teacher is not counted: KD 1B, KD 7B, synthetic SFT 7B." in every
    assert "back on it: KD 1B." in every
    assert "On the frontier once the teacher is counted, and not before: SFT 1B." in every
    assert "KD 13B wastes 15.7 kWh a run beside SFT 7B, which is no worse; " in every
    assert "Dominated under every view: KD 13B, synthetic SFT 13B." in every
    assert "Student 13B: student only synthetic SFT 13B costs least" in every
    assert "9 of 9 settings have fewer than 3 runs" in every
    assert texts["stages"].startswith("Most energy goes into student training: 160 kWh")
    assert "No record says how much of the energy was measured." in every


def test_headlines_with_intervals_and_other_teams(demo_tables: Tables) -> None:
    frontier, break_even, reuse = headlines(demo_tables)
    assert "student only: KD small T=2" in frontier
    assert "KD small T=2 N* 3.98 (95 % " in break_even
    assert "; 17 consumers, reached)" in break_even
    assert (
        "synthetic SFT small N* never: the distilled student is not cheaper to train" in break_even
    )
    assert "(18 runs of this study, 5 of others)" in reuse


def test_waste_and_missing_meters_are_said(demo_tables: Tables) -> None:
    every = " ".join(finding.text for finding in findings(demo_tables))
    assert "2 attempts failed or stopped early and cost 190 J" in every
    assert "None of the energy was measured" in every
    assert "Missing from some totals: dram." in every
    assert (
        "SFT large wastes 561 J a run beside synthetic SFT small, which is no worse (95 %" in every
    )
    assert "Dominated under every view: KD large T=2, SFT large." in every


def test_a_study_without_distillation_or_scores(tmp_path: Path) -> None:
    stages = tmp_path / "stages.csv"
    stages.write_text(
        "run,pipeline,student,dataset,seed,stage,artifact,energy_kwh,tokens\n"
        "a,sft,1B,d,0,student_train,,1,\n"
    )
    tables = account_csv(stages, None, tmp_path / "out")
    assert headlines(tables) == (
        "Frontier: no run has a score on every benchmark, so there is no frontier.",
        "Break-even: no distilled run.",
        "Reuse: no teacher artifact.",
    )
    assert any(f.text == "1 run without quality, not on any frontier." for f in findings(tables))


def test_measured_energy_is_not_called_estimated(tmp_path: Path) -> None:
    study = demo_study(tmp_path / "in", gpu=True)
    tables = write_tables(study, AccountingSettings(draws=200), tmp_path / "out")
    assert not any("measured" in finding.text for finding in findings(tables))


@pytest.mark.parametrize(
    ("value_j", "text"),
    [(3.96e7, "11.0 kWh"), (7.2e5, "200 Wh"), (2.5e4, "25.0 kJ"), (950.0, "950 J"), (0.0, "0 J")],
)
def test_energies_for_people(value_j: float, text: str) -> None:
    assert energy(value_j) == text


def test_units_and_numbers() -> None:
    assert energy_unit([1.0, None, 4e6]).name == "kWh"
    assert energy(None) == "not known"
    assert [number(v) for v in (1234.5, 0.00123, 2e10, 1e-12)] == [
        "1,234",
        "0.00123",
        "2.00e+10",
        "1.00e-12",
    ]
    assert [percent(p) for p in (0.0, 0.001, 0.5, 0.999, 1.0)] == [
        "0 %",
        "< 1 %",
        "50 %",
        "> 99 %",
        "100 %",
    ]
