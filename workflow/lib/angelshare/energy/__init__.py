"""What a job cost: meters, windows, sidecars and attempts.

``window`` measures a body of code, ``Job`` says what it is, the settings say how; ``rank_window``
measures what a job starts elsewhere as a part of it. Importing the package is light: the sampling
process imports its parts of it with little of the standard library.
"""

from __future__ import annotations

TYPE_CHECKING = False  # The name that type checkers take for true, without loading typing.
if TYPE_CHECKING:
    from typing import Any

    from angelshare.energy.joining import rank_window
    from angelshare.energy.settings import CarbonSettings, EnergySettings
    from angelshare.energy.windows import Job, Window, window

__all__ = ["CarbonSettings", "EnergySettings", "Job", "Window", "rank_window", "window"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    home = {"rank_window": "joining", "CarbonSettings": "settings", "EnergySettings": "settings"}
    return getattr(import_module(f"angelshare.energy.{home.get(name, 'windows')}"), name)
