"""What all settings share: unknown keys are errors, values never change after they were read."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

PROJECT_LICENCE = "Apache-2.0"
"""Of what the workflow makes from nothing: generated problems, and models trained on them."""


class Settings(BaseModel):
    """Base of every section of the configuration; each room keeps its own in ``settings.py``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    execution: ClassVar[frozenset[str]] = frozenset()
    """Fields that say how work is carried out and not what comes out; they enter no recipe."""

    def identity(self) -> dict[str, Any]:
        """The settings that decide content, as plain values."""
        return self.model_dump(exclude=set(self.execution))
