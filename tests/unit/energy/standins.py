"""Stand-ins for meters: an NVML built from C at test time, and a powercap tree of plain files."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parent / "standin" / "nvml.c"
JOB = """
import sys, time
from pathlib import Path
from angelshare.energy import EnergySettings, Job, window
root, seconds, period_s = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
job = Job(rule="train", stage="student_train", role="student", sidecar=root / "energy.json",
          attempts=root / "attempts", wildcards={"run": "a"})
with window(job, EnergySettings(period_s=period_s, cpu="none", dram="none")) as opened:
    with opened.phase("body"):
        print("open", flush=True)
        time.sleep(seconds)
"""


@dataclass
class Nvml:
    """A machine with GPUs that play back what ``play`` wrote."""

    library: Path
    script: Path

    def play(self, *lines: str, start_in_s: float = 0.0) -> None:
        """Write what is played; its time zero is ``start_in_s`` from now."""
        epoch_ns = time.monotonic_ns() + int(start_in_s * 1e9)
        self.script.write_text("\n".join([f"epoch {epoch_ns}", *lines]) + "\n")

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to see the GPUs."""
        return {
            **os.environ,
            "LD_LIBRARY_PATH": str(self.library.parent),
            "STANDIN_NVML": str(self.script),
        }

    def run(self, root: Path, seconds: float, period_s: float = 0.1, **more: str) -> None:
        """Run a job of that length in a window of its own, in a process that sees the GPUs."""
        command = [sys.executable, "-c", JOB, str(root), str(seconds), str(period_s)]
        subprocess.run(
            command, env={**self.environment, **more}, check=True, stdout=subprocess.DEVNULL
        )

    def oracle_j(self, gpu: int, start_ns: int, end_ns: int) -> float:
        """The true joules of a GPU between two moments, asked in a fresh process."""
        code = (
            f"import ctypes; lib = ctypes.CDLL({str(self.library)!r}); "
            "lib.standin_energy_j.restype = ctypes.c_double; "
            f"print(lib.standin_energy_j({gpu}, ctypes.c_double({start_ns}), "
            f"ctypes.c_double({end_ns})))"
        )
        answer = subprocess.run(
            [sys.executable, "-I", "-S", "-c", code],
            env=self.environment,
            check=True,
            capture_output=True,
            text=True,
        )
        return float(answer.stdout)


def build(folder: Path) -> Path:
    """Compile the stand-in; the library's path."""
    library = folder / "libnvidia-ml.so.1"
    command = ["cc", "-O2", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1"]
    subprocess.run([*command, "-o", str(library), str(SOURCE), "-lm"], check=True)
    ctypes.CDLL(str(library), mode=ctypes.RTLD_LOCAL)
    return library
