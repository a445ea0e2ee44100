"""What a job cost: meters, windows, sidecars and attempts.

``window`` measures a body of code, ``Job`` says what it is, the settings say how. Importing the
package is light: the sampling process imports its parts of it with the standard library alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from angelshare.energy.settings import CarbonSettings, EnergySettings
    from angelshare.energy.windows import Job, Window, window

__all__ = ["CarbonSettings", "EnergySettings", "Job", "Window", "window"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "settings" if name.endswith("Settings") else "windows"
    return getattr(import_module(f"angelshare.energy.{home}"), name)
