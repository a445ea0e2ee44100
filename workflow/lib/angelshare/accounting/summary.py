"""One row per setting (pipeline, student, hyperparameters): means over its datasets and seeds.

Every energy view and quality come with n, the standard deviation (n - 1) and the 95 % t-interval of
the mean (repeatability), and apart from them the measurement bound, which repeats do not reduce.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from angelshare.accounting.efficiency import EFFICIENCY_COLUMNS
from angelshare.accounting.uncertainty import VIEWS, Exposures, known_bound, t_interval

MEASURES = (*(f"{view}_j" for view in VIEWS), "quality")
FEW = 3
"""Fewer repeats than this and a row says so."""


def summary_table(
    runs: pl.DataFrame, exposed: Exposures, hyperparameters: list[str], benchmarks: list[str]
) -> pl.DataFrame:
    """`summary.parquet`: for each measure `<m>` (the views' joules, quality) the mean `<m>`,
    `<m>_sd`, `<m>_low`, `<m>_high`; for the energies also `<m>_u95`, the measurement bound."""
    rows: list[dict[str, Any]] = []
    everywhere = ", ".join(sorted(set(runs["dataset"])))
    for (setting,), group in runs.group_by("setting", maintain_order=True):
        index = [exposed.runs.index(run) for run in group["run"]]
        row = _row(str(setting), group, index, exposed, hyperparameters, benchmarks)
        if row["datasets"] != everywhere:
            row["note"] = "; ".join(filter(None, (row["note"], f"on {row['datasets']} only")))
        rows.append(row)
    schema = {
        name: runs.schema[name] for name in ("pipeline", "student", *hyperparameters, "setting")
    }
    frame = pl.DataFrame(rows, infer_schema_length=None, schema_overrides=schema)
    unknown = [name for name, kind in frame.schema.items() if kind == pl.Null]
    return frame.with_columns(pl.col(unknown).cast(pl.Float64)).sort(
        "pipeline", "student", "setting"
    )


def _row(
    setting: str,
    group: pl.DataFrame,
    index: list[int],
    exposed: Exposures,
    hyperparameters: list[str],
    benchmarks: list[str],
) -> dict[str, Any]:
    weights = np.zeros((1, len(exposed.runs)))
    weights[0, index] = 1.0 / len(index)
    row: dict[str, Any] = {
        "pipeline": group["pipeline"][0],
        "student": group["student"][0],
        **{name: group[name][0] for name in hyperparameters},
        "setting": setting,
        "distilled": group["distilled"][0],
        "n": group.height,
        "datasets": ", ".join(sorted(set(group["dataset"]))),
    }
    for measure in MEASURES:
        values = group[measure].drop_nulls().to_list()
        row[measure] = float(np.mean(values)) if values else None
        row[f"{measure}_sd"], row[f"{measure}_low"], row[f"{measure}_high"] = t_interval(values)
    for view in VIEWS:
        row[f"{view}_j_u95"] = known_bound(exposed.views[view].combine(weights))[0]
    row["quality_stderr"] = group["quality_stderr"].mean()
    means = ("tokens", "j_per_token", "co2e_g", "inference_j_per_token", *EFFICIENCY_COLUMNS)
    for name in (*means, "teacher_j", "teacher_share_j", *benchmarks):
        row[name] = group[name].mean()
    row["teacher_j"], row["teacher_share_j"] = (
        group["teacher_j"].mean(),
        group["teacher_share_j"].mean(),
    )
    row["wasted_j"], row["parameters"] = group["wasted_j"].sum(), group["parameters"][0]
    sizes = set(group["inference_batch_size"].drop_nulls())
    row["inference_batch_size"] = sizes.pop() if len(sizes) == 1 else None
    row["note"] = _note(group)
    return row


def _note(group: pl.DataFrame) -> str:
    """What the row's numbers cannot carry: too few repeats, runs without quality."""
    notes = []
    if group.height < FEW:
        notes.append(f"n = {group.height} < {FEW}: spread hardly known")
    if without := group["quality"].null_count():
        notes.append(f"{without} of {group.height} runs lack a benchmark and have no quality")
    if unresolved := group["unresolved_attempts"].sum():
        notes.append(f"{unresolved} attempts have no energy value")
    return "; ".join(notes)
