"""What devices can do at most, and the shares of it that work of this kind reaches.

Peak operations per second are the makers' figures for dense bf16 (fp16 where there is no bf16;
NVIDIA data sheets of V100, T4, A100, A10, L4, L40S, H100, H200, B200 and RTX 4090, AMD's of the
MI300X), powers their board limits. A processor is counted by its threads. These figures are the
last resort of a plan; a short calibration (the prerun) or this store's own records replace them.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from angelshare.planning.ranges import Range


class Device(NamedTuple):
    """Peak operations per second and watts under load, of one board or of all processor threads."""

    name: str
    peak_flops: float
    power_w: float


_BOARDS = (
    Device("B200", 2250e12, 1000),
    Device("H200", 989e12, 700),
    Device("H100", 989e12, 700),
    Device("MI300X", 1307e12, 750),
    Device("A100", 312e12, 400),
    Device("L40S", 362e12, 350),
    Device("RTX 4090", 165e12, 450),
    Device("A10", 125e12, 150),
    Device("V100", 125e12, 300),
    Device("L4", 121e12, 72),
    Device("T4", 65e12, 70),
)
THREAD_FLOPS, THREAD_W = 80e9, 5.0
"""A processor's thread: 32 float32 operations a cycle (two 8-wide FMAs) at 2.5 GHz; 3 to 10 W."""

EFFICIENCY = {
    "train": Range(0.35, 0.15, 0.55),
    "forward": Range(0.40, 0.15, 0.65),
    "decode": Range(0.05, 0.005, 0.25),
}
"""Share of the peak that is reached. Training: model FLOPs utilisation of published runs (PaLM,
arXiv 2204.02311, Table 3, gives 0.21 to 0.46). Decoding reads all weights per token and is bound by
memory; the share grows with the batch."""

PREFILL = EFFICIENCY["decode"].value / EFFICIENCY["forward"].value
"""A token that is read with others at once, in tokens that are decoded one by one."""

POWER_SHARE = Range(0.8, 0.5, 1.2)
"""Power drawn, as a share of the board's limit; above 1 for the host around it."""

START_S = Range(10.0, 3.0, 60.0)
"""Seconds in which a job starts Python, loads its libraries and its model."""


def find_device(hardware: str | None) -> Device | None:
    """The device that a name such as `2 x NVIDIA H100 80GB HBM3` means; boards add up."""
    if not hardware:
        return None
    plain = hardware.replace("-", " ")
    for board in _BOARDS:
        if board.name.replace("-", " ").lower() in plain.lower():
            count, _, rest = hardware.partition(" x ")
            boards = int(count) if rest and count.isdigit() else 1
            return Device(hardware, boards * board.peak_flops, boards * board.power_w)
    return None


def processor(threads: int, name: str = "processor") -> Device:
    """A processor of which a job may use `threads`."""
    used = max(1, min(threads, os.cpu_count() or threads))
    return Device(name, used * THREAD_FLOPS, used * THREAD_W)
