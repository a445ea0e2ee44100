"""What the study concludes, and which of it changes when the boundaries of its phases move by 5 %.

A boundary is where one stage's measuring ends and the next one's begins. Moving it by 5 % of the
stage before it (`BOUNDARIES`) moves joules from one bill to the other and makes none: those of a
shared artifact go to, or come from, the training of its consumers in equal parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import polars as pl

from angelshare.accounting.break_even import NEVER
from angelshare.accounting.study import TEACHER_KINDS
from angelshare.accounting.uncertainty import VIEWS

SHIFT = 0.05
BOUNDARIES = ("preprocessing | training", "teacher | training", "training | evaluation")

SCHEMA: dict[str, Any] = {
    **dict.fromkeys(("boundary", "conclusion", "before", "after"), pl.String),
    "shift": pl.Float64,
    "changes": pl.Boolean,
    **dict.fromkeys(("n_star_before", "n_star_after"), pl.Float64),
}
"""Columns of `sensitivity.parquet`; `n_star_…` are set where the conclusion is a break-even."""

Frames = Mapping[str, pl.DataFrame]
"""The frames `summary`, `frontier` and `break_even`."""


def conclusions(frames: Frames) -> dict[str, str]:
    """What is concluded, by name: the cheapest setting of each student and the frontier under each
    view, and whether each distilling pipeline reaches its break-even."""
    found: dict[str, str] = {}
    summary = frames["summary"]
    for (student,), group in summary.sort("student").group_by("student", maintain_order=True):
        if group["pipeline"].n_unique() > 1:
            for view in VIEWS:
                name = f"cheapest of student {student}, {view}"
                found[name] = str(group.sort(f"{view}_j", "setting")["setting"][0])
    for view in VIEWS:
        members = frames["frontier"].filter((pl.col("view") == view) & pl.col("on_frontier"))
        if members.height:
            found[f"frontier, {view}"] = ", ".join(sorted(members["setting"]))
    for row in frames["break_even"].iter_rows(named=True):
        if row["n_star_status"] == NEVER:
            said = NEVER
        elif row["n_star"] is None:
            continue
        else:
            said = "reached" if row["reached"] else "not reached"
        found[f"break-even of {row['setting']}"] = said
    return found


def sensitivity_table(
    attempts: pl.DataFrame,
    shares: pl.DataFrame,
    base: Frames,
    again: Callable[[pl.DataFrame], Frames],
) -> pl.DataFrame:
    """`sensitivity.parquet`: every conclusion under every shift; `again` makes the frames anew."""
    before, stars = conclusions(base), _stars(base)
    rows = []
    for boundary in BOUNDARIES:
        for shift in (-SHIFT, SHIFT):
            frames = again(shifted(attempts, shares, boundary, shift))
            after, moved = conclusions(frames), _stars(frames)
            for name, said in before.items():
                now = after.get(name, "not known")
                rows.append(
                    {
                        "boundary": boundary,
                        "shift": shift,
                        "conclusion": name,
                        "before": said,
                        "after": now,
                        "changes": said != now,
                        "n_star_before": stars.get(name),
                        "n_star_after": moved.get(name),
                    }
                )
    return pl.DataFrame(rows, schema=SCHEMA)


def _stars(frames: Frames) -> dict[str, float | None]:
    rows = frames["break_even"].select("setting", "n_star").rows()
    return {f"break-even of {setting}": n_star for setting, n_star in rows}


def shifted(
    attempts: pl.DataFrame, shares: pl.DataFrame, boundary: str, shift: float
) -> pl.DataFrame:
    """The attempts with a boundary moved: `shift` of the earlier stage's joules go to the later.

    Of training and evaluation it is `shift` of the smaller of the two, so that neither falls below
    nothing.
    """
    if boundary == BOUNDARIES[2]:
        return _between_own(attempts, shift)
    teacher = pl.col("artifact_kind").is_in(sorted(TEACHER_KINDS)) | (
        pl.col("stage") == "assistant_train"
    )
    made = pl.col("artifact_kind").is_not_null()
    earlier = made & (teacher if boundary == BOUNDARIES[1] else ~teacher)
    given = _per_consumer(attempts.filter(earlier), shares)
    receivers = (
        _first(attempts, "student_train")
        .join(given, on="run")
        .select("id", more_j=shift * pl.col("given_j"))
    )
    kept = pl.when(earlier).then((1.0 - shift) * pl.col("energy_j")).otherwise(pl.col("energy_j"))
    return _add(attempts.with_columns(energy_j=kept), receivers)


def _between_own(attempts: pl.DataFrame, shift: float) -> pl.DataFrame:
    """Joules moved from a run's training to its evaluation."""
    pairs = _first(attempts, "student_train").join(
        _first(attempts, "evaluate"), on="run", suffix="_after"
    )
    given = shift * pl.min_horizontal("energy_j", "energy_j_after")
    return _add(
        attempts,
        pl.concat(
            [
                pairs.select("id", more_j=-given),
                pairs.select(id="id_after", more_j=given),
            ]
        ),
    )


def _first(attempts: pl.DataFrame, stage: str) -> pl.DataFrame:
    """The first attempt of each run that succeeded at a stage."""
    return (
        attempts.filter((pl.col("stage") == stage) & (pl.col("status") == "ok"))
        .drop_nulls(["run", "energy_j"])
        .sort("run", "start_utc", "id")
        .unique("run", keep="first", maintain_order=True)
        .select("run", "id", "energy_j")
    )


def _add(attempts: pl.DataFrame, more: pl.DataFrame) -> pl.DataFrame:
    """The attempts with `more_j` joules added where `more` names them."""
    return (
        attempts.join(more, on="id", how="left", maintain_order="left")
        .with_columns(energy_j=(pl.col("energy_j") + pl.col("more_j").fill_null(0.0)).clip(0.0))
        .drop("more_j")
    )


def _per_consumer(made: pl.DataFrame, shares: pl.DataFrame) -> pl.DataFrame:
    """Joules of the artifacts that each of our runs read, in equal parts of all their readers."""
    bills = made.group_by(kind="artifact_kind", key="artifact_key").agg(
        bill_j=pl.col("energy_j").sum()
    )
    counted = shares.with_columns(readers=pl.len().over("kind", "key")).filter("ours")
    return (
        counted.join(bills, on=["kind", "key"])
        .group_by("run")
        .agg(given_j=(pl.col("bill_j") / pl.col("readers")).sum())
    )
