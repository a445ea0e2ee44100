"""Bills of shared artifacts and how they are split over the runs that read them.

Joules. The invariant: an artifact's shares plus what is unallocated equal its bill, under every
policy; a further consumer never raises another's share. Failed attempts are part of the bill.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from angelshare.accounting.attempts import WASTED
from angelshare.accounting.settings import AccountingSettings
from angelshare.accounting.study import Artifact, Consumer, Study
from angelshare.errors import AngelshareError


def known_sum(values: pl.Expr) -> pl.Expr:
    """The sum of what is known; null, not 0, where nothing is."""
    return pl.when(values.count() > 0).then(values.sum())


SHARE_SCHEMA = {
    "kind": pl.String,
    "key": pl.String,
    "run": pl.String,
    "policy": pl.String,
    "share_j": pl.Float64,
    "team": pl.String,
    "consumer": pl.String,
    "ours": pl.Boolean,
    "tokens_read": pl.Int64,
    "utc": pl.String,
}


def split(
    bill_j: float, consumers: Sequence[Consumer], settings: AccountingSettings
) -> tuple[list[float], float]:
    """The share of each consumer, in their order, and what is unallocated, in joules.

    `equal`: bill / n. `by_tokens`: in proportion to the tokens read (equal when nobody read any).
    `first`: all on the earliest by UTC, then id. `declared`: bill / max(declared, n).
    """
    if not consumers:
        return [], bill_j
    weights = _weights(consumers, settings)
    shares = [bill_j * weight for weight in weights]
    rest_j = bill_j - math.fsum(shares)
    return shares, rest_j if rest_j > 1e-9 * bill_j else 0.0


def _weights(consumers: Sequence[Consumer], settings: AccountingSettings) -> list[float]:
    count = len(consumers)
    if settings.policy == "declared":
        return [1.0 / max(settings.declared_consumers or 1, count)] * count
    if settings.policy == "first":
        earliest = min(consumers, key=lambda consumer: (consumer.utc, consumer.id))
        return [1.0 if consumer is earliest else 0.0 for consumer in consumers]
    tokens = [max(consumer.tokens_read, 0) for consumer in consumers]
    total = sum(tokens)
    if settings.policy == "by_tokens" and total:
        return [read / total for read in tokens]
    return [1.0 / count] * count


def consumers_of(study: Study) -> dict[tuple[str, str], tuple[Consumer, ...]]:
    """The consumers of every artifact: the recorded ones and this study's runs that name it.

    A run whose record has not reached the store yet is a consumer all the same; it is counted as
    having read the whole artifact.
    """
    readers: dict[tuple[str, str], list[Consumer]] = {
        a.id: list(a.consumers) for a in study.artifacts
    }
    recorded = {
        (artifact.id, c.team, c.run) for artifact in study.artifacts for c in artifact.consumers
    }
    tokens = {artifact.id: artifact.tokens for artifact in study.artifacts}
    for run in (run for run in study.runs if not run.trained_as):
        for artifact_id in dict.fromkeys(run.artifacts):
            if (artifact_id, study.team, run.run) not in recorded:
                unrecorded = Consumer(
                    id=f"{study.team}/{run.run}",
                    run=run.run,
                    team=study.team,
                    tokens_read=tokens[artifact_id],
                    utc="9999",
                )
                readers[artifact_id].append(unrecorded)
    return {key: tuple(sorted(found, key=lambda c: c.id)) for key, found in readers.items()}


def artifact_bills(
    study: Study, attempts: pl.DataFrame, settings: AccountingSettings
) -> pl.DataFrame:
    """One row per artifact: `energy_j` of all its attempts, `wasted_j` of its failed ones,
    `charged_j` that runs pay for, and grams of CO2e.

    Raises AngelshareError where a charged artifact has no attempt: its energy is unknown, not 0.
    """
    charged_stage = ~pl.col("stage").is_in(settings.apart)
    sums = (
        attempts.lazy()
        .filter(pl.col("artifact_kind").is_not_null())
        .group_by(kind="artifact_kind", key="artifact_key")
        .agg(
            energy_j=pl.col("energy_j").sum(),
            wasted_j=pl.col("energy_j").filter(pl.col("status").is_in(WASTED)).sum(),
            chargeable_j=pl.col("energy_j").filter(charged_stage).sum(),
            co2e_g=known_sum(pl.col("co2e_g").filter(charged_stage)),
            attempts=pl.len(),
            unresolved_attempts=pl.col("energy_j").is_null().sum(),
        )
        .collect()
    )
    listed = pl.DataFrame(
        [
            (a.kind, a.key, a.label, a.tokens, a.bytes, a.charged, a.of_teacher)
            for a in study.artifacts
        ],
        schema={
            "kind": pl.String,
            "key": pl.String,
            "label": pl.String,
            "tokens": pl.Int64,
            "bytes": pl.Int64,
            "charged": pl.Boolean,
            "teacher": pl.Boolean,
        },
        orient="row",
    )
    bills = listed.join(sums, on=["kind", "key"], how="left").sort("kind", "key")
    unknown = bills.filter(pl.col("attempts").is_null() & pl.col("charged"))
    if unknown.height:
        names = ", ".join("/".join(row) for row in unknown.select("kind", "key").rows()[:3])
        raise AngelshareError(
            f"no attempt record says what these artifacts cost: {names}. Copy the records with the "
            "artifacts (angelshare pull does), or make the artifacts again"
        )
    counted = pl.col("energy_j", "wasted_j", "chargeable_j").fill_null(0.0)
    return bills.with_columns(
        counted, pl.col("attempts", "unresolved_attempts").fill_null(0)
    ).with_columns(charged_j=pl.when("charged").then("chargeable_j").otherwise(0.0))


def share_table(study: Study, bills: pl.DataFrame, settings: AccountingSettings) -> pl.DataFrame:
    """One row per charged artifact and consumer, of all teams; `ours` marks this study's runs."""
    ours = {run.run for run in study.runs}
    readers = consumers_of(study)
    rows: list[dict[str, Any]] = []
    for kind, key, charged, charged_j in bills.select("kind", "key", "charged", "charged_j").rows():
        if not charged:
            continue
        consumers = readers[kind, key]
        shares, _ = split(charged_j, consumers, settings)
        rows.extend(
            {
                "kind": kind,
                "key": key,
                "run": consumer.run,
                "policy": settings.policy,
                "share_j": share_j,
                "team": consumer.team,
                "consumer": consumer.id,
                "ours": consumer.team == study.team and consumer.run in ours,
                "tokens_read": consumer.tokens_read,
                "utc": consumer.utc,
            }
            for consumer, share_j in zip(consumers, shares, strict=True)
        )
    return pl.DataFrame(rows, schema=SHARE_SCHEMA).sort("kind", "key", "team", "run", "consumer")


def artifact_table(study: Study, bills: pl.DataFrame, shares: pl.DataFrame) -> pl.DataFrame:
    """`artifacts.parquet`: the bills with consumers counted (of all teams, and ours), what is
    shared out and what is not, and what sharing saved.

    `saved_j` is the energy not spent because the artifact was made once instead of once per
    consumer, over all teams: (consumers - 1) times what it cost.
    """
    readers = consumers_of(study)
    ours = {run.run for run in study.runs}
    counts = pl.DataFrame(
        [(*a.id, *_counts(a, readers[a.id], study.team, ours)) for a in study.artifacts],
        schema={
            "kind": pl.String,
            "key": pl.String,
            "consumers": pl.Int64,
            "our_consumers": pl.Int64,
            "teams": pl.Int64,
        },
        orient="row",
    )
    given = shares.group_by("kind", "key").agg(
        shared_j=pl.col("share_j").sum(), our_shared_j=pl.col("share_j").filter("ours").sum()
    )
    return (
        bills.join(counts, on=["kind", "key"], how="left")
        .join(given, on=["kind", "key"], how="left")
        .with_columns(pl.col("shared_j", "our_shared_j").fill_null(0.0))
        .with_columns(
            unallocated_j=_rest(pl.col("energy_j"), pl.col("shared_j")),
            saved_j=(pl.col("consumers") - 1).clip(0) * pl.col("charged_j"),
        )
        .select(
            *("kind", "key", "label", "energy_j", "wasted_j", "tokens", "bytes", "consumers"),
            *("shared_j", "unallocated_j", "charged", "teacher", "charged_j", "our_consumers"),
            *("teams", "our_shared_j", "saved_j", "attempts", "unresolved_attempts", "co2e_g"),
        )
        .sort("kind", "key")
    )


def with_bounds(
    frame: pl.DataFrame, name: str, bills: pl.DataFrame, bounds: Mapping[tuple[str, str], float]
) -> pl.DataFrame:
    """`frame` with `<name>_low_j` and `<name>_high_j` (95 % measurement bounds, joules).

    A part of an artifact's bill is bounded in the same proportion as the bill. Null, and no bound
    of nothing, where no record states one.
    """
    relative = pl.DataFrame(
        [
            (kind, key, bounds[kind, key] / charged_j if charged_j and bounds[kind, key] else None)
            for kind, key, charged_j in bills.select("kind", "key", "energy_j").rows()
        ],
        schema={"kind": pl.String, "key": pl.String, "relative": pl.Float64},
        orient="row",
    )
    value, bound = pl.col(f"{name}_j"), pl.col(f"{name}_j") * pl.col("relative")
    return (
        frame.join(relative, on=["kind", "key"], how="left", maintain_order="left")
        .with_columns(
            (value - bound).clip(0.0).alias(f"{name}_low_j"),
            (value + bound).alias(f"{name}_high_j"),
        )
        .drop("relative")
    )


def _rest(whole: pl.Expr, part: pl.Expr) -> pl.Expr:
    """What is left of a sum, without the dust of floating point."""
    rest = whole - part
    return pl.when(rest.abs() > 1e-9 * whole).then(rest).otherwise(0.0)


def _counts(
    artifact: Artifact, readers: Sequence[Consumer], team: str, ours: set[str]
) -> tuple[int, int, int]:
    mine = sum(reader.team == team and reader.run in ours for reader in readers)
    return len(readers), mine, len({reader.team for reader in readers})
