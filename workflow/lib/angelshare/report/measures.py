"""Further tables of the report: benchmarks, efficiency, moved boundaries, plans and measures."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from angelshare.accounting.names import pretty, stage_name
from angelshare.accounting.order import ordered_settings
from angelshare.accounting.tables import Tables
from angelshare.accounting.units import energy_unit
from angelshare.report.display import Table, scaled, share, table


def benchmarks(tables: Tables, names: Sequence[str]) -> Table | None:
    """The mean score of every setting on every benchmark."""
    by_setting = {row["setting"]: row for row in tables.summary.rows(named=True)}
    rows = [
        {
            "Setting": pretty(setting),
            "n": by_setting[setting]["n"],
            **{name.replace("_", " "): scaled(by_setting[setting][name]) for name in names},
            "Q": scaled(by_setting[setting]["quality"]),
        }
        for setting in ordered_settings(tables)
    ]
    caption = (
        "Mean scores over datasets and seeds. Q is the mean over benchmarks of student / teacher; "
        "a cross-entropy is shown and not part of it."
    )
    return table("benchmarks", caption, rows) if names else None


def efficiency(tables: Tables) -> Table | None:
    """Energy per token served, retention and overall efficiency of every setting."""
    by_setting = {row["setting"]: row for row in tables.summary.rows(named=True)}
    rows = [
        {
            "Setting": pretty(setting),
            "J per token served": scaled(row["inference_j_per_token"]),
            "Prefill (J per prompt token)": scaled(row["prefill_j_per_token"]),
            "Decoding (J per token)": scaled(row["decode_j_per_token"]),
            "Teacher (J per token)": scaled(row["teacher_inference_j_per_token"]),
            "OM_perf": scaled(row["om_perf"]),
            "Eff_overall": scaled(row["eff_overall"]),
        }
        for setting in ordered_settings(tables)
        if (row := by_setting[setting])["inference_j_per_token"] is not None
    ]
    caption = (
        "Energies of evaluation. OM_perf: mean over benchmarks of student / teacher. Eff_overall: "
        "OM_perf times the teacher's J per token over the student's (Slimming-Models-Saving-"
        "Watts). "
        "Prefill and decoding are apart only where the evaluation marked them."
    )
    return table("efficiency", caption, rows)


def sensitivity(tables: Tables) -> Table | None:
    """What each moved boundary changes; conclusions that nothing changes are counted."""
    rows = [
        {
            "Boundary": row["boundary"],
            "Moved": f"{100 * row['shift']:+.0f} %",
            "Conclusion": pretty(row["conclusion"]),
            "As measured": pretty(row["before"]),
            "Moved to": pretty(row["after"]),
            "N* as measured": scaled(row["n_star_before"]),
            "N* moved": scaled(row["n_star_after"]),
        }
        for row in tables.sensitivity.rows(named=True)
        if row["changes"] or scaled(row["n_star_before"]).text != scaled(row["n_star_after"]).text
    ]
    caption = (
        "Conclusions and break-even numbers that change when the boundary between two phases "
        "moves by 5 % of the earlier one. Conclusions looked at: the cheapest setting of "
        "each student and the frontier under each view, and whether break-even is reached."
    )
    return table("sensitivity", caption, rows)


def predictions(tables: Tables) -> Table | None:
    """What plans expected of each stage, and what was then measured."""
    groups = (
        tables.predictions.group_by("stage", "basis")
        .agg(
            jobs=pl.len(),
            predicted_j=pl.col("predicted_j").sum(),
            measured_j=pl.col("measured_j").sum(),
            covered=pl.col("covered").mean(),
            covered_s=pl.col("covered_s").mean(),
        )
        .sort("stage", "basis")
    )
    unit = energy_unit([*groups["predicted_j"], *groups["measured_j"]])
    rows = [
        {
            "Stage": stage_name(row["stage"]),
            "Predicted from": row["basis"],
            "Jobs": row["jobs"],
            f"Predicted ({unit.name})": scaled(row["predicted_j"], unit.factor),
            f"Measured ({unit.name})": scaled(row["measured_j"], unit.factor),
            "Measured / predicted": scaled(
                row["measured_j"] / row["predicted_j"] if row["predicted_j"] else None
            ),
            "Energy within 95 % interval": share(row["covered"]),
            "Time within": share(row["covered_s"]),
        }
        for row in groups.rows(named=True)
    ]
    caption = (
        "The last plan before each job against the attempt that succeeded. An interval that is "
        "right holds 95 % of them."
    )
    return table("predictions", caption, rows)
