"""How energy is charged: the settings of the accounting room."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from angelshare.settings import Settings

Policy = Literal["equal", "by_tokens", "first", "declared"]


class AccountingSettings(Settings):
    """How shared artifacts are split over the runs that read them, and what is charged at all."""

    policy: Policy = "equal"
    """How a shared artifact's bill is split over its consumers: `equal` parts, `by_tokens` they
    read, all on the `first` one, or equal parts of a `declared` number of consumers."""
    declared_consumers: int | None = Field(default=None, ge=1)
    """The number of consumers that the policy `declared` divides by (a what-if). When more have
    read the artifact, their real number is used, so that shares never exceed the bill."""
    baseline: str = Field(default="sft", min_length=1)
    """The pipeline that distilled students are compared with."""
    student_stages: tuple[str, ...] = ("student_train", "evaluate", "judge")
    """The stages of a run that the student-only view counts. Other stages that a run made for
    itself alone are charged to it whole in the one-off and the amortised view."""
    apart: tuple[str, ...] = ("prerun", "accounting", "demo_teacher")
    """Stages that are stated apart and charged to no run."""
    draws: int = Field(default=4000, ge=200, le=200_000)
    """Draws behind every interval and probability."""
    seed: int = Field(default=20260513, ge=0)
    """Seed of those draws: equal inputs give equal tables."""

    @model_validator(mode="after")
    def _declared_needs_a_number(self) -> AccountingSettings:
        if self.policy == "declared" and self.declared_consumers is None:
            raise ValueError("policy 'declared' needs declared_consumers, e.g. 10")
        if both := set(self.student_stages) & set(self.apart):
            raise ValueError(f"stages both charged and stated apart: {', '.join(sorted(both))}")
        return self
