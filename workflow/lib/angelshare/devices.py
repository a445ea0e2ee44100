"""GPUs of one machine among jobs that run beside each other.

Snakemake counts GPUs, it does not say which: two jobs of one GPU each would both take the first.
So a job claims as many as it was given by a lock on a file per GPU, which ends with its process,
however that ends. Slurm hands out devices itself; there is nothing to claim then.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

POLL_S = 0.5


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    found = (path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))
    return sorted(found, key=int)


@contextmanager
def claimed_gpus(count: int, folder: Path | None = None) -> Iterator[list[str]]:
    """Make ``count`` GPUs visible that no other job of this machine has claimed; wait for them.

    Where there are no more than ``count``, or Slurm chose them, all that are visible stay so.
    """
    visible = visible_gpus()
    if count < 1 or count >= len(visible) or "SLURM_JOB_ID" in os.environ:
        yield visible
        return
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    with ExitStack() as held:
        chosen = _claim(visible, count, folder or _shared_folder(), held)
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(chosen)
        try:
            yield chosen
        finally:
            if before is None:
                del os.environ["CUDA_VISIBLE_DEVICES"]
            else:
                os.environ["CUDA_VISIBLE_DEVICES"] = before


def _claim(visible: list[str], count: int, folder: Path, held: ExitStack) -> list[str]:
    """Lock ``count`` of the files, all at once or none: no two jobs wait for each other."""
    while True:
        with ExitStack() as attempt:
            chosen: list[str] = []
            for name in visible:
                if len(chosen) < count and _lock(attempt.enter_context(_open(folder, name))):
                    chosen.append(name)
            if len(chosen) == count:
                held.enter_context(attempt.pop_all())
                return chosen
        time.sleep(POLL_S)


def _open(folder: Path, name: str) -> IO[bytes]:
    path = folder / f"gpu-{name}"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    return os.fdopen(descriptor, "rb+")


def _lock(stream: IO[bytes]) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _shared_folder() -> Path:
    """The machine's folder of claims, writable by everyone like the folder it is in."""
    folder = Path(tempfile.gettempdir()) / "angelshare-gpus"
    if not folder.exists():
        folder.mkdir(exist_ok=True)
        folder.chmod(0o1777)
    return folder
