"""Measurement bounds and repeat spread, carried from attempts to runs, settings and conclusions.

Two things of different kind, kept apart until a conclusion is drawn:

* *Measurement.* A board's gain error (and an estimator's model error) is the same in every attempt
  on that board: such terms add linearly and repeats never reduce them. The rest of an attempt's
  bound is independent and adds in quadrature. Bounds are 95 % (k = 2), so one sd is half of them.
* *Repeats.* Seeds differ. The mean of n repeats is off by t(n-1) sd / sqrt(n).

Intervals and probabilities come from joint draws of both. With three repeats, resampling the runs
themselves would give intervals that hold the truth far too seldom (the spread of 3 resampled
values is too small, and its tails too light), so residuals get random weights and the t
distribution's scale instead: for normal repeats the intervals cover exactly 95 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy import stats

from angelshare.accounting.bills import consumers_of, split
from angelshare.accounting.settings import AccountingSettings
from angelshare.accounting.study import Study

VIEWS = ("student_only", "one_off", "amortized")
"""The three energy views; `<view>_j` is the column of each."""

COVERAGE = 2.0
"""How many standard deviations a 95 % bound of the sidecar is (expanded uncertainty, k = 2)."""


@dataclass(frozen=True, slots=True)
class Exposure:
    """What R energies depend on: B boards, A shared artifacts, and noise of their own; 95 % joules.

    Rows are runs, or means or differences of runs: anything linear in runs (`combine`).
    """

    board_RB: np.ndarray
    """Systematic terms per board; their effects are common to all rows."""
    artifact_RA: np.ndarray
    """Independent noise of each shared artifact's attempts, common to the rows that share it."""
    own_R: np.ndarray
    """Independent noise of the row's own attempts."""

    def bound(self) -> np.ndarray:
        """The 95 % measurement bound of each row, in joules."""
        squares = (self.board_RB**2).sum(1) + (self.artifact_RA**2).sum(1) + self.own_R**2
        return np.sqrt(squares)

    def combine(self, weights_SR: np.ndarray) -> Exposure:
        """The exposure of weighted sums of the rows."""
        return Exposure(
            weights_SR @ self.board_RB,
            weights_SR @ self.artifact_RA,
            np.sqrt(weights_SR**2 @ self.own_R**2),
        )

    def draw(self, shared: SharedDraws, own_D: np.ndarray | None) -> np.ndarray:
        """Measurement errors of R rows, [draws, R] joules; `own_D` [draws, R] adds own noise."""
        errors = shared.board_DB @ self.board_RB.T + shared.artifact_DA @ self.artifact_RA.T
        if own_D is not None:
            errors = errors + own_D * self.own_R
        return errors / COVERAGE


def known_bound(exposure: Exposure) -> list[float | None]:
    """The bounds of the rows; None, not 0, where no record states any."""
    return [float(bound) if bound > 0 else None for bound in exposure.bound()]


@dataclass(frozen=True, slots=True)
class SharedDraws:
    """Standard normal draws of what rows have in common: [draws, boards] and [draws, artifacts]."""

    board_DB: np.ndarray
    artifact_DA: np.ndarray


@dataclass(frozen=True, slots=True)
class Exposures:
    """The exposure of every run, in the study's order, under each view and of its teacher part."""

    runs: tuple[str, ...]
    views: dict[str, Exposure]
    teacher: Exposure
    artifacts: dict[tuple[str, str], float]
    """The 95 % measurement bound of every artifact's bill, in joules."""

    def shared_draws(self, draws: int, generator: np.random.Generator) -> SharedDraws:
        """Draws of the common errors, to be used for everything that is compared."""
        one_off = self.views["one_off"]
        return SharedDraws(
            generator.standard_normal((draws, one_off.board_RB.shape[1])),
            generator.standard_normal((draws, one_off.artifact_RA.shape[1])),
        )


def exposures(
    study: Study,
    attempts: pl.DataFrame,
    components: pl.DataFrame,
    bills: pl.DataFrame,
    settings: AccountingSettings,
) -> Exposures:
    """What every run's energy depends on, from the components of all charged attempts."""
    terms = _terms(attempts, components)
    boards = sorted(terms["board"].drop_nulls().unique().to_list())
    runs = tuple(run.run for run in study.runs)
    student_stage = pl.col("stage").is_in(settings.student_stages)
    apart = pl.col("stage").is_in(settings.apart)
    of_runs = terms.filter(pl.col("run").is_not_null() & ~apart)
    own = _Bounds.of(of_runs.filter(student_stage), ["run"], [(run,) for run in runs], boards)
    private = _Bounds.of(of_runs.filter(~student_stage), ["run"], [(run,) for run in runs], boards)
    ids = [artifact.id for artifact in study.artifacts]
    made = _Bounds.of(
        terms.filter(pl.col("artifact_kind").is_not_null()),
        ["artifact_kind", "artifact_key"],
        ids,
        boards,
    )
    whole, share, teacher = _shares_of_runs(study, bills, settings)

    def view(weights_RA: np.ndarray, upstream: bool) -> Exposure:
        factor = 1.0 if upstream else 0.0
        return Exposure(
            own.systematic + factor * private.systematic + weights_RA @ made.systematic,
            weights_RA * made.random,
            np.sqrt(own.random**2 + factor * private.random**2),
        )

    views = {
        "student_only": view(np.zeros_like(whole), False),
        "one_off": view(whole, True),
        "amortized": view(share, True),
    }
    teachers = Exposure(teacher @ made.systematic, teacher * made.random, np.zeros(len(runs)))
    squares = (made.systematic**2).sum(1) + made.random**2
    bounds = dict(zip(ids, np.sqrt(squares).tolist(), strict=True))
    return Exposures(runs, views, teachers, bounds)


def _terms(attempts: pl.DataFrame, components: pl.DataFrame) -> pl.DataFrame:
    """Components with bounds, plus one line per attempt that has bounds only in its total."""
    detailed = components.filter(pl.col("systematic_j95").is_not_null())
    total_only = attempts.join(detailed.select("id").unique(), on="id", how="anti").select(
        *("id", "run", "artifact_kind", "artifact_key", "stage"),
        board=pl.lit(None, pl.String),
        systematic_j95=pl.lit(0.0),
        random_j95=((pl.col("energy_high_j") - pl.col("energy_low_j")) / 2).fill_null(0.0),
    )
    return pl.concat([detailed.select(total_only.columns), total_only])


@dataclass(frozen=True, slots=True)
class _Bounds:
    """95 % terms per owner: systematic [owners, boards], random [owners]."""

    systematic: np.ndarray
    random: np.ndarray

    @staticmethod
    def of(
        terms: pl.DataFrame, by: list[str], owners: Sequence[tuple[str, ...]], boards: list[str]
    ) -> _Bounds:
        """Add systematic terms linearly per board, the rest in quadrature."""
        systematic = np.zeros((len(owners), len(boards)))
        random = np.zeros(len(owners))
        row = {owner: index for index, owner in enumerate(owners)}
        column = {board: index for index, board in enumerate(boards)}
        sums = terms.group_by(*by, "board").agg(
            pl.col("systematic_j95").sum(), (pl.col("random_j95") ** 2).sum()
        )
        for *owner, board, linear, square in sums.sort(*by, "board").rows():
            index = row[tuple(owner)]
            random[index] += square
            if board is not None:
                systematic[index, column[board]] += linear
        return _Bounds(systematic, np.sqrt(random))


def _shares_of_runs(
    study: Study, bills: pl.DataFrame, settings: AccountingSettings
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per run and artifact: 1 where its whole bill counts, its share of it, 1 where a teacher's."""
    shape = (len(study.runs), len(study.artifacts))
    whole, share, teacher = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    column = {artifact.id: index for index, artifact in enumerate(study.artifacts)}
    readers = consumers_of(study)
    facts = {row[:2]: row[2:] for row in bills.select("kind", "key", "charged", "teacher").rows()}
    weights: dict[tuple[str, str], dict[str, float]] = {}
    for key, consumers in readers.items():
        ours = weights.setdefault(key, {})
        for consumer, part in zip(consumers, split(1.0, consumers, settings)[0], strict=True):
            if consumer.team == study.team:
                ours[consumer.run] = ours.get(consumer.run, 0.0) + part
    for index, run in enumerate(study.runs):
        for artifact_id in dict.fromkeys(run.artifacts):
            charged, is_teacher = facts[artifact_id]
            if not charged:
                continue
            where = column[artifact_id]
            whole[index, where] = 1.0
            teacher[index, where] = float(is_teacher)
            share[index, where] = weights[artifact_id].get(run.payer, 0.0)
    return whole, share, teacher


@dataclass(frozen=True, slots=True)
class Repeats:
    """Means of n repeats and their residuals: what repeat spread is drawn from.

    `df` is 0 where nothing was repeated; then the spread is unknown and draws leave it out.
    """

    mean_C: np.ndarray
    residuals_NC: np.ndarray
    df: int

    @staticmethod
    def of(values_NC: np.ndarray, groups: Sequence[str]) -> Repeats:
        """The mean over all N rows, residuals within `groups` (datasets) that repeat.

        Differences between datasets are no noise: where some dataset has several seeds, residuals
        are taken from its own mean. Where none has, datasets themselves are the repeats.
        """
        count = len(values_NC)
        labels = np.unique(np.asarray(groups, dtype=object), return_inverse=True)[1]
        if count == labels.max() + 1:
            labels = np.zeros(count, dtype=int)
        sizes = np.bincount(labels)
        means = np.stack([values_NC[labels == g].mean(0) for g in range(len(sizes))])
        return Repeats(values_NC.mean(0), values_NC - means[labels], count - len(sizes))

    def draw(self, draws: int, generator: np.random.Generator) -> np.ndarray:
        """Plausible true means, [draws, C]: mean + t(df) · s / sqrt(n).

        Columns of one repeat keep their correlation.
        """
        if self.df < 1:
            return np.broadcast_to(self.mean_C, (draws, len(self.mean_C)))
        normal = generator.standard_normal((draws, len(self.residuals_NC)))
        scale = 1 / np.sqrt(len(self.residuals_NC) * generator.chisquare(self.df, draws))
        return self.mean_C + scale[:, None] * (normal @ self.residuals_NC)


def interval(drawn_D: np.ndarray) -> tuple[float, float] | tuple[None, None]:
    """The central 95 % of draws; None where they do not differ, for then nothing is known of it."""
    if np.ptp(drawn_D) == 0:
        return None, None
    low, high = np.quantile(drawn_D, [0.025, 0.975])
    return float(low), float(high)


def t_interval(values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """Standard deviation (n - 1) and 95 % t-interval of the mean; None where n < 2."""
    if len(values) < 2:
        return None, None, None
    mean, sd = float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * sd / len(values) ** 0.5
    return sd, mean - half, mean + half
