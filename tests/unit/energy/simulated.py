"""A GPU with an exact integral, sampled in virtual time the way the sampler does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import floor
from typing import Any

from angelshare.energy.settings import EnergySettings
from angelshare.energy.trace import Sample, Trace

ROLL_S = 0.02
ROLL_LIMIT_S = 0.3
IDLE_W = 70.0
UUID = "GPU-test"


@dataclass
class Gpu:
    """Idle, then ``energy_j(t)`` joules of load for ``length_s`` from time 0, then idle again.

    ``phase_s`` shifts the counter's ticks; ``part_s`` lets it see only that part of each tick.
    """

    energy_j: Callable[[float], float]
    length_s: float
    tick_s: float = 0.1
    phase_s: float = 0.0
    part_s: float = 0.0
    gain: float = 1.0
    reset_s: float | None = None
    lost: tuple[float, float] | None = None
    counter: bool = True
    base_j: float = field(default=1e5)

    def truth(self, t_s: float) -> float:
        """Exact joules since time 0."""
        inside = min(max(t_s, 0.0), self.length_s)
        return self.energy_j(inside) + IDLE_W * (t_s - inside)

    def _tick(self, t_s: float) -> float:
        return floor((t_s - self.phase_s) / self.tick_s) * self.tick_s + self.phase_s

    def _counted(self, t_s: float) -> float:
        tick_s = self._tick(t_s)
        if not self.part_s:
            return self.truth(tick_s)
        total, end = 0.0, self.phase_s
        while end <= tick_s + self.tick_s / 2:
            total += self.truth(end) - self.truth(end - self.part_s)
            end += self.tick_s
        return total * self.tick_s / self.part_s

    def row(self, t_s: float) -> list[int | None]:
        """What the sampler reads at ``t_s``."""
        t_ns = round(t_s * 1e9)
        if self.lost and self.lost[0] <= t_s < self.lost[1]:
            return [t_ns, 0, *[None] * 10]
        counted = self._counted(t_s) + self.base_j
        if self.reset_s is not None and t_s >= self.reset_s:
            counted = self._counted(t_s) - self._counted(self.reset_s)
        counter = int(counted * self.gain * 1e3) if self.counter else None
        average = self._mean(t_s, 1.0)
        instant = self._mean(t_s, 0.025)
        return [t_ns, 0, counter, average, instant, average, 50, 2**30, 50, 1000, 1000, 0]

    def _mean(self, t_s: float, window_s: float) -> int:
        tick_s = self._tick(t_s)
        joules = self.truth(tick_s) - self.truth(tick_s - window_s)
        return int(joules / window_s * self.gain * 1e3)


def trace_of(gpu: Gpu, start_s: float, end_s: float, period_s: float = 0.5) -> Trace:
    """The trace of a window from ``start_s`` to ``end_s`` around the load."""
    settings = EnergySettings(period_s=period_s, cpu="none", dram="none")
    plan: dict[str, Any] = {
        "settings": settings.model_dump(mode="json"),
        "start_ns": round(start_s * 1e9),
        "start_utc_ns": 0,
    }
    device = {
        "uuid": UUID,
        "model": "H100",
        "index": 0,
        "driver": "1",
        "power_limit_w": 700.0,
        "power_scope": "gpu",
        "mig": [],
        "mig_enabled": False,
        "slices": 0,
    }
    rolled = _roll(gpu, start_s - 0.25, until_s=start_s)
    times = [*rolled, start_s]
    at_s = rolled[0]
    while at_s < end_s:
        if at_s > start_s:
            times.append(at_s)
        at_s += period_s
    times += _roll(gpu, end_s + 0.001, until_s=None)
    trace = Trace(plan=plan, gpus={UUID: device}, samplers=1)
    trace.samples = [_sample(gpu, t_s) for t_s in times]
    trace.events = [
        {"k": "e", "e": "open", "t": round(start_s * 1e9)},
        {"k": "e", "e": "close", "t": round(end_s * 1e9)},
    ]
    return trace


def _roll(gpu: Gpu, from_s: float, until_s: float | None) -> list[float]:
    """Readings every 20 ms until the counter ticks, at most 0.3 s; ready before ``until_s``."""
    times = [from_s]
    first = gpu.row(from_s)[2]
    while times[-1] - from_s < ROLL_LIMIT_S:
        times.append(times[-1] + ROLL_S)
        if gpu.row(times[-1])[2] != first:
            break
    if until_s is not None:
        shift_s = until_s - 0.002 - times[-1]
        return [t for t in times if t < until_s] if shift_s < 0 else times
    return times


def _sample(gpu: Gpu, t_s: float) -> Sample:
    t_ns = round(t_s * 1e9)
    return Sample(
        t_ns=t_ns,
        utc_ns=t_ns,
        boot_ns=t_ns,
        cpu_s=0.0,
        cgroup_s=None,
        busy_s=0.0,
        rss_bytes=0,
        used_bytes=0,
        gpu={UUID: gpu.row(t_s)},
        rapl={},
    )


def constant(watts: float) -> Callable[[float], float]:
    """Joules after t seconds of constant power."""
    return lambda t: watts * t


def square(high_w: float, low_w: float, period_s: float) -> Callable[[float], float]:
    """Half of each period high, half low."""

    def joules(t: float) -> float:
        whole, rest = divmod(t, period_s)
        high_s = min(rest, period_s / 2)
        return whole * period_s * (high_w + low_w) / 2 + high_s * high_w + (rest - high_s) * low_w

    return joules


def ramp(from_w: float, to_w: float, length_s: float) -> Callable[[float], float]:
    """Power that grows evenly over the load."""
    return lambda t: from_w * t + (to_w - from_w) * t * t / length_s / 2


def bursts(high_w: float, low_w: float, busy_s: float, period_s: float) -> Callable[[float], float]:
    """``busy_s`` of each period high, the rest low."""

    def joules(t: float) -> float:
        whole, rest = divmod(t, period_s)
        high_s = min(rest, busy_s)
        each = busy_s * high_w + (period_s - busy_s) * low_w
        return whole * each + high_s * high_w + (rest - high_s) * low_w

    return joules
