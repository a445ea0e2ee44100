"""Leases: one job works on a thing, every other one waits for it and adopts the result.

The thing is a part of a shared artifact, or a team's own student or its scores: a Snakemake that
was killed leaves jobs behind in a cluster, and the next one submits the same jobs again. A lease is
a small file beside what is made, made by ``link`` (atomic on NFS too, unlike ``O_EXCL``
and flock of old) and kept alive by a heartbeat: the holder renews its modification time. Whoever
waits never compares clocks: a lease is dead when its time has not changed for `DEAD_AFTER_S` of the
waiter's own monotonic clock, or at once when its process is gone from the waiter's own host.

Leases save work; they do not guard content. A holder that was believed dead and comes back meets
the receipt that its successor published, and adopts it: the first writer wins. A student's folder
appears whole and is replaced whole, whoever comes last.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import psutil
from pydantic import ValidationError

from angelshare.files import TEMPORARY_PREFIX, make_folder, publish_first
from angelshare.settings import Settings
from angelshare.store.artifacts import Artifact
from angelshare.store.objects import writing
from angelshare.store.records import Receipt

BEAT_S = 5.0
DEAD_AFTER_S = 60.0
POLL_S = 0.5
FORGOTTEN_AFTER_S = 86_400.0
"""A lease without a heartbeat for a day is nobody's, by whatever host's clock."""

Say = Callable[[str], None]
Result = TypeVar("Result")


class Holder(Settings):
    """Who holds a lease."""

    token: str
    host: str
    boot: str
    pid: int
    started_s: float
    """When the process started, on its host's clock: tells a reused process id apart."""
    slurm_job: str | None
    since_utc: str

    @classmethod
    def this_process(cls) -> Holder:
        """The calling process as a holder, with a token of its own."""
        return cls(
            token=secrets.token_hex(8),
            host=socket.gethostname(),
            boot=_boot_id(),
            pid=os.getpid(),
            started_s=psutil.Process().create_time(),
            slurm_job=os.environ.get("SLURM_JOB_ID"),
            since_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def __str__(self) -> str:
        job = f" (Slurm job {self.slurm_job})" if self.slurm_job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since_utc}"

    def known_dead(self) -> bool:
        """Whether this is a process of this host and boot that no longer runs."""
        if (self.host, self.boot) != (socket.gethostname(), _boot_id()):
            return False
        try:
            process = psutil.Process(self.pid)
            return (
                abs(process.create_time() - self.started_s) > 1
                or process.status() == psutil.STATUS_ZOMBIE
            )
        except psutil.AccessDenied:
            return False
        except psutil.NoSuchProcess:
            return not _runs(self.pid)


def _runs(pid: int) -> bool:
    """Whether the process exists, also where /proc hides other users' processes (hidepid)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _boot_id() -> str:
    """The host's boot and, where there are such, the container that process ids count in."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return str(int(psutil.boot_time()))


UNREADABLE = Holder(
    token="", host="unknown", boot="", pid=0, started_s=0, slurm_job=None, since_utc="unknown"
)
"""Stands for a lease whose file is damaged: dead after its silence, like any other."""


@contextmanager
def single_flight(
    artifact: Artifact, part: int, say: Say = lambda text: None
) -> Iterator[Receipt | None]:
    """Yield the part's receipt if it exists or another job made it meanwhile; None to make it here.

    While the body runs with None, this process holds the part's lease.
    """
    with writing(artifact.store.root):
        # What Snakemake made by the user's umask, others of the group may need to write to.
        make_folder(artifact.receipt_path(part).parent)
    path = artifact.folder / "leases" / f"{part:05d}.json"
    with sole_maker(path, lambda: artifact.adopt(part), f"{artifact} part {part}", say) as adopted:
        yield adopted


@contextmanager
def sole_maker(
    path: Path,
    finished: Callable[[], Result | None],
    what: str,
    say: Say = lambda text: None,
) -> Iterator[Result | None]:
    """Yield the finished result, also where another job makes it meanwhile; None to make it here.

    While the body runs with None, this process holds the lease.

    Args:
        path: the lease's file, the same for every job that would make this.
        finished: looks for the result.
        what: names it in messages.
    """
    holder = Holder.this_process()
    watched: _Watched | None = None
    while True:
        result = finished()
        if result is not None:
            yield result
            return
        if _acquire(path, holder):
            break
        watched = _Watched.again(path, watched, what, say)
        if watched is not None and watched.dead():
            say(f"{what}: took over from {watched.holder}, which is dead")
            with writing(path.parent):
                _remove(path, watched.holder)
            continue
        time.sleep(POLL_S)
    with _beating(path):
        try:
            # Between looking and holding, another job may have finished.
            yield finished()
        finally:
            # One that a full disk keeps here is known to be nobody's as soon as this process ends.
            with suppress(OSError):
                _remove(path, holder)


def _acquire(path: Path, holder: Holder) -> bool:
    """Make the lease file if there is none."""
    with writing(path.parent):
        return publish_first(path, holder.model_dump_json(indent=1).encode())


def abandoned(path: Path) -> bool:
    """Whether the lease in this file is nobody's any more: its process died and left it behind."""
    try:
        silent_s = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return True
    return (_read(path) or UNREADABLE).known_dead() or silent_s > FORGOTTEN_AFTER_S


def _read(path: Path) -> Holder | None:
    try:
        return Holder.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _remove(path: Path, holder: Holder) -> None:
    """Take the lease away if it is still this holder's."""
    aside = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(6)}")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    found = _read(aside)
    if found is not None and found.token != holder.token:
        # Another one was faster and holds it now: give it back.
        with suppress(FileExistsError):
            os.link(aside, path)
    aside.unlink(missing_ok=True)


@contextmanager
def _beating(path: Path) -> Iterator[None]:
    """Renew the lease's modification time until the body ends."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(BEAT_S):
            # Gone, or a server that does not answer: the next beat may.
            with suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=beat, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class _Watched:
    """A lease of another process, as seen by this one's clock."""

    def __init__(self, holder: Holder, beat_ns: int) -> None:
        self.holder = holder
        self.beat_ns = beat_ns
        self.seen_s = time.monotonic()

    @classmethod
    def again(cls, path: Path, before: _Watched | None, what: str, say: Say) -> _Watched | None:
        """Look once more; None when the lease is gone."""
        try:
            beat_ns = path.stat().st_mtime_ns
        except FileNotFoundError:
            return None
        holder = _read(path) or UNREADABLE
        if before is None or before.holder.token != holder.token:
            say(f"{what}: waiting for {holder}, which is working on it")
            return cls(holder, beat_ns)
        if before.beat_ns != beat_ns:
            return cls(holder, beat_ns)
        return before

    def dead(self) -> bool:
        """Whether the holder is gone from this host or has been silent for too long."""
        return self.holder.known_dead() or time.monotonic() - self.seen_s > DEAD_AFTER_S
