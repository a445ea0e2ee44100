"""A stand-in for NVML, built from C at test time, that plays back power with a known integral."""

from __future__ import annotations

import ctypes
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent / "standin"


@dataclass
class Nvml:
    """A machine with GPUs that play back what ``play`` wrote."""

    library: Path
    script: Path

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to see the GPUs; a sampler inherits it from its job."""
        return {"LD_LIBRARY_PATH": str(self.library.parent), "STANDIN_NVML": str(self.script)}

    def play(self, *lines: str) -> None:
        """Write what is played; its time zero is now. Read once, when NVML is opened."""
        self.script.write_text("\n".join([f"epoch {time.monotonic_ns()}", *lines]) + "\n")

    def oracle_j(self, gpu: int, start_ns: int, end_ns: int) -> float:
        """The true joules of a GPU between two moments of CLOCK_MONOTONIC."""
        loaded = ctypes.CDLL(str(self.library))
        loaded.standin_load(str(self.script).encode())
        loaded.standin_energy_j.restype = ctypes.c_double
        return float(
            loaded.standin_energy_j(gpu, ctypes.c_double(start_ns), ctypes.c_double(end_ns))
        )


def build(folder: Path, source: str = "nvml.c", name: str = "libnvidia-ml.so.1") -> Path:
    """Compile one of the stand-ins; the library's path."""
    library = folder / name
    command = ["cc", "-O2", "-shared", "-fPIC", f"-Wl,-soname,{name}"]
    subprocess.run([*command, "-o", str(library), str(SOURCES / source), "-lm"], check=True)
    return library
