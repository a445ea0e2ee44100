"""RAPL energy counters (microjoules, wrapping) of CPU packages and their DRAM, from powercap.

Counted once each: sub-zones other than DRAM lie within their package, `psys` contains the packages,
`intel-rapl-mmio` repeats them, and dies of one package that show the same counter are one (seen on
real machines, codecarbon#1274).
"""

from __future__ import annotations

import os
import re

MIRROR_TOLERANCE_UJ = 1_000_000
_ZONE = re.compile(r"intel-rapl:(\d+)(?::(\d+))?$")


class Zone:
    """One counter: `id` is the component's, `range_uj` where it wraps."""

    __slots__ = ("id", "kind", "name", "path", "range_uj")

    def __init__(self, identity: str, kind: str, name: str, path: str, range_uj: int) -> None:
        self.id = identity
        self.kind = kind
        self.name = name
        self.path = path
        self.range_uj = range_uj

    def read(self) -> int | None:
        """The counter in microjoules, None when it cannot be read now."""
        try:
            file = os.open(self.path, os.O_RDONLY)
        except OSError:
            return None
        try:
            return int(os.read(file, 64))
        except (OSError, ValueError):
            return None
        finally:
            os.close(file)

    def describe(self) -> dict[str, object]:
        """What the trace's header says of it."""
        return {"id": self.id, "kind": self.kind, "name": self.name, "range_uj": self.range_uj}


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as stream:
            return stream.read().strip()
    except OSError:
        return ""


def find_zones(root: str) -> tuple[list[Zone], list[str]]:
    """The zones to read under ``root`` and, in words, what could not be read or was left out."""
    zones: list[Zone] = []
    remarks: list[str] = []
    entries = os.listdir(root) if os.path.isdir(root) else []
    for entry in sorted(entries, key=lambda name: [int(n) for n in re.findall(r"\d+", name)]):
        if (match := _ZONE.fullmatch(entry)) is None:
            continue
        name = _text(f"{root}/{entry}/name")
        package, sub = match.groups()
        if sub is None and name.startswith("package"):
            kind, identity = "cpu_package", f"cpu{package}"
        elif sub is not None and name == "dram":
            kind, identity = "dram", f"dram{package}"
        else:
            continue
        limit = _text(f"{root}/{entry}/max_energy_range_uj")
        zone = Zone(identity, kind, name, f"{root}/{entry}/energy_uj", int(limit or 0))
        if zone.read() is None or not zone.range_uj:
            remarks.append(f"{zone.path} is not readable")
        else:
            zones.append(zone)
    return _without_mirrors(zones, remarks), remarks


def _without_mirrors(zones: list[Zone], remarks: list[str]) -> list[Zone]:
    kept: list[Zone] = []
    for zone in zones:
        twin = next((other for other in kept if _mirrors(other, zone)), None)
        if twin is None:
            kept.append(zone)
        else:
            remarks.append(f"{zone.name} mirrors {twin.name} and is counted once")
    return kept


def _mirrors(first: Zone, second: Zone) -> bool:
    """Whether two dies of one package show one counter (the first is read on both sides)."""
    package = first.name.split("-die-")[0]
    if first.kind != second.kind or "-die-" not in first.name or "-die-" not in second.name:
        return False
    if second.name.split("-die-")[0] != package:
        return False
    before, value, after = first.read(), second.read(), first.read()
    if before is None or value is None or after is None:
        return False
    return before - MIRROR_TOLERANCE_UJ <= value <= after + MIRROR_TOLERANCE_UJ
