"""The figures: which are drawn, that their bytes repeat, and that labels keep off each other."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import polars as pl
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from angelshare.accounting.imported import account_csv
from angelshare.accounting.order import ordered_settings, students_by_size
from angelshare.accounting.tables import Tables
from angelshare.report import figures
from angelshare.report.amortization_figure import amortization_figure, most_runs
from angelshare.report.figures import FIGURES, FORMATS, write_figures
from angelshare.report.frontier_figure import frontier_figure
from angelshare.report.stages_figure import stage_means, stages_figure
from angelshare.report.style import looks
from angelshare.report.sweeps_figure import sweeps, sweeps_figure


def test_every_figure_in_every_format(demo_tables: Tables, tmp_path: Path) -> None:
    paths = write_figures(demo_tables, tmp_path)
    assert set(paths) == set(FIGURES)
    for by_format in paths.values():
        assert set(by_format) == set(FORMATS)
        root = ET.parse(by_format["svg"]).getroot()
        assert root.tag.endswith("svg")
        assert by_format["png"].read_bytes().startswith(b"\x89PNG")
        assert by_format["pdf"].read_bytes().startswith(b"%PDF")


def test_equal_tables_give_equal_bytes(
    paper_tables: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "FIGURES", {"frontier": frontier_figure})
    first = write_figures(paper_tables, tmp_path / "a")["frontier"]
    second = write_figures(paper_tables, tmp_path / "b")["frontier"]
    for kind in FORMATS:
        assert first[kind].read_bytes() == second[kind].read_bytes(), kind


def test_nothing_to_draw(bare_tables: Tables) -> None:
    assert frontier_figure(bare_tables) is None
    assert amortization_figure(bare_tables) is None
    assert stages_figure(bare_tables) is not None


def test_one_run_is_a_figure_too(tmp_path: Path) -> None:
    (tmp_path / "stages.csv").write_text(
        "run,pipeline,student,dataset,seed,stage,artifact,energy_kwh,tokens\n"
        "a,mine,1B,d,0,student_train,,1,\nb,yours,1B,d,0,student_train,,1,\n"
    )
    (tmp_path / "quality.csv").write_text(
        "run,benchmark,score,teacher_score\na,b,0.5,1\nb,b,0.5,1\n"
    )
    tables = account_csv(tmp_path / "stages.csv", tmp_path / "quality.csv", tmp_path / "out")
    assert tables.frontier["on_frontier"].all()
    assert frontier_figure(tables) is not None
    assert amortization_figure(tables) is None
    paths = write_figures(tables, tmp_path / "figures")
    assert set(paths) == set(FIGURES)
    assert all(path.stat().st_size for kinds in paths.values() for path in kinds.values())


def test_units_follow_the_largest_value(demo_tables: Tables, paper_tables: Tables) -> None:
    for tables, unit in ((demo_tables, "J"), (paper_tables, "kWh")):
        figure = frontier_figure(tables)
        assert figure is not None
        assert {axes.get_xlabel() for axes in figure.axes} == {f"energy per run ({unit})"}
        assert [axes.get_title(loc="left") for axes in figure.axes] == [
            "Student only",
            "One-off",
            "Amortised",
        ]


def boxes(figure: Figure, axes_index: int) -> list[tuple[float, float, float, float]]:
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    found = []
    for child in figure.axes[axes_index].get_children():
        if isinstance(child, Annotation) and child.get_text():
            child.update_positions(renderer)
            found.append(Text.get_window_extent(child, renderer).extents)
    return [tuple(map(float, box)) for box in found]  # type: ignore[misc]


@pytest.mark.parametrize("panel", [0, 1, 2])
def test_labels_do_not_cover_each_other(paper_tables: Tables, panel: int) -> None:
    figure = frontier_figure(paper_tables)
    assert figure is not None
    found = boxes(figure, panel)
    assert len(found) == 9
    for i, (x0, y0, x1, y1) in enumerate(found):
        for u0, v0, u1, v1 in found[:i]:
            assert x1 <= u0 or u1 <= x0 or y1 <= v0 or v1 <= y0


def test_stage_means_sum_to_the_summary(demo_tables: Tables) -> None:
    sums = stage_means(demo_tables).group_by("setting", "view").agg(pl.col("energy_j").sum())
    means = {row["setting"]: row for row in demo_tables.summary.rows(named=True)}
    assert sums.height == 3 * len(means)
    for row in sums.rows(named=True):
        assert row["energy_j"] == pytest.approx(means[row["setting"]][f"{row['view']}_j"])


def test_a_sweep_is_what_differs_in_one_hyperparameter(
    demo_tables: Tables, paper_tables: Tables
) -> None:
    (sweep,) = sweeps(demo_tables)
    assert (sweep.hyperparameter, sweep.pipeline, sweep.student) == ("temperature", "kd", "small")
    assert sweep.rows["temperature"].to_list() == [1.0, 2.0, 4.0]
    assert sweeps_figure(paper_tables) is None


def test_order_and_looks(paper_tables: Tables, demo_tables: Tables) -> None:
    assert students_by_size(paper_tables) == ["1B", "7B", "13B"]
    assert students_by_size(demo_tables) == ["small", "large"]
    assert ordered_settings(paper_tables)[:3] == ["sft 1B", "kd 1B", "synthetic_sft 1B"]
    assert looks(["kd"])["kd"] == looks(["sft", "kd", "mine"])["kd"]
    every = looks(["sft", "kd", "synthetic_sft", "mine", "yours"])
    assert len({look.color for look in every.values()}) == 5


def test_the_curve_goes_past_n_star_and_now(paper_tables: Tables) -> None:
    assert most_runs(paper_tables.break_even) == pytest.approx(1.3 * 10.6 / 0.95)


def test_a_generation_budget_is_a_sweep_with_the_teachers_energy(tmp_path: Path) -> None:
    """Fig. 6 of the paper: more tokens per answer cost the teacher, not the student."""
    stages = tmp_path / "stages.csv"
    rows = [
        f"s{tokens},synthetic_sft,1B,d,0,{stage},{artifact},{kwh},,{tokens}"
        for tokens in (256, 512, 1024)
        for stage, artifact, kwh in (
            ("student_train", "", 5),
            ("teacher_generation", f"corpus-{tokens}", tokens / 100),
        )
    ]
    header = "run,pipeline,student,dataset,seed,stage,artifact,energy_kwh,tokens,max_new_tokens"
    stages.write_text("\n".join([header, *rows]) + "\n")
    tables = account_csv(stages, None, tmp_path / "out")
    (sweep,) = sweeps(tables)
    assert sweep.hyperparameter == "max_new_tokens"
    assert sweep.rows["max_new_tokens"].to_list() == [256.0, 512.0, 1024.0]
    figure = sweeps_figure(tables)
    assert figure is not None
    one_off = figure.axes[2].lines[0].get_ydata()
    assert list(one_off) == pytest.approx([5 + tokens / 100 for tokens in (256, 512, 1024)])
