"""Settings of planning: what a study may spend, and what an estimate from FLOPs assumes."""

from __future__ import annotations

from pydantic import Field

from angelshare.settings import Settings


class BudgetSettings(Settings):
    """What this team's jobs of this study may spend in all, failed attempts included."""

    kwh: float | None = Field(default=None, gt=0)
    """A workflow whose plan does not fit is refused at its start, and no job is started once this
    is spent; what is done stays whole, and a larger budget goes on from there. Null: no limit."""
    device: str | None = None
    """The device that a plan assumes where neither records nor the prerun name one, such as
    ``H100``."""
