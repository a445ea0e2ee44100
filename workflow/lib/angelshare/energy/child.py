"""The sampling process as the window sees it: started, spoken to, replaced when it dies.

Events are sent without waiting, because a stopped sampler must never stop the job; the window keeps
them too and has the last word when it closes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import angelshare
from angelshare.energy.probes.process_tree import cgroup_file
from angelshare.energy.settings import EnergySettings

LIBRARY = Path(angelshare.__file__).parent.parent
START_LIMIT_S = 10.0
CLOSE_LIMIT_S = 5.0
REPLACEMENTS = 50
PROGRAM = (
    f"import sys; sys.path.insert(0, {str(LIBRARY)!r}); "
    "from angelshare.energy.probes.sampler import main; main()"
)


class SamplerProcess:
    """Keeps one sampler alive for as long as the window is open."""

    def __init__(
        self,
        attempt: Path,
        trace: Path,
        settings: EnergySettings,
        *,
        gpu: bool,
        live: dict[str, Any],
    ) -> None:
        module = importlib.util.find_spec("pynvml")
        path = os.pathsep.join(filter(None, (str(LIBRARY), os.environ.get("PYTHONPATH"))))
        self.orders = {
            "trace": str(trace.absolute()),
            "period_s": settings.period_s,
            "gpu": gpu,
            "live": live,
            "cgroup": cgroup_file() if settings.cpu_attribution == "cgroup" else None,
            "pynvml": str(Path(module.origin).parent) if module and module.origin else None,
            "powercap": str(settings.powercap) if settings.cpu in ("auto", "rapl") else None,
            "closer": [sys.executable, "-m", "angelshare.energy.closing", str(attempt.absolute())],
            "environment": {"PYTHONPATH": path},
        }
        self.closing = False
        self.lock = threading.Lock()
        self.process = self._start()
        threading.Thread(target=self._watch, daemon=True).start()

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(self.orders).encode() + b"\n")
        process.stdin.flush()
        select.select([process.stdout], [], [], START_LIMIT_S)
        process.stdout.close()
        os.set_blocking(process.stdin.fileno(), False)
        return process

    def _watch(self) -> None:
        """Replace a sampler that died before its window closed, ever more slowly."""
        for number in range(REPLACEMENTS):
            self.process.wait()
            time.sleep(min(5.0, 0.01 * 2**number))
            with self.lock:
                if self.closing:
                    return
                self.process = self._start()

    def send(self, event: dict[str, Any]) -> None:
        """Pass an event on; one that cannot be taken at once is kept by the window alone."""
        line = json.dumps(event, separators=(",", ":")).encode() + b"\n"
        assert self.process.stdin is not None
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self.process.stdin.fileno(), line)

    def close(self, event: dict[str, Any]) -> None:
        """Let the sampler take its last samples and end; one that does not answer is replaced."""
        with self.lock:
            self.closing = True
            self.send(event)
            if self._ended() and self.process.returncode == 0:
                return
            self.process.kill()
            self.process.wait()
            self.process = self._start()
            self.send(event)
            if not self._ended():
                self.process.kill()
                self.process.wait()

    def _ended(self) -> bool:
        try:
            self.process.wait(CLOSE_LIMIT_S)
        except subprocess.TimeoutExpired:
            return False
        return True
