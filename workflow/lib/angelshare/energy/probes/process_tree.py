"""CPU time (seconds) and resident memory (bytes) of a process and all its descendants.

The CPU time is cumulative: a descendant that was waited for is in its parent's ``cutime``, one that
vanished in another way keeps what was last seen of it. A living process has a clock of its own
(nanoseconds); what was waited for is only known in clock ticks (10 ms).
"""

from __future__ import annotations

import os
import time

TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class _Process:
    """The last reading of one process: its parent, own and waited-for CPU seconds, pages."""

    __slots__ = ("children_s", "dead", "own_s", "pages", "parent", "start")

    def __init__(self, pid: int, fields: list[bytes]) -> None:
        self.dead = fields[0] in (b"Z", b"X")
        self.parent = int(fields[1])
        try:
            self.own_s = time.clock_gettime_ns(_cpu_clock(pid)) / 1e9
        except OSError:
            self.own_s = (int(fields[11]) + int(fields[12])) * TICK_S
        self.children_s = (int(fields[13]) + int(fields[14])) * TICK_S
        self.start = int(fields[19])
        self.pages = int(fields[21])

    @property
    def total_s(self) -> float:
        return self.own_s + self.children_s


def _cpu_clock(pid: int) -> int:
    """The id of another process's CPU clock, as clock_getcpuclockid(3) makes it on Linux."""
    return (~pid << 3) | 2


def _read(pid: int) -> _Process | None:
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as stream:
            content = stream.read()
    except OSError:
        return None
    return _Process(pid, content[content.rindex(b")") + 2 :].split())


def start_ticks(pid: int) -> int | None:
    """When a living process started, in clock ticks since boot; None if it does not live."""
    process = _read(pid)
    return None if process is None or process.dead else process.start


class ProcessTree:
    """Follows one process and everything it starts."""

    def __init__(self, root: int) -> None:
        self.root = root
        self.members: dict[int, _Process] = {}
        self.strangers: set[str] = set()
        """Entries of /proc that are no process of ours and cannot become one."""
        self.lost_s = 0.0
        process = _read(root)
        if process is not None:
            self.members[root] = process

    def sample(self, discover: bool = True) -> tuple[float, int]:
        """Cumulative CPU seconds of the tree (own, waited-for and lost) and its resident bytes.

        Without ``discover`` no new descendants are looked for; theirs is counted when they are seen
        or waited for.
        """
        before = self.members
        self.members = self._alive(before)
        if discover:
            self._adopt(self.members)
        self.lost_s += _lost(before, self.members)
        total_s = sum(process.total_s for process in self.members.values()) + self.lost_s
        pages = sum(process.pages for process in self.members.values())
        return total_s, pages * PAGE_BYTES

    def _alive(self, before: dict[int, _Process]) -> dict[int, _Process]:
        readings = {pid: _read(pid) for pid in before}
        return {
            pid: process
            for pid, process in readings.items()
            if process is not None and process.start == before[pid].start
        }

    def _adopt(self, alive: dict[int, _Process]) -> None:
        """Add the new processes whose ancestors lead to a member; remember all other entries."""
        names = set(os.listdir("/proc"))
        self.strangers &= names
        names -= self.strangers
        names.difference_update(map(str, alive))
        pids = [int(name) for name in names if name.isdigit()]
        fresh = {pid: process for pid in pids if (process := _read(pid)) is not None}
        grew = True
        while grew:
            grew = False
            for pid in list(fresh):
                if fresh[pid].parent in alive:
                    alive[pid] = fresh.pop(pid)
                    names.discard(str(pid))
                    grew = True
        self.strangers |= names


def _lost(before: dict[int, _Process], alive: dict[int, _Process]) -> float:
    """Seconds of vanished members that no surviving ancestor has waited for.

    A tick each is not missed: that much ``cutime`` may round away.
    """
    expected: dict[int | None, float] = {}
    for pid, process in before.items():
        if pid in alive:
            continue
        heir: int | None = process.parent
        while heir is not None and heir not in alive:
            heir = before[heir].parent if heir in before else None
        slack_s = 0.0 if heir is None else TICK_S
        expected[heir] = expected.get(heir, 0.0) + process.total_s - slack_s
    lost_s = expected.pop(None, 0.0)
    for heir, seconds in expected.items():
        assert heir is not None
        risen_s = alive[heir].children_s - before[heir].children_s if heir in before else 0.0
        lost_s += max(0.0, seconds - risen_s)
    return lost_s


def cgroup_file(root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> str | None:
    """The file with the CPU time of this process's control group; None in the root group."""
    with open(own, encoding="utf-8") as stream:
        lines = [line.rstrip("\n").split(":", 2) for line in stream]
    for _, controllers, path in lines:
        if path == "/":
            continue
        names = [f"{root}{path}/cpu.stat"] if not controllers else []
        if "cpuacct" in controllers.split(","):
            names = [f"{root}/{mount}{path}/cpuacct.usage" for mount in (controllers, "cpuacct")]
        for name in names:
            if os.path.exists(name):
                return name
    return None


def cgroup_s(path: str) -> float | None:
    """CPU seconds of a control group: ``usage_usec`` of version 2, nanoseconds of version 1."""
    try:
        with open(path, "rb", buffering=0) as stream:
            first = stream.readline().split()
    except OSError:
        return None
    return int(first[1]) / 1e6 if first[0] == b"usage_usec" else int(first[0]) / 1e9


def machine_busy_s() -> float:
    """CPU seconds the whole machine has been busy since boot (without idle, I/O wait, steal)."""
    with open("/proc/stat", "rb", buffering=0) as stream:
        fields = stream.readline().split()[1:8]
    user, nice, system, _idle, _iowait, irq, softirq = (int(field) for field in fields)
    return (user + nice + system + irq + softirq) * TICK_S


def machine_used_bytes() -> int:
    """Memory in use on the whole machine: total less what the kernel calls available."""
    values = {}
    with open("/proc/meminfo", "rb", buffering=0) as stream:
        for line in stream.read(256).splitlines()[:3]:
            name, _, rest = line.partition(b":")
            values[name] = int(rest.split()[0]) * 1024
    return values[b"MemTotal"] - values.get(b"MemAvailable", values[b"MemFree"])
