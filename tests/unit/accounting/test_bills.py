"""Bills, shares and views: conservation, order and monotonicity as properties of any study."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from studies import sidecar

from angelshare.accounting.attempts import Record, attempt_frames
from angelshare.accounting.bills import split
from angelshare.accounting.settings import AccountingSettings
from angelshare.accounting.study import Artifact, AttemptSource, Consumer, Run, Score, Study
from angelshare.accounting.tables import Tables, make_tables
from angelshare.accounting.uncertainty import VIEWS
from angelshare.errors import AngelshareError

POLICIES = ("equal", "by_tokens", "first", "declared")
energies = st.floats(0.0, 1e9, allow_nan=False)
Source = tuple[AttemptSource, list[dict[str, Any]]]


def chosen(policy: str, declared: int = 4) -> AccountingSettings:
    return AccountingSettings(
        policy=policy, declared_consumers=declared if policy == "declared" else None, draws=200
    )


@st.composite
def consumers(draw: st.DrawFn, least: int = 0) -> list[Consumer]:
    tokens = draw(st.lists(st.integers(0, 10**9), min_size=least, max_size=6))
    return [
        Consumer(f"{i}", f"other-{i}", "them", count, f"2026-01-{28 - i:02d}T00:00:00Z")
        for i, count in enumerate(tokens)
    ]


@st.composite
def studies(draw: st.DrawFn) -> tuple[Study, list[Source]]:
    """A study of a few runs and artifacts, with failed attempts, other teams and apart stages."""
    kinds = draw(st.lists(st.sampled_from(["dataset", "logits", "corpus"]), unique=True))
    sources: list[Source] = [(AttemptSource(Path("pre")), [sidecar("p", "prerun", 9.0)])]
    artifacts = []
    for kind in kinds:
        stage = {"dataset": "preprocess", "logits": "teacher_logits"}.get(
            kind, "teacher_generation"
        )
        records = [
            sidecar(f"{kind}-{i}", stage, energy_j, status=status, board=f"b{i % 2}")
            for i, (energy_j, status) in enumerate(
                draw(st.lists(st.tuples(energies, statuses), min_size=1, max_size=3))
            )
        ]
        sources.append((AttemptSource(Path(kind), None, kind, "k"), records))
        charged = draw(st.booleans())
        artifacts.append(Artifact(kind, "k", kind, 10, 10, charged, tuple(draw(consumers()))))
    runs, scores = [], []
    for i in range(draw(st.integers(1, 4))):
        needs = draw(st.lists(st.sampled_from(kinds), unique=True)) if kinds else []
        runs.append(
            Run(
                run=f"r{i}",
                pipeline="kd" if {"logits", "corpus"} & set(needs) else "sft",
                student=draw(st.sampled_from(["1b", "7b"])),
                dataset="d",
                seed=i,
                artifacts=tuple((kind, "k") for kind in needs),
                tokens=draw(st.integers(0, 1000)),
            )
        )
        train = sidecar(f"t{i}", "student_train", draw(energies), status=draw(statuses))
        private = sidecar(f"q{i}", "preprocess", draw(energies))
        sources.append((AttemptSource(Path(f"r{i}"), f"r{i}"), [train, private]))
        scores.append(Score(f"r{i}", "b", draw(st.floats(0, 1)), 0.01, 0.9))
    return Study("us", tuple(runs), tuple(artifacts), tuple(scores)), sources


statuses = st.sampled_from(["ok", "failed", "killed", "preempted"])


def tables_of(study: Study, sources: list[Source], how: AccountingSettings) -> Tables:
    pairs = [
        (Record(source.folder / f"{i}.json", value), source)
        for source, records in sources
        for i, value in enumerate(records)
    ]
    return make_tables(study, *attempt_frames(pairs), how)


@pytest.mark.parametrize("policy", POLICIES)
@given(bill_j=energies, readers=consumers(), declared=st.integers(1, 10))
def test_shares_and_the_rest_are_the_bill(
    policy: str, bill_j: float, readers: list[Consumer], declared: int
) -> None:
    shares, rest_j = split(bill_j, readers, chosen(policy, declared))
    assert sum(shares) + rest_j == pytest.approx(bill_j, rel=1e-9)
    assert all(share >= 0 for share in shares)
    assert rest_j >= 0


@pytest.mark.parametrize("policy", POLICIES)
@given(bill_j=energies, readers=consumers(least=2), declared=st.integers(1, 10))
def test_a_further_consumer_raises_nobodys_share(
    policy: str, bill_j: float, readers: list[Consumer], declared: int
) -> None:
    how = chosen(policy, declared)
    *before, late = readers
    late = replace(late, utc="2027")
    fewer, _ = split(bill_j, before, how)
    more, _ = split(bill_j, [*before, late], how)
    if policy == "by_tokens" and not any(reader.tokens_read for reader in before):
        return
    assert all(new <= old * (1 + 1e-12) for new, old in zip(more, fewer, strict=False))


def test_policies_by_hand() -> None:
    readers = [
        Consumer("a", "a", "x", 1, "2026-02-01"),
        Consumer("b", "b", "x", 3, "2026-01-01"),
    ]
    assert split(8.0, readers, chosen("equal")) == ([4.0, 4.0], 0.0)
    assert split(8.0, readers, chosen("by_tokens")) == ([2.0, 6.0], 0.0)
    assert split(8.0, readers, chosen("first")) == ([0.0, 8.0], 0.0)
    assert split(8.0, readers, chosen("declared", 4)) == ([2.0, 2.0], 4.0)
    assert split(8.0, readers, chosen("declared", 1)) == ([4.0, 4.0], 0.0)
    assert split(8.0, [], chosen("equal")) == ([], 8.0)


@settings(max_examples=20, deadline=None)
@given(made=studies(), policy=st.sampled_from(POLICIES))
def test_every_joule_is_on_one_bill(made: tuple[Study, list[Source]], policy: str) -> None:
    tables = tables_of(*made, chosen(policy))
    attempts, artifacts, runs = tables.attempts, tables.artifacts, tables.runs
    close = {"rel": 1e-9, "abs": 1e-9}
    for row in artifacts.rows(named=True):
        mine = attempts.filter(
            pl.col("artifact_kind") == row["kind"], pl.col("artifact_key") == row["key"]
        )
        assert row["energy_j"] == pytest.approx(mine["energy_j"].sum(), **close)
        wasted = mine.filter(pl.col("status") != "ok")["energy_j"].sum()
        assert row["wasted_j"] == pytest.approx(wasted, **close)
        assert row["shared_j"] + row["unallocated_j"] == pytest.approx(row["energy_j"], **close)
    shared_j = tables.shares["share_j"].sum()
    assert shared_j == pytest.approx(artifacts["shared_j"].sum(), **close)
    own = runs["student_only_j"].sum() + runs["private_j"].sum()
    apart = attempts.filter(pl.col("stage") == "prerun")["energy_j"].sum()
    everything = own + artifacts["energy_j"].sum() + apart
    assert everything == pytest.approx(attempts["energy_j"].sum(), **close)


@settings(max_examples=20, deadline=None)
@given(made=studies(), policy=st.sampled_from(POLICIES))
def test_views_are_ordered_and_made_of_stages(
    made: tuple[Study, list[Source]], policy: str
) -> None:
    tables = tables_of(*made, chosen(policy))
    sums = {
        (row["run"], row["view"]): row["energy_j"]
        for row in tables.stages.group_by("run", "view")
        .agg(pl.col("energy_j").sum())
        .rows(named=True)
    }
    for row in tables.runs.rows(named=True):
        slack = 1 + 1e-12
        assert row["student_only_j"] <= row["amortized_j"] * slack
        assert row["amortized_j"] <= row["one_off_j"] * slack
        for view in VIEWS:
            assert sums[row["run"], view] == pytest.approx(row[f"{view}_j"], rel=1e-9, abs=1e-9)
            low_j, high_j = row[f"{view}_low_j"], row[f"{view}_high_j"]
            assert low_j is None or low_j <= row[f"{view}_j"] <= high_j


@settings(max_examples=10, deadline=None)
@given(made=studies(), policy=st.sampled_from(("equal", "by_tokens", "first")))
def test_a_sole_consumer_pays_all(made: tuple[Study, list[Source]], policy: str) -> None:
    study, sources = made
    alone = Study(
        study.team,
        study.runs[:1],
        tuple(replace(artifact, consumers=()) for artifact in study.artifacts),
        study.scores[:1],
    )
    own = [pair for pair in sources if pair[0].run in (None, study.runs[0].run)]
    row = tables_of(alone, own, chosen(policy)).runs.row(0, named=True)
    assert row["amortized_j"] == pytest.approx(row["one_off_j"], rel=1e-12)


@settings(max_examples=12, deadline=None)
@given(made=studies(), seed=st.integers(0, 99))
def test_order_does_not_matter(made: tuple[Study, list[Source]], seed: int) -> None:
    study, sources = made
    shuffle = random.Random(seed)
    mixed = Study(
        study.team,
        tuple(shuffle.sample(study.runs, len(study.runs))),
        tuple(
            replace(a, consumers=tuple(shuffle.sample(a.consumers, len(a.consumers))))
            for a in shuffle.sample(study.artifacts, len(study.artifacts))
        ),
        tuple(shuffle.sample(study.scores, len(study.scores))),
    )
    first = tables_of(study, sources, chosen("equal"))
    second = tables_of(mixed, shuffle.sample(sources, len(sources)), chosen("equal"))
    for name in ("artifacts", "shares", "runs", "stages", "summary", "break_even", "frontier"):
        assert getattr(first, name).equals(getattr(second, name)), name


def test_uncharged_artifacts_are_listed_and_on_no_bill(demo_tables: Tables) -> None:
    teacher = demo_tables.artifacts.filter(pl.col("key") == "demo-teacher").row(0, named=True)
    assert (teacher["energy_j"], teacher["unallocated_j"], teacher["shared_j"]) == (1900, 1900, 0)
    assert "demo-teacher" not in set(demo_tables.shares["key"])


def test_all_teams_share_and_ours_are_marked(demo_tables: Tables) -> None:
    logits = demo_tables.artifacts.filter(pl.col("kind") == "logits").row(0, named=True)
    assert (logits["consumers"], logits["our_consumers"], logits["teams"]) == (17, 12, 2)
    assert logits["saved_j"] == pytest.approx(16 * 300.0)
    shares = demo_tables.shares.filter(pl.col("kind") == "logits")
    assert shares["share_j"].to_list() == pytest.approx([300.0 / 17] * 17)
    assert shares.filter("ours").height == 12
    run = demo_tables.runs.filter(pl.col("run") == "kd-small-T2-s1").row(0, named=True)
    expected = run["student_only_j"] + 300.0 / 17 + 25.0 / 24
    assert run["amortized_j"] == pytest.approx(expected)
    assert run["one_off_j"] == pytest.approx(run["student_only_j"] + 325.0)


def test_failed_attempts_are_on_the_bill(demo_tables: Tables) -> None:
    corpus = demo_tables.artifacts.filter(pl.col("kind") == "corpus").row(0, named=True)
    assert (corpus["energy_j"], corpus["wasted_j"]) == (510.0, 60.0)
    run = demo_tables.runs.filter(pl.col("run") == "kd-large-T2-s1").row(0, named=True)
    own = demo_tables.attempts.filter(pl.col("run") == "kd-large-T2-s1")
    assert own.height == 3
    assert run["student_only_j"] == pytest.approx(own["energy_j"].sum())
    assert run["wasted_j"] == 130.0


def test_unknown_costs_are_errors() -> None:
    run = Run("r", "kd", "1b", "d", 0, artifacts=(("logits", "k"),))
    train = (AttemptSource(Path("r"), "r"), [sidecar("t", "student_train", 5.0)])
    made = (AttemptSource(Path("l"), None, "logits", "k"), [sidecar("l", "teacher_logits", 5.0)])
    artifact = Artifact("logits", "k", "x", 1, 1)
    with pytest.raises(AngelshareError, match="what these artifacts cost: logits/k"):
        tables_of(Study("us", (run,), (artifact,)), [train], chosen("equal"))
    with pytest.raises(AngelshareError, match="what run r cost"):
        tables_of(Study("us", (run,), (artifact,)), [made], chosen("equal"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runs": ()}, "the study holds no run"),
        ({"artifacts": ()}, "run r names the artifact logits/k, which the study does not hold"),
        ({"scores": (Score("s", "b", 1.0),)}, "score names the run s"),
        ({"scores": (Score("r", "b", 1.0),) * 2}, "holds a score twice: r on b"),
        ({"sources": (AttemptSource(Path("f"), "s"),)}, "attempt folder f names the run s"),
        ({"sources": (AttemptSource(Path("f"), "r", "logits", "k"),)}, "not to both"),
        ({"sources": (AttemptSource(Path("f"), None, "x", "y"),)}, "holds no artifact x/y"),
        ({"sources": (AttemptSource(Path("f")),) * 2}, "holds a attempt folder twice"),
    ],
)
def test_a_study_that_contradicts_itself(change: dict[str, Any], message: str) -> None:
    run = Run("r", "kd", "1b", "d", 0, artifacts=(("logits", "k"),))
    whole = {"runs": (run,), "artifacts": (Artifact("logits", "k", "x", 1, 1),)}
    with pytest.raises(AngelshareError, match=message):
        Study("us", **{**whole, **change})
