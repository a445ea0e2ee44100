"""What a running job has used so far (joules), as a file for Prometheus' textfile collector.

Plain sums over the samples: good enough to watch, and replaced by the record when the window closes
(no padding to ticks, no gap filling but what a counter gives).
"""

from __future__ import annotations

import contextlib
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Live:
    """Adds up samples and writes the file at each.

    ``factors`` are the load model's: ``cpu_j`` joules per CPU second and ``dram_w`` watts per
    resident byte, 0 where a component is measured or left out.
    """

    def __init__(self, path: str, labels: Mapping[str, str], factors: Mapping[str, float]) -> None:
        self.path = path
        self.labels = "".join(f'{name}="{_quoted(text)}",' for name, text in labels.items())
        self.factors = factors
        self.joules: dict[tuple[str, str], float] = {}
        self.seconds = 0.0
        self.before: dict[str, tuple[float, int | None]] = {}

    def add(self, component: str, quality: str, joules: float) -> None:
        """Add joules to a component's sum."""
        key = component, quality
        self.joules[key] = self.joules.get(key, 0.0) + max(0.0, joules)

    def sample(
        self,
        now_s: float,
        cpu: tuple[float, float, int],
        gpus: Sequence[tuple[str, int | None, int | None]],
        zones: Sequence[tuple[str, int, int | None]],
    ) -> None:
        """Take one sample in.

        ``cpu``: CPU seconds of the job and of the machine (cumulative) and resident bytes;
        ``gpus``: id, counter in mJ, power in mW; ``zones``: id, range and counter in uJ.
        """
        own_s, _ = self._step("own", now_s, round(cpu[0] * 1e6))
        busy_s, span_s = self._step("busy", now_s, round(cpu[1] * 1e6))
        self.seconds += span_s
        share = min(1.0, own_s / busy_s) if busy_s > 0 else 0.0
        if self.factors["cpu_j"]:
            self.add("cpu0", "estimated", own_s * self.factors["cpu_j"] / 1e6)
        if self.factors["dram_w"]:
            self.add("dram", "estimated", cpu[2] * self.factors["dram_w"] * span_s)
        for name, counter, power in gpus:
            step_mj, span_s = self._step(name, now_s, counter)
            held_mj = (power or 0) * span_s if counter is None or step_mj < 0 else step_mj
            self.add(name, "measured", held_mj / 1e3)
        for name, limit, counter in zones:
            step_uj, _ = self._step(name, now_s, counter)
            self.add(name, "measured", (step_uj + (limit if step_uj < 0 else 0)) * share / 1e6)
        self._write()

    def _step(self, name: str, now_s: float, value: int | None) -> tuple[int, float]:
        """Growth of a counter and the time since its last reading; nothing on the first one."""
        at_s, before = self.before.get(name, (now_s, value))
        self.before[name] = now_s, value if value is not None else before
        step = value - before if value is not None and before is not None else 0
        return step, now_s - at_s

    def _write(self) -> None:
        lines = [
            "# HELP angelshare_energy_joules Energy the running job has used so far.",
            "# TYPE angelshare_energy_joules gauge",
        ]
        for (component, quality), joules in self.joules.items():
            labels = f'{self.labels}component="{component}",quality="{quality}"'
            lines.append(f"angelshare_energy_joules{{{labels}}} {joules:.3f}")
        lines += [
            "# TYPE angelshare_window_seconds gauge",
            f"angelshare_window_seconds{{{self.labels.rstrip(',')}}} {self.seconds:.3f}",
        ]
        temporary = f"{self.path}.{os.getpid()}"
        with contextlib.suppress(OSError):
            file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            os.write(file, ("\n".join(lines) + "\n").encode())
            os.close(file)
            os.replace(temporary, self.path)

    def remove(self) -> None:
        """The job runs no more."""
        with contextlib.suppress(OSError):
            os.unlink(self.path)


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
