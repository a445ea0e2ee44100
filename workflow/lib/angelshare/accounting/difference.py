"""The difference of two means whose repeats are few: its value and plausible errors.

Used for the energy a distilled student saves. Values come grouped by dataset, and datasets weigh
alike. Differences between datasets are no noise: where seeds repeat, the spread is taken within
datasets, with Welch's standard error and degrees of freedom (with three seeds a side its 95 %
intervals hold the truth in 95 to 97 % of studies; adding the two sides' t errors would give 99 %).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Groups = Sequence[np.ndarray]
"""One array of repeats per dataset, datasets in the same order on both sides."""


def mean_of(groups: Groups) -> float:
    """The mean over datasets of each dataset's mean."""
    return float(np.mean([group.mean() for group in groups]))


def difference_errors(
    first: Groups, second: Groups, draws: int, generator: np.random.Generator
) -> np.ndarray:
    """Errors of `mean_of(first) - mean_of(second)` that the repeats show, [draws], around zero.

    A side without repeats is taken to spread like the other. Where neither repeats, the
    differences of several datasets are the repeats; else nothing is known and all errors are 0.
    """
    sides = [_spread(groups) for groups in (first, second)]
    known = [(variance, df) for variance, df, _ in sides if df > 0]
    if not known:
        return _paired_errors(first, second, draws, generator)
    if len(known) == 1:
        ((variance, df),) = known
        total = variance * sum(weight for _, _, weight in sides)
        return total**0.5 * generator.standard_t(df, draws)
    squares = [weight * variance for variance, _, weight in sides]
    total = sum(squares)
    if total == 0:
        return np.zeros(draws)
    parts = ((square / total) ** 2 / df for square, (_, df) in zip(squares, known, strict=True))
    return total**0.5 * generator.standard_t(1.0 / sum(parts), draws)


def _spread(groups: Groups) -> tuple[float, int, float]:
    """Variance of a repeat within datasets, its degrees of freedom, and the mean's weight of it."""
    df = sum(len(group) - 1 for group in groups)
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
    weight = sum(1.0 / len(group) for group in groups) / len(groups) ** 2
    return squares / df if df else 0.0, df, weight


def _paired_errors(
    first: Groups, second: Groups, draws: int, generator: np.random.Generator
) -> np.ndarray:
    """Errors from the spread of the datasets' differences."""
    pairs = zip(first, second, strict=True)
    differences = np.array([one.mean() - other.mean() for one, other in pairs])
    count = len(differences)
    if count < 2:
        return np.zeros(draws)
    standard_error = differences.std(ddof=1) / count**0.5
    return standard_error * generator.standard_t(count - 1, draws)
