"""What all settings share: unknown keys are errors, values never change after they were read."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Base of every section of the configuration; each room keeps its own in ``settings.py``."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
