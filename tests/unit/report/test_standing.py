"""The matrices and lists say what the table `dominance` says."""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from angelshare.accounting.dominance import SURE
from angelshare.accounting.names import pretty
from angelshare.accounting.tables import Tables
from angelshare.accounting.uncertainty import VIEWS
from angelshare.report import standing


def test_the_matrices_hold_the_table(demo_tables: Tables) -> None:
    found = {matrix.view: matrix for matrix in standing.matrices(demo_tables)}
    assert tuple(found) == VIEWS
    for view, matrix in found.items():
        rows = demo_tables.dominance.filter(view=view).rows(named=True)
        listed = {(pretty(r["setting"]), pretty(r["dominated"])): r for r in rows}
        for one, marks in zip(matrix.settings, matrix.rows, strict=True):
            for other, mark in zip(matrix.settings, marks, strict=True):
                row = listed.pop((one, other), None)
                if row is None:
                    assert (mark.text, mark.told) == ("" if one == other else "·", "")
                    continue
                assert mark.text.endswith(f"{100 * row['probability']:.0f}") or ">99" in mark.text
                assert (mark.shade == 5) == (row["probability"] >= SURE)
                assert mark.told.startswith(f"{one} dominates {other}: ")
        assert not listed


def test_what_is_unknown_is_no_percentage(paper_tables: Tables) -> None:
    matrix = standing.matrices(paper_tables)[1]
    at = {name: index for index, name in enumerate(matrix.settings)}
    mark = matrix.rows[at["SFT 7B"]][at["KD 13B"]]
    assert mark.text == "yes"
    assert mark.told == (
        "SFT 7B dominates KD 13B: in the means 23.0 kWh less a run and 0.0800 better; "
        "how surely is not known"
    )
    assert "“yes” is in the means" in matrix.caption


def test_the_list_puts_the_views_side_by_side(demo_tables: Tables) -> None:
    shown = standing.pairs(demo_tables)
    assert shown is not None
    assert shown.header[:5] == ("Setting", "Dominates", "Student only", "One-off", "Amortised")
    assert len(shown.rows) == demo_tables.dominance.select("setting", "dominated").n_unique()
    rows = {(row[0].text, row[1].text): row for row in shown.rows}
    row = rows["KD large T=2", "SFT large"]
    known = demo_tables.dominance.filter(setting="kd large T=2", dominated="sft large")
    expected = dict(known.select("view", "probability").rows())
    assert [cell.value for cell in row[2:5]] == [expected.get(view, 0.0) for view in VIEWS]
    assert "< 5 %" in {cell.text for row in shown.rows for cell in row}


def test_memberships_name_the_sure_dominator_and_the_waste(demo_tables: Tables) -> None:
    shown = standing.memberships(demo_tables)
    assert shown is not None
    assert shown.header[4:] == ("Beaten, when amortised, by", "How surely", "Wasted a run (J)")
    row = next(row for row in shown.rows if row[0].text == "SFT large")
    assert [cell.text for cell in row[4:6]] == ["synthetic SFT small", "> 99 %"]
    assert row[6].text.startswith("561 (")
    open_one = next(row for row in shown.rows if row[0].text == "KD small T=1")
    assert open_one[4].text == "KD small T=2"
    assert open_one[6].text == standing.DASH


def test_of_many_settings_those_nearest_the_frontier_are_compared(demo_tables: Tables) -> None:
    names = [f"sft s{i}" for i in range(40)]
    blank = demo_tables.summary.head(1).drop("setting")
    place = demo_tables.frontier.head(1).drop("setting", "membership_probability")
    chances = pl.DataFrame(
        {"setting": names, "membership_probability": [i / 40 for i in range(40)]}
    )
    tables = replace(
        demo_tables,
        summary=chances.select("setting").join(blank, how="cross"),
        frontier=chances.join(place, how="cross"),
        dominance=demo_tables.dominance.clear(),
    )
    assert set(standing.compared(tables)) == set(names[-standing.MOST_COMPARED :])
    caption = standing.matrices(tables)[0].caption
    assert "Shown are the 24 of 40 settings that are most often on a frontier" in caption


def test_one_setting_has_nobody_to_dominate(bare_tables: Tables) -> None:
    assert standing.matrices(bare_tables) == []
    assert standing.pairs(bare_tables) is None
