"""The energy sidecar `energy-sidecar/1`: what one attempt of one job cost.

Joules, watts, seconds and grams, the unit in every name. Device energy never contains PUE. A value
that is unknown is ``None`` (JSON null) with a warning, never 0. Fields may be added in later
versions, so readers keep what they do not know; none is removed or given another meaning.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from angelshare.energy.measures import (
    Baseline,
    Component,
    Interval,
    Maybe,
    NonNegative,
    Part,
    Phase,
    Total,
)


class Attempt(Part):
    """Which job this was and how it ended."""

    id: str
    rule: str
    stage: str
    role: Maybe[Literal["prerun", "preprocess", "teacher", "student", "eval", "other"]] = None
    wildcards: Maybe[dict[str, Any]] = None
    attempt: int
    status: Literal["ok", "failed", "killed", "preempted", "running"]
    complete: bool
    exit_code: int | None = None
    signal: int | None = None
    closed_by: Maybe[Literal["meter", "sweeper"]] = None
    repeat: Maybe[int] = None
    seed: Maybe[int] = None


class Run(Part):
    """Where it ran. `pid`, `pid_start` and `pid_namespace` let a reader tell whether it lives.

    Of a job of several processes, `rank` of `world` is this one; ranks that one command started
    share its `launch`. `within` is the window whose process tree this process is part of.
    """

    workflow_id: str
    git: Maybe[str] = None
    config_sha256: Maybe[str] = None
    host: str
    boot_id: Maybe[str] = None
    container: str | None = None
    cgroup: str | None = None
    slurm: Maybe[dict[str, Any]] = None
    rank: Maybe[int] = None
    world: Maybe[int] = None
    launch: Maybe[str] = None
    within: Maybe[str] = None
    pid: Maybe[int] = None
    pid_start: Maybe[int] = None
    pid_namespace: Maybe[str] = None


class Time(Part):
    """The window's bounds; durations come from the monotonic clock."""

    start_utc: str
    end_utc: str
    duration_s: NonNegative
    start_mono_ns: int
    end_mono_ns: int
    clock_step_s: Maybe[float] = None
    suspended_s: Maybe[NonNegative] = None


class Env(Part):
    """Software and hardware the job ran on."""

    os: Maybe[str] = None
    python: Maybe[str] = None
    packages: Maybe[dict[str, Any]] = None
    driver: Maybe[str] = None
    cuda: Maybe[str] = None
    cpu_model: Maybe[str] = None
    cpu_count: Maybe[int] = None
    gpu_model: Maybe[str] = None
    gpu_count: Maybe[int] = None
    ram_gb: Maybe[float] = None
    cloud_provider: Maybe[str] = None
    cloud_region: Maybe[str] = None
    country: Maybe[str] = None
    country_iso: Maybe[str] = None
    region: Maybe[str] = None
    latitude: Maybe[float] = None
    longitude: Maybe[float] = None


class Scope(Part):
    """What the figures cover, and whether the measured devices were the job's alone."""

    boundary: str
    exclusive: bool
    excluded: Maybe[list[str]] = None


class Tokens(Part):
    """Tokens by meaning."""

    prompt: Maybe[int] = None
    generated: Maybe[int] = None
    trained: Maybe[int] = None
    cached: Maybe[int] = None
    evaluated: Maybe[int] = None


class JoulesPerToken(Part):
    """A ratio that names what it divides."""

    numerator: str
    denominator: str
    value: Interval


class Work(Part):
    """What the joules were spent on."""

    tokens: Maybe[Tokens] = None
    tokenizer_sha256: Maybe[str] = None
    samples: Maybe[int] = None
    steps: Maybe[int] = None
    j_per_token: Maybe[JoulesPerToken] = None


class Factor(Part):
    """A figure from outside, with its provenance."""

    value: float
    unit: str
    source: str
    kind: Literal["measured", "declared", "default"]
    retrieved_utc: Maybe[str] = None
    dataset_version: Maybe[str] = None
    rel_u95: Maybe[NonNegative] = None


class Grid(Part):
    """Carbon intensity of the electricity over one stretch of time."""

    start_utc: str
    end_utc: str
    zone: Maybe[str] = None
    g_per_kwh: NonNegative
    basis: Literal["average", "marginal"]
    lifecycle: Maybe[bool] = None
    source: str
    retrieved_utc: Maybe[str] = None
    dataset_version: Maybe[str] = None
    estimated: bool
    rel_u95: Maybe[NonNegative] = None


class Carbon(Part):
    """Grams of CO2 equivalent: energy times PUE times intensity, once."""

    pue: Maybe[Factor] = None
    grid: Maybe[list[Grid]] = None
    co2e_g: Maybe[Interval] = None
    embodied_g: Interval | None = None
    embodied_method: Maybe[str] = None
    water_l: Interval | None = None
    wue: Maybe[Factor] = None


class Tariff(Part):
    """Price of the electricity over one stretch of time; `estimated` where no row covered it."""

    start_utc: str
    end_utc: str
    price_per_kwh: float
    source: str
    dataset_version: Maybe[str] = None
    estimated: bool


class Cost(Part):
    """What the electricity cost, building overhead included; `amount` in the price's currency."""

    price: Factor
    amount: Interval
    tariffs: Maybe[list[Tariff]] = None


class Input(Part):
    """A file that was read, and the artifact or job that made it."""

    path: str
    sha256: str
    producer: str | None = None


class Output(Part):
    """A file that was made."""

    path: str
    sha256: str
    bytes: Maybe[int] = None


class Lineage(Part):
    """What went in and what came out."""

    inputs: Maybe[list[Input]] = None
    outputs: Maybe[list[Output]] = None


class TraceFile(Part):
    """The samples, beside the record; `path` is relative to the record's folder."""

    path: str
    format: Maybe[Literal["csv", "csv.gz", "jsonl", "parquet"]] = None
    sha256: str
    rows: int
    columns: Maybe[list[str]] = None
    torn_rows: Maybe[int] = None


class Meter(Part):
    """What measured, and what measuring itself used (its CPU time is part of the job's)."""

    name: str
    version: str
    pid: Maybe[int] = None
    cpu_s: Maybe[NonNegative] = None
    max_rss_bytes: Maybe[int] = None
    period_s: Maybe[NonNegative] = None


class Warning(Part):
    """Something a reader of the figures must know."""

    code: str
    text: str


class Bill(Part):
    """All attempts of this job so far; `wasted_j` is the part of those that did not succeed."""

    attempts: Annotated[int, Field(ge=1)]
    energy_j: NonNegative
    wasted_j: NonNegative
    u95_j: Maybe[NonNegative] = None


class Rank(Part):
    """A window of one process whose figures are part of this record."""

    id: str
    host: str
    rank: Maybe[int] = None
    status: Literal["ok", "failed", "killed", "preempted", "running"]
    energy_j: NonNegative


class Record(Part):
    """Energy sidecar of one attempt of one rule."""

    schema_: Literal["energy-sidecar/1"] = Field(default="energy-sidecar/1", alias="schema")
    record: Attempt
    run: Run
    time: Time
    env: Maybe[Env] = None
    scope: Scope
    components: list[Component]
    total: Total
    baseline: Maybe[Baseline] = None
    phases: Maybe[list[Phase]] = None
    work: Maybe[Work] = None
    carbon: Maybe[Carbon] = None
    cost: Maybe[Cost] = None
    io: Maybe[Lineage] = None
    trace: TraceFile
    meter: Meter
    warnings: Maybe[list[Warning]] = None
    bill: Maybe[Bill] = None
    ranks: Maybe[list[Rank]] = None

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON values, valid against :func:`json_schema`."""
        return self.model_dump(mode="json", by_alias=True)


def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a record, generated from the types above."""
    from angelshare.described import described_schema

    schema = _without_null_defaults(described_schema(Record))
    schema["required"] = sorted({*schema["required"], "schema"})
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _without_null_defaults(node: Any) -> Any:
    if isinstance(node, dict):
        return {
            key: _without_null_defaults(value)
            for key, value in node.items()
            if not (key == "default" and value is None)
        }
    if isinstance(node, list):
        return [_without_null_defaults(item) for item in node]
    return node
