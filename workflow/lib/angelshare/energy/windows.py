"""Windows: what happens between opening and closing is measured and written down, come what may.

``with window(job, settings) as w:`` leaves an attempt record in ``job.attempts`` from its first
moment on, whether the body ends, raises, is terminated or is killed, and on success the declared
sidecar ``job.sidecar`` with the bill over all attempts. Times come from CLOCK_MONOTONIC, joules
from a process of its own (:mod:`angelshare.energy.probes.sampler`).
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import angelshare
from angelshare.energy.attempts import await_ranks, read_attempts, settle
from angelshare.energy.carbon import plan_carbon
from angelshare.energy.child import SamplerProcess
from angelshare.energy.closing import close_attempt, parquet_trace, text_trace
from angelshare.energy.computing import Status, utc
from angelshare.energy.constants import estimator
from angelshare.energy.enclosing import enclosing, said_to_children
from angelshare.energy.machine import descends_from, env_of, run_of
from angelshare.energy.measures import Baseline, Interval, Total
from angelshare.energy.overlaps import Presence
from angelshare.energy.probes.rapl import find_zones
from angelshare.energy.settings import CarbonSettings, EnergySettings
from angelshare.energy.sidecar import Attempt, Env, Meter, Record, Run, Scope, Time, TraceFile
from angelshare.energy.trace import read_text
from angelshare.files import publish_json
from angelshare.termination import preempted

WORK_EVERY_NS = 500_000_000
WORK = ("prompt", "generated", "trained", "cached", "evaluated", "samples", "steps")

Role = Literal["prerun", "preprocess", "teacher", "student", "eval", "other"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is being measured. Its identity, for the bill, is its rule and its wildcards."""

    rule: str
    stage: str
    role: Role
    sidecar: Path
    """The declared output, written on success only."""
    attempts: Path
    """The undeclared, append-only folder of attempt records."""
    wildcards: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    repeat: int | None = None
    workflow_id: str = ""
    config_sha256: str | None = None
    gpus: int | None = None
    """How many GPUs the job was given; 0 keeps them out, None measures those it can see."""


class Terminated(SystemExit):
    """SIGTERM or SIGINT reached the job; the window closes, then the process exits."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = number


class Window:
    """An open window; all its methods are cheap and none of them raises for the meter's sake."""

    def __init__(self, attempt: Path, live: Path) -> None:
        self.attempt = attempt
        self.live = live
        self.pid = os.getpid()
        self.events: list[dict[str, Any]] = []
        self.work: dict[str, int] = {}
        self.sampler: SamplerProcess | None = None
        self.presence: Presence | None = None
        self._work_sent_ns = 0

    def emit(self, event: str, **content: Any) -> dict[str, Any]:
        """Note an event now, here and in the trace; returns it."""
        line = {"k": "e", "e": event, "t": time.monotonic_ns(), **content}
        self.events.append(line)
        if self.sampler is not None and event != "close":
            self.sampler.send(line)
        return line

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A named stretch of the window; phases may follow or contain each other."""
        _synchronise()
        self.emit("begin", name=name)
        try:
            yield
        finally:
            _synchronise()
            self.emit("end", name=name)

    def count(self, **amounts: int) -> None:
        """Add to the work done: tokens by meaning (prompt, generated, trained, cached, evaluated),
        samples, steps. Raises TypeError for any other name."""
        for name, amount in amounts.items():
            if name not in WORK:
                raise TypeError(f"no such work: {name}; one of {', '.join(WORK)}")
            self.work[name] = self.work.get(name, 0) + int(amount)
        now_ns = time.monotonic_ns()
        if now_ns - self._work_sent_ns > WORK_EVERY_NS:
            self._work_sent_ns = now_ns
            self.emit("work", work=dict(self.work))

    def used_j(self) -> float | None:
        """Joules so far, a few seconds old, for a progress line; None before the first ones."""
        try:
            lines = self.live.read_text().splitlines()
        except OSError:
            return None
        joules = [line for line in lines if line.startswith("angelshare_energy_joules{")]
        return sum(float(line.rsplit(" ", 1)[1]) for line in joules) if joules else None

    def read(self, path: Path | str, sha256: str, producer: str | None = None) -> None:
        """Note a file that was read, its digest, and what made it."""
        self.emit("read", file={"path": str(path), "sha256": sha256, "producer": producer})

    def warn(self, code: str, text: str) -> None:
        """Note something that a reader of the record must know."""
        self.emit("warning", code=code, text=text)

    def made(self, path: Path | str, sha256: str, size_bytes: int | None = None) -> None:
        """Note a file that was made."""
        self.emit("made", file={"path": str(path), "sha256": sha256, "bytes": size_bytes})


@contextmanager
def window(
    job: Job,
    settings: EnergySettings,
    carbon: CarbonSettings | None = None,
    baseline: Baseline | None = None,
) -> Iterator[Window]:
    """Measure the body as one attempt of ``job``; see the module's text.

    A process forked within the body neither closes the window nor keeps its sampler alive.
    ``carbon`` adds grams of CO2e, ``baseline`` (from the prerun) the part above idle. Raises
    AngelshareError before the body runs when the country or region is unknown.
    """
    job = dataclasses.replace(job, attempts=job.attempts.absolute(), sidecar=job.sidecar.absolute())
    opened = _open(job, settings, carbon, baseline)
    try:
        with _terminable(), said_to_children(opened.attempt):
            yield opened
    except BaseException as error:
        if os.getpid() == opened.pid:
            _close(opened, job, *_fate(error))
        raise
    if os.getpid() == opened.pid:
        _close(opened, job, "ok", 0, None)


def _open(
    job: Job,
    settings: EnergySettings,
    carbon: CarbonSettings | None,
    baseline: Baseline | None,
) -> Window:
    plan = _plan(job, settings, carbon, baseline)
    stamp = utc(plan["start_utc_ns"]).replace("-", "").replace(":", "")
    identity = plan["record"]["id"]
    opened = Window(job.attempts / f"{stamp}-{identity}.json", Path(plan["live"]))
    trace = text_trace(opened.attempt)
    job.attempts.mkdir(parents=True, exist_ok=True)
    trace.write_text(json.dumps({"k": "plan", "plan": plan}) + "\n")
    publish_json(opened.attempt, _running(plan).to_json())
    opened.sampler = SamplerProcess(
        opened.attempt,
        trace,
        settings,
        gpu=settings.gpu == "auto" and job.gpus != 0,
        live={
            "path": plan["live"],
            "labels": {"rule": job.rule, "stage": job.stage, "id": identity},
            "factors": _factors(plan["estimator"], settings),
        },
    )
    seen = read_text(trace)
    zones = list(seen.zones) if settings.cpu_attribution == "whole_device" else []
    opened.presence = Presence(identity, job.rule, [*seen.gpus, *zones])
    _synchronise()
    opened.emit("open")
    within = plan["run"].get("within")
    if within is not None:
        text = f"this window lies within window {within}: both charge its processes' CPU and memory"
        opened.emit("nested", id=within, text=text)
    return opened


def _plan(
    job: Job,
    settings: EnergySettings,
    carbon: CarbonSettings | None,
    baseline: Baseline | None,
) -> dict[str, Any]:
    """All that a closing window needs besides its samples, as plain values."""
    start_ns, start_utc_ns = time.monotonic_ns(), time.time_ns()
    earlier = read_attempts(job.attempts, job.rule, dict(job.wildcards), sweep=False)
    record = Attempt(
        id=secrets.token_hex(4),
        rule=job.rule,
        stage=job.stage,
        role=job.role,
        wildcards=dict(job.wildcards),
        attempt=len(earlier) + 1,
        status="running",
        complete=False,
        repeat=job.repeat,
        seed=job.seed,
    )
    run = run_of(job.workflow_id, job.config_sha256)
    _, outer = enclosing()
    if outer is not None and descends_from(Run.model_validate(outer["run"])):
        run.within = outer["record"]["id"]
    estimated = settings.cpu in ("auto", "estimate") or settings.dram == "auto"
    live = (settings.live or job.attempts).absolute() / f"angelshare-{record.id}.prom"
    return {
        "record": record.model_dump(mode="json"),
        "run": run.model_dump(mode="json"),
        "env": env_of().model_dump(mode="json"),
        "settings": settings.model_dump(mode="json"),
        "estimator": dataclasses.asdict(estimator(settings.cpu_tdp_w)) if estimated else None,
        "carbon": plan_carbon(carbon, start_utc_ns / 1e9) if carbon is not None else None,
        "baseline": baseline.model_dump(mode="json") if baseline is not None else None,
        "gpus": job.gpus,
        "live": str(live),
        "start_ns": start_ns,
        "start_utc_ns": start_utc_ns,
    }


def _factors(load: dict[str, Any] | None, settings: EnergySettings) -> dict[str, float]:
    """The load model's factors for the live figure; it is not used beside a readable RAPL."""
    rapl = settings.cpu in ("auto", "rapl") and bool(find_zones(str(settings.powercap))[0])
    cpu = load is not None and not rapl and settings.cpu in ("auto", "estimate")
    dram = load is not None and not rapl and settings.dram == "auto"
    return {
        "cpu_j": load["cpu_tdp_w"] / load["threads"] if load and cpu else 0.0,
        "dram_w": load["dram_w"] / load["dram_bytes"] if load and dram else 0.0,
    }


def _running(plan: dict[str, Any]) -> Record:
    """The record of a window that has just opened."""
    nothing = Interval(value=0.0, low=0.0, high=0.0)
    now_utc = utc(plan["start_utc_ns"])
    return Record(
        record=Attempt.model_validate(plan["record"]),
        run=Run.model_validate(plan["run"]),
        time=Time(
            start_utc=now_utc,
            end_utc=now_utc,
            duration_s=0.0,
            start_mono_ns=plan["start_ns"],
            end_mono_ns=plan["start_ns"],
        ),
        env=Env.model_validate(plan["env"]),
        scope=Scope(boundary="nothing", exclusive=False),
        components=[],
        total=Total(energy_j=nothing, measured_j=0.0, estimated_j=0.0, missing=[]),
        trace=TraceFile(path="", sha256="", rows=0),
        meter=Meter(
            name="angelshare",
            version=angelshare.__version__,
            period_s=plan["settings"]["period_s"],
        ),
    )


def _close(
    opened: Window, job: Job, status: Status, exit_code: int | None, number: int | None
) -> None:
    _synchronise()
    if opened.work:
        opened.emit("work", work=dict(opened.work))
    for other in opened.presence.leave() if opened.presence is not None else []:
        opened.emit("overlap", **other)
    assert opened.sampler is not None
    opened.sampler.close(opened.emit("close"))
    await_ranks(opened.attempt)
    trace = read_text(text_trace(opened.attempt))
    trace.events = opened.events
    close_attempt(
        opened.attempt,
        status=status,
        closed_by="meter",
        exit_code=exit_code,
        signal=number,
        trace=trace,
    )
    record = settle(opened.attempt)
    if status == "ok":
        beside = os.path.relpath(parquet_trace(opened.attempt), job.sidecar.parent)
        record.trace.path = beside
        publish_json(job.sidecar, record.to_json())


def _fate(error: BaseException) -> tuple[Status, int | None, int | None]:
    """How an attempt ended: status, exit code, signal."""
    if isinstance(error, Terminated):
        return ("preempted" if preempted() else "killed"), None, error.signal
    if isinstance(error, KeyboardInterrupt):
        return "killed", None, int(signal.SIGINT)
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        return ("ok", 0, None) if code == 0 else ("failed", code, None)
    return "failed", 1, None


@contextmanager
def _terminable() -> Iterator[None]:
    """Turn SIGTERM into an exception for the body's duration, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise Terminated(number)

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def postponed_termination() -> Iterator[Callable[[], bool]]:
    """Let the body end by itself when SIGTERM comes; it asks the yielded function whether one did.

    A body that is interrupted midway by its own exception then ends in `Terminated`, as it would
    have at once; one that reaches its end is finished.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    previous = signal.signal(signal.SIGTERM, lambda number, _frame: came.append(number))
    try:
        yield lambda: bool(came)
    except Exception as error:
        if came:
            raise Terminated(came[0]) from error
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)


def _synchronise() -> None:
    """Wait for the GPUs this process uses: work that was queued belongs to this side.

    A device without memory of ours is left alone, because asking it would open a context there.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return
    for index in range(torch.cuda.device_count()):
        if torch.cuda.memory_reserved(index):
            torch.cuda.synchronize(index)
