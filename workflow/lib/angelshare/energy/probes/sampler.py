"""The sampling process: one flushed line a sample, until its parent closes the window or dies.

Started as ``python -I -S`` with the library's root on its path. The first line of its standard
input is its orders (JSON); further lines are events of the window, copied into the trace with a
sample beside them. Its trace is JSON lines, times in nanoseconds of CLOCK_MONOTONIC:

* ``header``: the devices that are read, by id and UUID
* ``s``: a sample; energies are cumulative counters, so a gap in the samples loses no energy
* ``e``: an event from the window (phase begins and ends, work, close)
* ``end``: why sampling ended and what it used

The end of the standard input, or another parent than the one that started it, means that the parent
is dead: the record is then closed by the program named in the orders. Signals meant for the job do
not end it, so that it can say what the job used until its last moment.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import signal
import sys
import time

from angelshare.energy.probes import nvml, rapl
from angelshare.energy.probes.live import Live
from angelshare.energy.probes.process_tree import (
    Machine,
    ProcessTree,
    cgroup_s,
    start_ticks,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ROLL_STEP_S = 0.02
ROLL_LIMIT_S = 0.3
DISCOVER_EVERY_NS = 900_000_000
LOOK_EVERY_NS = 1_400_000_000
SHOW_EVERY_NS = 4_900_000_000
SYNC_EVERY_NS = 5_000_000_000


class Sampler:
    """Reads every meter and appends to the trace."""

    def __init__(self, orders: dict[str, Any]) -> None:
        self.period_ns = int(orders["period_s"] * 1e9)
        self.parent = os.getppid()
        self.trace = os.open(orders["trace"], os.O_WRONLY | os.O_APPEND)
        self.machine = Machine()
        self.tree = ProcessTree(self.parent)
        self.cgroup: str | None = orders["cgroup"]
        self.gpus: list[nvml.Gpu] = []
        self.zones: list[rapl.Zone] = []
        remarks: list[str] = []
        if orders["gpu"]:
            self.gpus, remarks = nvml.open_nvml(orders["pynvml"], os.environ)
        if orders["powercap"]:
            self.zones, more = rapl.find_zones(orders["powercap"])
            remarks += more
        self.synced_ns = time.monotonic_ns()
        self.shown_ns = 0
        self.used_bytes = 0
        self.live = Live(**orders["live"])
        self.write(
            k="header",
            t=time.monotonic_ns(),
            pid=os.getpid(),
            pid_start=start_ticks(os.getpid()),
            gpus=[gpu.describe() for gpu in self.gpus],
            zones=[zone.describe() for zone in self.zones],
            remarks=remarks,
        )

    def write(self, **line: Any) -> None:
        """Append one line; it is with the kernel when this returns, on disk within seconds."""
        os.write(self.trace, json.dumps(line, separators=(",", ":")).encode() + b"\n")

    def sample(self, *, look: bool = True, discover: bool = True) -> list[int | None]:
        """Read everything once; returns the GPUs' counters.

        Without ``look`` what is slow to read and slow to change is left out (memory, the GPUs'
        telemetry: the last look's stand in the line), without ``discover`` new processes are.
        """
        rows = [gpu.sample(look) for gpu in self.gpus]
        cpu_s, resident_bytes = self.tree.sample(look, discover)
        busy_s = self.machine.busy_s()
        counters = [zone.read() for zone in self.zones]
        group_s = cgroup_s(self.cgroup) if self.cgroup else None
        if look:
            self.used_bytes = self.machine.used_bytes()
        now_ns = time.monotonic_ns()
        # JSON by hand: nothing but numbers and None, and half the cost.
        line = (
            f'{{"k":"s","t":{now_ns},"utc":{time.time_ns()},'
            f'"boot":{time.clock_gettime_ns(time.CLOCK_BOOTTIME)},"cpu":{cpu_s:.6f},'
            f'"cgroup":{group_s},"busy":{busy_s:.3f},"rss":{resident_bytes},'
            f'"used":{self.used_bytes},"gpu":{rows},"rapl":{counters}}}\n'
        )
        os.write(self.trace, line.replace("None", "null").encode())
        if now_ns - self.shown_ns >= SHOW_EVERY_NS:
            self.shown_ns = now_ns
            self.show(now_ns / 1e9, (cpu_s, busy_s, resident_bytes), rows, counters)
        if now_ns - self.synced_ns > SYNC_EVERY_NS:
            os.fdatasync(self.trace)
            self.synced_ns = now_ns
        return [row[2] for row in rows]

    def show(
        self,
        now_s: float,
        cpu: tuple[float, float, int],
        rows: list[list[int | None]],
        counters: list[int | None],
    ) -> None:
        """Add a sample to what the job has used so far; see :meth:`Live.sample`."""
        gpus = zip(self.gpus, rows, strict=True)
        zones = zip(self.zones, counters, strict=True)
        self.live.sample(
            now_s,
            cpu,
            [(f"gpu{gpu.index}", row[2], row[5]) for gpu, row in gpus],
            [(zone.id, zone.range_uj, value) for zone, value in zones],
        )

    def roll(self) -> None:
        """Sample quickly until every GPU counter has ticked: the window's edge lies at a tick."""
        first = self.sample()
        waiting = {index for index, value in enumerate(first) if value is not None}
        until_s = time.monotonic() + ROLL_LIMIT_S
        while waiting and time.monotonic() < until_s:
            time.sleep(ROLL_STEP_S)
            now = self.sample()
            waiting = {index for index in waiting if now[index] == first[index]}

    def run(self) -> str:
        """Sample on an absolute schedule; returns ``close`` or ``parent_died``."""
        pending = b""
        due_ns = time.monotonic_ns()
        looked_ns = discovered_ns = 0
        while True:
            now_ns = time.monotonic_ns()
            if now_ns >= due_ns:
                if os.getppid() != self.parent:
                    return "parent_died"
                look = now_ns - looked_ns >= LOOK_EVERY_NS
                looked_ns = now_ns if look else looked_ns
                discover = now_ns - discovered_ns >= DISCOVER_EVERY_NS
                discovered_ns = now_ns if discover else discovered_ns
                self.sample(look=look, discover=discover)
                due_ns += self.period_ns * ((now_ns - due_ns) // self.period_ns + 1)
            ready, _, _ = select.select([0], [], [], max(0.0, (due_ns - time.monotonic_ns()) / 1e9))
            if not ready:
                continue
            received = os.read(0, 65536)
            if not received:
                return "parent_died"
            *lines, pending = (pending + received).split(b"\n")
            for line in lines:
                os.write(self.trace, line + b"\n")
                if json.loads(line)["e"] == "close":
                    return "close"
                self.sample()

    def end(self, reason: str) -> None:
        """Roll to the counters' next tick and say what sampling used."""
        ended_ns = time.monotonic_ns()
        self.roll()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        self.write(
            k="end",
            t=ended_ns,
            reason=reason,
            cpu_s=usage.ru_utime + usage.ru_stime,
            max_rss_bytes=_peak_bytes(),
        )
        os.fdatasync(self.trace)
        os.close(self.trace)
        self.live.remove()


def _peak_bytes() -> int:
    """Largest resident size of this process; rusage would count its parent's at the fork."""
    with open("/proc/self/status", "rb") as stream:
        for line in stream:
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def _first_line() -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            sys.exit(0)
        line += byte
    return line


def main() -> None:
    """Take the orders, sample, and close the record when nobody else can."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    gc.disable()
    orders = json.loads(_first_line())
    sampler = Sampler(orders)
    sampler.roll()
    os.write(1, b"ready\n")
    os.close(1)
    reason = sampler.run()
    sampler.end(reason)
    if reason == "parent_died":
        os.execve(orders["closer"][0], orders["closer"], {**os.environ, **orders["environment"]})
