"""The measured part of the sidecar: intervals, devices, components, phases and their bounds.

Joules, watts and seconds, the unit in every name. Relative bounds are systematic (they do not
shrink over repeats); bounds in joules belong to one attempt.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from pydantic_core import CoreSchema

T = TypeVar("T")


class _Absent:
    """Marks a field that is left out of the JSON when it is None; null is not its value."""

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """The schema of the value alone, without null."""
        described = handler(schema)
        choices = [one for one in described.get("anyOf", []) if one != {"type": "null"}]
        return choices[0] if len(choices) == 1 else described


Maybe = Annotated[T | None, _Absent()]
NonNegative = Annotated[float, Field(ge=0)]


class Part(BaseModel):
    """Base of every part of the record."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    @model_serializer(mode="wrap")
    def _leave_out_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        for name, field in type(self).model_fields.items():
            if any(isinstance(mark, _Absent) for mark in field.metadata):
                key = field.serialization_alias or name
                if content.get(key, 0) is None:
                    del content[key]
        return content


class Interval(Part):
    """A value with its 95 % bounds."""

    value: float
    low: float
    high: float


class Device(Part):
    """One physical device."""

    uuid: Maybe[str] = None
    model: Maybe[str] = None
    driver: Maybe[str] = None
    index: Maybe[int] = None
    power_limit_w: Maybe[float] = None
    mig: str | None = None
    power_scope: Maybe[Literal["gpu", "module", "package", "board", "wall"]] = None
    siblings: Maybe[int] = None


class Uncertainty(Part):
    """The parts of a bound: relative ones are systematic, `_j95` ones belong to this attempt."""

    gain_rel95: Maybe[NonNegative] = None
    edge_j95: Maybe[NonNegative] = None
    integration_j95: Maybe[NonNegative] = None
    gap_j95: Maybe[NonNegative] = None
    attribution_rel95: Maybe[NonNegative] = None
    model_rel95: Maybe[NonNegative] = None


class CounterReading(Part):
    """The device's own energy counter at the window's (padded) bounds."""

    start: Maybe[float] = None
    end: Maybe[float] = None
    unit: Maybe[Literal["mJ", "uJ"]] = None
    wraps: Maybe[int] = None
    resets: Maybe[int] = None
    ticks: Maybe[int] = None
    update_ms_p50: Maybe[float] = None
    pre_pad_s: Maybe[NonNegative] = None
    post_pad_s: Maybe[NonNegative] = None


class Gap(Part):
    """A stretch without samples, in seconds from the window's start."""

    start_s: float
    end_s: float
    filled_by: Literal["counter", "hold", "nothing"]
    energy_j: Maybe[float] = None


class Power(Part):
    """What the samples of one device looked like."""

    avg_w: Maybe[float] = None
    min_w: Maybe[float] = None
    util_percent: Maybe[float] = None
    used_gb: Maybe[float] = None
    max_w: Maybe[float] = None
    samples: Maybe[int] = None
    distinct: Maybe[int] = None
    period_ms_target: Maybe[float] = None
    period_ms_p50: Maybe[float] = None
    period_ms_p99: Maybe[float] = None
    period_ms_max: Maybe[float] = None
    coverage: Maybe[NonNegative] = None
    gaps: Maybe[list[Gap]] = None


class Crosscheck(Part):
    """A second, independent figure for the same device and window."""

    method: str
    energy_j: float
    rel_diff: float
    tolerance: NonNegative
    ok: bool


class Component(Part):
    """What one device cost this job. `device_energy_j` is the whole device's, where shared."""

    id: str
    kind: Literal["gpu", "cpu_package", "dram", "soc", "node", "other"]
    device: Maybe[Device] = None
    quality: Literal["measured", "estimated", "declared", "missing"]
    method: Literal[
        "nvml_counter",
        "nvml_power_average",
        "nvml_power_instant",
        "amdsmi_counter",
        "rapl",
        "rapl_perf",
        "external_meter",
        "slurm",
        "load_model",
        "constant",
        "imported",
        "none",
    ]
    attribution: Maybe[
        Literal["whole_device", "cpu_time_share", "cgroup", "mig_slices", "declared_share"]
    ] = None
    share: Maybe[NonNegative] = None
    energy_j: NonNegative | None
    device_energy_j: Maybe[NonNegative] = None
    idle_j: NonNegative | None = None
    above_idle_j: float | None = None
    u95_j: NonNegative | None
    u: Maybe[Uncertainty] = None
    counter: Maybe[CounterReading] = None
    power: Maybe[Power] = None
    crosscheck: Maybe[Crosscheck] = None


class Total(Part):
    """The sum over components; what is in `missing` is not in it."""

    energy_j: Interval
    measured_j: NonNegative
    estimated_j: NonNegative
    above_idle_j: Interval | None = None
    missing: list[str]


class Baseline(Part):
    """Idle power by component id or device uuid, and how it was found."""

    idle_w: Maybe[dict[str, float]] = None
    seconds: Maybe[NonNegative] = None
    measured_utc: Maybe[str] = None
    state: Maybe[Literal["no_context", "context_open"]] = None
    source: Maybe[Literal["before", "after", "cached", "declared"]] = None


class Phase(Part):
    """A named stretch of the window and what moving its bounds by 5 % would change."""

    name: str
    start_s: float
    end_s: float
    energy_j: float
    shift_minus5pct_j: Maybe[float] = None
    shift_plus5pct_j: Maybe[float] = None
    times: Maybe[int] = None
    """How often it was entered, where more than once: its joules are the sum."""
