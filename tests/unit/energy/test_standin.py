"""The whole meter on played-back GPUs: real sampler, real NVML calls, exact oracle."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from standins import Nvml

from angelshare.energy import EnergySettings, Job, window
from angelshare.energy.attempts import validate_sidecar
from angelshare.energy.computing import compute
from angelshare.energy.measures import Component
from angelshare.energy.prerun import idle_baseline, look_at_machine
from angelshare.energy.sidecar import Record
from angelshare.energy.trace import read_parquet

JobMaker = Callable[..., Job]
GPUS = EnergySettings(period_s=0.1, cpu="none", dram="none")
PEAK_W = 600.0
TICK_S = 0.1


def measured(job: Job, settings: EnergySettings = GPUS, seconds: float = 0.8) -> Record:
    with window(job, settings):
        time.sleep(seconds)
    return validate_sidecar(job.sidecar)


def gpus(record: Record) -> list[Component]:
    return [part for part in record.components if part.kind == "gpu"]


def truth(nvml: Nvml, record: Record, gpu: int) -> float:
    return nvml.oracle_j(gpu, record.time.start_mono_ns, record.time.end_mono_ns)


def test_eight_gpus_are_summed_and_listed(nvml: Nvml, job: JobMaker) -> None:
    shapes = [
        ["seg 1 300 300"],
        ["seg 0.15 350 350", "seg 0.15 250 250", "loop"],
        ["seg 60 0 600"],
        ["seg 0.033 400 400", "seg 0.077 300 300", "loop"],
    ]
    lines = [f"tick {TICK_S}"]
    for index in range(8):
        lines += [f"gpu GPU-{index} H100", *shapes[index % 4]]
    nvml.play(*lines)
    record = measured(job())
    assert [part.id for part in gpus(record)] == [f"gpu{index}" for index in range(8)]
    for index, part in enumerate(gpus(record)):
        assert part.method == "nvml_counter"
        assert part.attribution == "whole_device"
        assert part.energy_j is not None
        assert part.u95_j is not None
        error_j = abs(part.energy_j - truth(nvml, record, index))
        assert error_j <= TICK_S * PEAK_W
        assert part.counter is not None
        assert part.counter.pre_pad_s is not None
        assert part.counter.post_pad_s is not None
    assert record.scope.exclusive
    assert record.env is not None
    assert record.env.gpu_count == 8
    total = record.total
    assert total.energy_j.value == pytest.approx(sum(p.energy_j or 0 for p in gpus(record)))
    again = compute(read_parquet(job().sidecar.parent / record.trace.path))
    assert again.components == record.components


def test_only_the_jobs_gpus_are_charged(
    nvml: Nvml, job: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [text for i in range(4) for text in (f"gpu GPU-{i}x H100", f"seg 1 {i}00 {i}00")]
    nvml.play(*lines)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-2,1")
    record = measured(job(), seconds=0.4)
    assert [part.id for part in gpus(record)] == ["gpu2", "gpu1"]
    assert gpus(record)[0].power is not None
    assert gpus(record)[0].power.avg_w == pytest.approx(200, rel=0.05)
    assert gpus(measured(job(gpus=0), seconds=0.1)) == []
    given = measured(job(gpus=1), seconds=0.2)
    assert len(gpus(given)) == 2
    assert "more_gpus_than_given" in {warning.code for warning in given.warnings or []}


def test_promised_gpus_that_are_not_there_are_missing(job: JobMaker) -> None:
    record = measured(job(gpus=2), seconds=0.05)
    assert "gpu" in record.total.missing
    assert "gpu_unreadable" in {warning.code for warning in record.warnings or []}


def test_a_reset_and_a_lost_gpu(nvml: Nvml, job: JobMaker, tmp_path: Path) -> None:
    lost, reset = tmp_path / "lost", tmp_path / "reset"
    nvml.play(
        *["gpu GPU-0 H100", "seg 1 300 300", f"reset {reset}"],
        *["gpu GPU-1 H100", "seg 0.2 350 350", "seg 0.2 250 250", "loop", f"lost {lost}"],
    )
    one = job()
    with window(one, GPUS):
        time.sleep(0.3)
        reset.touch()
        lost.touch()
        time.sleep(0.6)
        lost.unlink()
        time.sleep(0.3)
    record = validate_sidecar(one.sidecar)
    fell, gone = gpus(record)
    for index, part in enumerate((fell, gone)):
        assert part.energy_j is not None
        assert part.u95_j is not None
        assert abs(part.energy_j - truth(nvml, record, index)) <= max(60.0, part.u95_j)
    assert fell.counter is not None
    assert fell.counter.resets == 1
    assert gone.power is not None
    assert {gap.filled_by for gap in gone.power.gaps or []} == {"counter"}
    assert (gone.power.coverage or 1.0) < 0.7


def test_a_gpu_that_stands_in_for_a_lost_one_is_not_charged(
    nvml: Nvml, job: JobMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = tmp_path / "lost"
    nvml.play(
        *["gpu GPU-0x H100", "seg 1 100 100", f"lost {lost}"],
        *["gpu GPU-1x H100", "seg 1 700 700"],
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-0x")
    one = job()
    with window(one, GPUS):
        time.sleep(0.4)
        lost.touch()
        time.sleep(0.6)
    record = validate_sidecar(one.sidecar)
    (part,) = gpus(record)
    assert part.device is not None
    assert part.device.uuid == "GPU-0x"
    assert part.energy_j is not None
    assert part.u is not None
    assert part.energy_j == pytest.approx(100.0 * record.time.duration_s, rel=0.15)
    assert (part.u.gap_j95 or 0.0) >= 100.0 * 0.5
    assert "gpu_lost" in {warning.code for warning in record.warnings or []}, record.warnings


def test_slow_answers_widen_the_bound(nvml: Nvml, job: JobMaker) -> None:
    nvml.play("latency_us 60000", "gpu GPU-0 H100", "seg 1 300 300")
    record = measured(job())
    (part,) = gpus(record)
    assert part.energy_j is not None
    assert part.u is not None
    error_j = abs(part.energy_j - truth(nvml, record, 0))
    assert error_j <= (part.u.edge_j95 or 0.0) + 1e-6 * part.energy_j + 0.01


def test_no_counter_and_no_fields(nvml: Nvml, job: JobMaker) -> None:
    nvml.play("mean 0.1", "gpu GPU-0 P100", "seg 1 250 250", "nocounter", "nofields")
    record = measured(job())
    (part,) = gpus(record)
    assert part.method == "nvml_power_instant"
    assert part.energy_j == pytest.approx(truth(nvml, record, 0), rel=0.01)


def test_module_scope_and_mig_are_said(
    nvml: Nvml, job: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml.play(
        *["gpu GPU-0 NVIDIA-GH200-480GB", "seg 1 300 300"],
        *["gpu GPU-1 A100", "seg 1 200 200", "mig MIG-aa 2", "mig MIG-bb 3"],
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,MIG-aa,MIG-bb")
    module, mig = gpus(measured(job(), GPUS.model_copy(update={"mig": "slices"}), 0.4))
    assert module.device is not None
    assert module.device.power_scope == "module"
    assert mig.device is not None
    assert mig.device.mig == "MIG-aa,MIG-bb"
    assert mig.attribution == "mig_slices"
    assert mig.share == pytest.approx(5 / 7)


def test_prerun_measures_idle_and_tick(nvml: Nvml) -> None:
    nvml.play("tick 0.05", "gpu GPU-0 H100", "seg 1 72 72")
    found = idle_baseline(0.5, GPUS)
    # Half a second with both edges known to 10 ms: 4 %, and the scheduler's delays.
    assert found["baseline"]["idle_w"]["GPU-0"] == pytest.approx(72, rel=0.06)
    row = found["devices"][0]
    assert row["meter"] == "nvml_counter"
    assert row["tick_ms"] == pytest.approx(50, abs=25)
    assert row["agreement_ok"] is None, "half a second is too short to compare"


def test_prerun_tells_idle_with_and_without_a_context(
    nvml: Nvml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in draws 70 W; a module in torch's place stands for a context."""
    nvml.play("tick 0.05", "gpu GPU-0 H100", "seg 1 70 70")
    (tmp_path / "torch.py").write_text(
        "zeros = print\nclass cuda:\n    device_count = staticmethod(lambda: 0)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    found = look_at_machine(0.3, GPUS)
    assert found["baseline"]["state"] == "no_context"
    assert found["with_context"]["baseline"]["state"] == "context_open"
    row = found["table"][0]
    assert row["component"] == "gpu0"
    for column in ("idle", "with context"):
        assert float(row[column].removesuffix(" W")) == pytest.approx(70, rel=0.1)


def test_telemetry_is_in_the_trace(nvml: Nvml, job: JobMaker) -> None:
    nvml.play("gpu GPU-0 H100", "seg 1 300 300")
    one = job()
    with window(one, GPUS) as opened, opened.phase("train"):
        until = time.process_time() + 0.5
        while time.process_time() < until:
            pass
    record = validate_sidecar(one.sidecar)
    table = pq.read_table(one.sidecar.parent / record.trace.path)
    assert table.column_names == record.trace.columns
    last = {name: table.column(name)[-2].as_py() for name in table.column_names}
    # What the stand-in plays back.
    powers = last["gpu0_average_mw"], last["gpu0_instant_mw"]
    assert powers == pytest.approx((300_000, 300_000), abs=2)
    assert (last["gpu0_util_percent"], last["gpu0_memory_bytes"]) == (50, 20 * 2**30)
    assert (last["gpu0_temperature_c"], last["gpu0_throttle"]) == (55, 4)
    assert (last["gpu0_sm_mhz"], last["gpu0_memory_mhz"]) == (1980, 2619)
    assert last["used_bytes"] > last["rss_bytes"] > 2**20
    job_cpu = [one for one in table.column("job_cpu_percent").to_pylist() if one is not None]
    busy = [one for one in table.column("busy_cpu_percent").to_pylist() if one is not None]
    assert max(job_cpu) > 40
    assert max(busy) > 40
    assert "train" in table.column("phase").to_pylist()


def test_nested_windows_on_one_gpu_are_said(nvml: Nvml, job: JobMaker, tmp_path: Path) -> None:
    nvml.play("gpu GPU-0 H100", "seg 1 300 300", "gpu GPU-1 H100", "seg 1 300 300")
    outer = job()
    inner = job(rule="inner", sidecar=tmp_path / "inner.json", attempts=tmp_path / "b")
    with window(outer, GPUS), window(inner, GPUS):
        pass
    alone = measured(job(rule="alone", sidecar=tmp_path / "alone.json"), seconds=0.2)
    for path, other in ((outer.sidecar, "inner"), (inner.sidecar, "train")):
        record = validate_sidecar(path)
        assert record.scope.exclusive is False
        (text,) = [one.text for one in record.warnings or [] if one.code == "overlap"]
        assert "GPU-0, GPU-1" in text
        assert f"of rule {other}" in text
    assert alone.scope.exclusive
    assert not [one for one in alone.warnings or [] if one.code == "overlap"]
