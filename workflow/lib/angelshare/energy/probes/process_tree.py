"""CPU time (seconds) and resident memory (bytes) of a process and all its descendants.

The CPU time is cumulative: a descendant that was waited for is in its parent's ``cutime``, one that
vanished in another way keeps what was last seen of it. A living process has a clock of its own
(nanoseconds); what was waited for is only known in clock ticks (10 ms). Files of /proc stay open:
reading one at offset 0 again gives the present state, and costs half of opening it anew.
"""

from __future__ import annotations

import os
import time

TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
KEPT_OPEN = 64
MANY_NEW = 256


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


def _open(pid: int) -> int | None:
    try:
        return os.open(f"/proc/{pid}/stat", os.O_RDONLY)
    except OSError:
        return None


def _parse(pid: int, file: int) -> _Process | None:
    """What an open ``stat`` says now; None once its process is gone, whoever has the number."""
    try:
        content = os.pread(file, 1024, 0)
    except OSError:
        return None
    return _Process(pid, content[content.rindex(b")") + 2 :].split(None, 22)) if content else None


def _read(pid: int) -> _Process | None:
    file = _open(pid)
    if file is None:
        return None
    process = _parse(pid, file)
    os.close(file)
    return process


def start_ticks(pid: int) -> int | None:
    """When a living process started, in clock ticks since boot; None if it does not live."""
    process = _read(pid)
    return None if process is None or process.dead else process.start


def ancestors(pid: int) -> list[tuple[int, int]]:
    """A process, its parent and so on, each with its start in clock ticks since boot."""
    found: list[tuple[int, int]] = []
    while pid > 0 and (process := _read(pid)) is not None:
        found.append((pid, process.start))
        pid = process.parent
    return found


class ProcessTree:
    """Follows one process and everything it starts."""

    def __init__(self, root: int) -> None:
        self.root = root
        self.own = os.getpid()
        self.members: dict[int, _Process] = {}
        self.files: dict[int, int] = {}
        """Open ``stat`` files of members, the first few of them."""
        self.strangers: set[str] = set()
        """Entries of /proc that are no process of ours and cannot become one."""
        self.loadavg = os.open("/proc/loadavg", os.O_RDONLY)
        self.newest = (0, 0)
        """The newest process or thread of the machine at the last two looks for new ones."""
        self.lost_s = 0.0
        process = _read(root)
        if process is not None:
            self.members[root] = process

    def sample(self, look: bool = True, discover: bool = True) -> tuple[float, int]:
        """Cumulative CPU seconds of the tree (own, waited-for and lost) and its resident bytes.

        Without ``look`` only the members' clocks are read, unless one has vanished: resident bytes
        and what was waited for are the last look's. (The kernel needs four times as long to fill in
        a ``stat``.) Without ``discover`` no new descendants are looked for; theirs is counted when
        they are seen or waited for.
        """
        if look or not self._clocks_read():
            before = self.members
            self.members = self._alive(before)
            if not before.keys() <= self.members.keys():
                self._adopt(self.members)
                self.lost_s += _lost(before, self.members)
        if discover:
            self._adopt(self.members)
        total_s, pages = self.lost_s, 0
        for process in self.members.values():
            total_s += process.own_s + process.children_s
            pages += process.pages
        return total_s, pages * PAGE_BYTES

    def _clocks_read(self) -> bool:
        """Read every member's clock; false if one is gone, and may have been waited for."""
        try:
            for pid, process in self.members.items():
                own = pid == self.own != self.root
                clock = time.CLOCK_PROCESS_CPUTIME_ID if own else _cpu_clock(pid)
                process.own_s = time.clock_gettime_ns(clock) / 1e9
        except OSError:
            return False
        return True

    def _alive(self, before: dict[int, _Process]) -> dict[int, _Process]:
        alive = {}
        for pid, process in before.items():
            if pid == self.own != self.root:
                process.own_s = time.process_time()
                alive[pid] = process
                continue
            now = self._again(pid)
            if now is not None and now.start == process.start:
                alive[pid] = now
            elif pid in self.files:
                os.close(self.files.pop(pid))
        return alive

    def _again(self, pid: int) -> _Process | None:
        """A member's present reading, from its open file where there is room for one."""
        if pid in self.files:
            return _parse(pid, self.files[pid])
        if len(self.files) >= KEPT_OPEN or (file := _open(pid)) is None:
            return _read(pid)
        self.files[pid] = file
        return _parse(pid, file)

    def _adopt(self, alive: dict[int, _Process]) -> None:
        """Add the new processes whose ancestors lead to a member.

        Numbers are given out in order, so only those since the look before the last one are tried
        (one that was given out may not be seen at once); all of them where that does not help.
        """
        first, last = self.newest
        newest = int(os.pread(self.loadavg, 128, 0).split()[-1])
        self.newest = last, newest
        if 0 < first <= newest <= first + MANY_NEW:
            pids = [pid for pid in range(first + 1, newest + 1) if pid not in alive]
        else:
            pids = self._unknown(alive)
        fresh = {pid: process for pid in pids if (process := _read(pid)) is not None}
        grew = True
        while grew:
            grew = False
            for pid in list(fresh):
                if fresh[pid].parent in alive:
                    process = fresh.pop(pid)
                    if _is_process(pid):
                        alive[pid] = process
                        self.strangers.discard(str(pid))
                        grew = True

    def _unknown(self, alive: dict[int, _Process]) -> list[int]:
        """All processes of the machine that were not seen before; they are remembered."""
        names = set(os.listdir("/proc"))
        self.strangers &= names
        names -= self.strangers
        names.difference_update(map(str, alive))
        self.strangers |= names
        return [int(name) for name in names if name.isdigit()]


def _is_process(pid: int) -> bool:
    """Whether this is a process and not a thread, which /proc knows by its number too."""
    try:
        file = os.open(f"/proc/{pid}/status", os.O_RDONLY)
    except OSError:
        return False
    content = os.read(file, 512)
    os.close(file)
    return b"\nTgid:\t%d\n" % pid in content


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
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        first = os.read(file, 256).split(None, 2)
    except OSError:
        return None
    finally:
        os.close(file)
    return int(first[1]) / 1e6 if first[0] == b"usage_usec" else int(first[0]) / 1e9


class Machine:
    """Figures of the whole machine, from files of /proc that stay open."""

    def __init__(self) -> None:
        self.stat = os.open("/proc/stat", os.O_RDONLY)
        self.meminfo = os.open("/proc/meminfo", os.O_RDONLY)

    def busy_s(self) -> float:
        """CPU seconds it has been busy since boot (without idle, I/O wait, steal)."""
        fields = os.pread(self.stat, 256, 0).split(None, 8)[1:8]
        user, nice, system, _idle, _iowait, irq, softirq = (int(field) for field in fields)
        return (user + nice + system + irq + softirq) * TICK_S

    def used_bytes(self) -> int:
        """Memory in use: total less what the kernel calls available."""
        total, free, available = os.pread(self.meminfo, 256, 0).split(b"\n", 3)[:3]
        left = available if available.startswith(b"MemAvailable:") else free
        return (int(total.split(None, 2)[1]) - int(left.split(None, 2)[1])) * 1024
