"""What an item of work will cost: from records, else from a calibration, else from FLOPs.

E = a + b W with W the operations of the job's model, a what a job costs before its model works, and
b joules per operation; durations alike. In the order of trust:

* *records*: jobs of the same stage on the same hardware, of the same model where there are any,
  else of others, scaled by operations. Bounds: the scatter of the records about the line with
  Student's t, and 15 % for every doubling beyond the range that was seen.
* *calibration*: the prerun's few seconds of the same kind of work here; within a factor 3, and more
  for models of another size (the square root of the sizes' ratio, in quadrature of logarithms).
* *flops*: the device's peak and a stated efficiency (`devices`).

Every figure says which of them it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from angelshare.planning.devices import EFFICIENCY, POWER_SHARE, START_S, Device
from angelshare.planning.ranges import Range
from angelshare.planning.records import COMPUTE, History, Observation
from angelshare.planning.work import WorkItem

Basis = Literal["records", "records of other models", "calibration", "flops", "unknown"]
CALIBRATION_FACTOR = 3.0
PER_DOUBLING = 0.15
OTHER_MODEL = 0.3
SINGLE = 0.5
"""Relative bound where one record, or as many as the line has parameters, shows no scatter."""
_T975 = (12.7, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)


@dataclass(frozen=True, slots=True)
class Prediction:
    """Joules and seconds of an item; None where nothing says how much work it is."""

    item: WorkItem
    basis: Basis
    energy_j: Range | None
    duration_s: Range | None
    fit: str
    """How well the basis fits, in words."""

    @property
    def group(self) -> tuple[str, str]:
        """What its error is common to: one basis of one stage."""
        return (self.basis, self.item.kind)


@dataclass(frozen=True, slots=True)
class Line:
    """y = a + b W through observations, with the scatter about it."""

    start: float
    slope: float
    scatter: float
    """Relative, one standard deviation."""
    freedom: int
    low: float
    high: float
    """The smallest and largest W that was seen."""
    count: int

    def at(self, work: Range, extra: float) -> Range:
        """What the line gives for W, with its scatter, `extra` (relative, 95 %) and W's range."""
        spread = self._spread(work.value)
        factor = math.exp(math.hypot(spread, extra))
        line = Range(*(self.start + self.slope * w for w in work))
        return line.within(factor)

    def _spread(self, work: float) -> float:
        doublings = 0.0
        if work > 0 and self.low > 0:
            doublings = max(0.0, math.log2(work / self.high), math.log2(self.low / work))
        if self.freedom < 1:
            return math.hypot(SINGLE, PER_DOUBLING * doublings)
        t = _T975[min(self.freedom, len(_T975)) - 1]
        own = min(t * self.scatter * math.sqrt(1 + 1 / self.count), 1.0)
        return math.hypot(own, PER_DOUBLING * doublings)


def fit_line(work: Sequence[float], values: Sequence[float], start: float) -> Line:
    """The line through (W, y): both parameters where W varies enough to tell them apart, else with
    `start` as what a job costs before its model works."""
    mean_w, mean_y = fmean(work), fmean(values)
    slope = 0.0
    parameters = 1
    if len(work) > 2 and max(work) > 1.5 * min(work):
        squares = math.fsum((w - mean_w) ** 2 for w in work)
        slope = math.fsum((w - mean_w) * (y - mean_y) for w, y in zip(work, values, strict=True))
        slope, parameters = slope / squares, 2
        start = mean_y - slope * mean_w
    if parameters == 1 or slope <= 0 or start < 0:
        start = 0.0 if start < 0 else min(start, 0.9 * min(values))
        slope = (mean_y - start) / mean_w if mean_w else 0.0
    expected = [start + slope * w for w in work]
    freedom = len(work) - parameters
    squares = math.fsum(((y - e) / e) ** 2 for y, e in zip(values, expected, strict=True))
    scatter = math.sqrt(squares / freedom) if freedom > 0 else SINGLE
    return Line(start, slope, scatter, freedom, min(work), max(work), len(work))


class Predictor:
    """Predicts items for one hardware.

    `calibration` is the prerun's block of that name; `device` what FLOPs are counted against.
    """

    def __init__(
        self,
        history: History,
        hardware: str,
        calibration: Mapping[str, Any] | None,
        device: Device,
    ) -> None:
        self.hardware = hardware
        self.device = device
        self.calibration = calibration
        self.stages = {
            stage: [one for one in found if one.hardware == hardware]
            for stage, found in history.stages.items()
        }
        self.starts = {
            rule: [one for one in found if one.hardware == hardware]
            for rule, found in history.starts.items()
        }

    def predict(self, item: WorkItem) -> Prediction:
        """The prediction for one item, from the best basis there is."""
        if item.unknown:
            return Prediction(item, "unknown", None, None, f"{item.unknown} is not known")
        if item.flops is None:
            return self._start(item)
        return self._from_records(item) or self._from_calibration(item) or self._from_flops(item)

    def _from_records(self, item: WorkItem) -> Prediction | None:
        found = self.stages.get(item.kind, [])
        if not found or item.flops is None:
            return None
        same = [one for one in found if _same_model(one, item)]
        used, extra = (same, 0.0) if same else (found, OTHER_MODEL)
        work = [one.flops for one in used]
        energy = fit_line(work, [one.energy_j for one in used], self._usual("energy_j"))
        time = fit_line(work, [one.duration_s for one in used], self._usual("duration_s"))
        models = "" if same else ", scaled from other models"
        fit = f"{energy.count} records, scatter {100 * energy.scatter:.0f} %{models}"
        if energy.freedom < 1:
            fit = f"{energy.count} record{'s' * (energy.count > 1)}, scatter not known{models}"
        basis: Basis = "records" if same else "records of other models"
        return Prediction(
            item, basis, energy.at(item.flops, extra), time.at(item.flops, extra), fit
        )

    def _usual(self, what: str) -> float:
        """What a job that runs no model costs, on this hardware; 0 where there is no record."""
        found = [one for rule in self.starts.values() for one in rule]
        return fmean(getattr(one, what) for one in found) if found else 0.0

    def _start(self, item: WorkItem) -> Prediction:
        found = self.starts.get(item.rule, [])
        if not found:
            if self.calibration:
                start = self.calibration["start"]
                energy, time = (
                    Range.exactly(start[name]).within(CALIBRATION_FACTOR)
                    for name in ("energy_j", "duration_s")
                )
                return Prediction(item, "calibration", energy, time, "start of a job")
            time = START_S.scaled(0.3)
            energy = time.times(POWER_SHARE).scaled(self.device.power_w * 0.3)
            return Prediction(item, "flops", energy, time, "start of a job, assumed")
        mean_j, mean_s = (
            Range.exactly(fmean(getattr(one, name) for one in found))
            for name in ("energy_j", "duration_s")
        )
        return Prediction(
            item, "records", mean_j.within(2.0), mean_s.within(2.0), f"mean of {len(found)} records"
        )

    def _from_calibration(self, item: WorkItem) -> Prediction | None:
        if not self.calibration or item.flops is None:
            return None
        kind = COMPUTE[item.kind]
        measured, start = self.calibration[kind], self.calibration["start"]
        size = item.model.parameters / self.calibration["model"]["parameters"] if item.model else 1
        # Small models are bound by overhead: an operation of one seven times as large costs less.
        factor = math.exp(math.hypot(math.log(CALIBRATION_FACTOR), 0.5 * math.log(size)))
        energy, time = (
            Range(
                *(start[name] + measured[name] / measured["flops"] * work for work in item.flops)
            ).within(factor)
            for name in ("energy_j", "duration_s")
        )
        seconds = f"{measured['duration_s']:.0f} s of {kind} work in the prerun"
        fit = f"{seconds}, within a factor {factor:.2g}"
        return Prediction(item, "calibration", energy, time, fit)

    def _from_flops(self, item: WorkItem) -> Prediction:
        assert item.flops is not None
        efficiency = EFFICIENCY[COMPUTE[item.kind]]
        inverse = Range(1 / efficiency.value, 1 / efficiency.high, 1 / efficiency.low)
        working = item.flops.times(inverse).scaled(1.0 / self.device.peak_flops)
        time = Range(*(a + b for a, b in zip(START_S, working, strict=True)))
        energy = time.times(POWER_SHARE).scaled(self.device.power_w)
        fit = (
            f"{100 * efficiency.value:.0f} % of {self.device.peak_flops / 1e12:,.3g} TFLOP/s "
            f"assumed ({self.device.name})"
        )
        return Prediction(item, "flops", energy, time, fit)


def _same_model(one: Observation, item: WorkItem) -> bool:
    if one.model is None or item.model is None:
        return False
    return abs(one.model.parameters - item.model.parameters) <= 0.02 * item.model.parameters
