"""RAPL from trees of plain files, every wrap caught; estimates that follow the CPU time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from angelshare.energy.constants import Estimator
from angelshare.energy.cpu import job_cpu, measure_cpu
from angelshare.energy.curves import Measured
from angelshare.energy.probes import rapl
from angelshare.energy.probes.process_tree import Machine, ProcessTree, cgroup_file, cgroup_s
from angelshare.energy.settings import EnergySettings
from angelshare.energy.trace import Sample, Trace

RANGE_UJ = 262_143_328_850
LOAD = Estimator(
    cpu_model="a CPU",
    cpu_tdp_w=200.0,
    cpu_source="a test",
    threads=4,
    dram_w=20.0,
    dram_bytes=1000,
    source="a test",
)

CLOCK_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def zone(root: Path, entry: str, name: str, counter: int | None = 1000) -> None:
    """One zone of a powercap tree; without a counter its file cannot be read."""
    folder = root / entry
    folder.mkdir()
    (folder / "name").write_text(name + "\n")
    (folder / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    if counter is not None:
        (folder / "energy_uj").write_text(f"{counter}\n")


def test_packages_and_dram_are_found_once_each(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    zone(tmp_path, "intel-rapl:0:0", "core")
    zone(tmp_path, "intel-rapl:0:1", "dram")
    zone(tmp_path, "intel-rapl:1", "package-1", 5_000_000)
    zone(tmp_path, "intel-rapl:1:0", "dram")
    zone(tmp_path, "intel-rapl:2", "psys")
    zone(tmp_path, "intel-rapl-mmio:0", "package-0")
    (tmp_path / "intel-rapl").mkdir()
    zones, remarks = rapl.find_zones(str(tmp_path))
    assert [(one.id, one.kind) for one in zones] == [
        ("cpu0", "cpu_package"),
        ("dram0", "dram"),
        ("cpu1", "cpu_package"),
        ("dram1", "dram"),
    ]
    assert remarks == []


def test_mirrored_dies_are_counted_once(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0-die-0", 9_000_000_000)
    zone(tmp_path, "intel-rapl:1", "package-0-die-1", 9_000_400_000)
    zone(tmp_path, "intel-rapl:2", "package-1-die-0", 9_000_000_000)
    zone(tmp_path, "intel-rapl:3", "package-1-die-1", 3_000_000_000)
    zones, remarks = rapl.find_zones(str(tmp_path))
    assert [one.id for one in zones] == ["cpu0", "cpu2", "cpu3"]
    assert remarks == ["package-0-die-1 mirrors package-0-die-0 and is counted once"]


def test_an_unreadable_counter_is_said(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", counter=None)
    zones, remarks = rapl.find_zones(str(tmp_path))
    assert zones == []
    assert "is not readable" in remarks[0]
    assert rapl.find_zones(str(tmp_path / "nowhere")) == ([], [])


def trace_of(
    counters: list[int | None], cpu_s: list[float], busy_s: list[float], rss: int = 0
) -> Trace:
    """One sample a second of one package, over exactly the window."""
    settings = EnergySettings(period_s=1.0)
    last = len(counters) - 1
    trace = Trace(
        plan={"settings": settings.model_dump(mode="json"), "start_ns": 0},
        zones={"cpu0": {"id": "cpu0", "kind": "cpu_package", "name": "p", "range_uj": RANGE_UJ}},
        events=[{"e": "open", "t": 0}, {"e": "close", "t": last * 10**9}],
    )
    for second, (value, own, busy) in enumerate(zip(counters, cpu_s, busy_s, strict=True)):
        trace.samples.append(
            Sample(
                t_ns=second * 10**9,
                utc_ns=0,
                boot_ns=0,
                cpu_s=own,
                cgroup_s=None,
                busy_s=busy,
                rss_bytes=rss,
                used_bytes=0,
                gpu={},
                rapl={"cpu0": value},
            )
        )
    return trace


def package(trace: Trace, **changes: Any) -> Measured:
    settings = EnergySettings(period_s=1.0, dram="none").model_copy(update=changes)
    return measure_cpu(trace, settings, LOAD, {})[0]


def test_a_job_killed_at_its_first_sample_is_billed_for_its_memory() -> None:
    trace = trace_of([None, None], [0.0, 0.1], [0.0, 0.1], rss=500)
    del trace.samples[0]
    assert [sample.t_ns for sample in trace.samples] == [trace.end_ns]
    _, memory = measure_cpu(trace, EnergySettings(period_s=1.0), LOAD, {})
    assert memory.component.energy_j == pytest.approx(10.0)


@effort(deadline=None)
@given(
    watts=st.lists(st.integers(0, 4000), min_size=2, max_size=200),
    first=st.integers(0, RANGE_UJ - 1),
)
def test_every_wrap_is_caught(watts: list[int], first: int) -> None:
    counters: list[int | None] = [first]
    total = first
    for one in watts:
        total += one * 10**6
        counters.append(total % RANGE_UJ)
    busy = [float(second) for second in range(len(counters))]
    found = package(trace_of(counters, busy, busy), cpu_attribution="whole_device").component
    if sum(watts) == 0:
        assert found.energy_j is None, "a counter that never moved resolves nothing"
        return
    assert found.energy_j == pytest.approx(sum(watts), abs=1e-3)
    assert found.counter is not None
    assert found.counter.wraps == total // RANGE_UJ


def test_several_wraps_in_one_window() -> None:
    counters: list[int | None] = [(i * 100_000_000_000) % RANGE_UJ for i in range(11)]
    trace = trace_of(counters, [0.0] * 11, [float(i) for i in range(11)])
    # 100 kJ each second is beyond any package: such a fall is a reset, never a wrap.
    assert "counter_reset" in {warning.code for warning in package(trace).warnings}
    slow: list[int | None] = [(i * 4_000_000_000) % RANGE_UJ for i in range(201)]
    seconds = [float(i) for i in range(201)]
    found = package(trace_of(slow, seconds, seconds), cpu_attribution="whole_device").component
    assert found.counter is not None
    assert found.counter.wraps == 3
    assert found.energy_j == pytest.approx(800_000.0)


def test_the_job_is_charged_its_share() -> None:
    """100 W; the job has all of the busy time in the first 5 s, a quarter of it in the next 5 s."""
    counters: list[int | None] = [i * 100 * 10**6 for i in range(11)]
    own = [float(i) if i <= 5 else 5 + (i - 5) * 0.5 for i in range(11)]
    busy = [float(i) if i <= 5 else 5 + (i - 5) * 2.0 for i in range(11)]
    found = package(trace_of(counters, own, busy)).component
    assert found.quality == "measured"
    assert found.attribution == "cpu_time_share"
    assert found.device_energy_j == pytest.approx(1000.0)
    assert found.energy_j == pytest.approx(500.0 + 125.0)
    assert found.share == pytest.approx(0.625)
    whole = package(trace_of(counters, own, busy), cpu_attribution="whole_device").component
    assert whole.energy_j == pytest.approx(1000.0)
    assert whole.u is not None
    assert whole.u.attribution_rel95 == 0.0


def test_a_counter_that_pauses_loses_nothing() -> None:
    counters: list[int | None] = [i * 100 * 10**6 for i in range(11)]
    counters[4] = counters[5] = None
    seconds = [float(i) for i in range(11)]
    found = package(trace_of(counters, seconds, seconds)).component
    assert found.energy_j == pytest.approx(1000.0)


def test_the_load_model_is_codecarbons_process_mode() -> None:
    """TDP 200 W, 4 threads, 6 CPU seconds: 300 J; 20 W of memory, a tenth resident for 4 s: 8 J."""
    trace = trace_of([None] * 5, [10.0, 11.5, 13.0, 14.5, 16.0], [0.0] * 5, rss=100)
    trace.zones = {}
    cpu, dram = measure_cpu(trace, EnergySettings(period_s=1.0), LOAD, {})
    assert cpu.component.energy_j == pytest.approx(300.0)
    # Half of it, and one tick of 10 ms at 50 W.
    assert cpu.component.u95_j == pytest.approx((150.0**2 + 0.5**2) ** 0.5)
    assert cpu.component.attribution == "cpu_time_share"
    assert dram.component.energy_j == pytest.approx(8.0)
    for part in (cpu, dram):
        assert (part.component.quality, part.component.method) == ("estimated", "load_model")


def test_a_replaced_sampler_does_not_take_cpu_time_back() -> None:
    trace = trace_of([None] * 5, [10.0, 12.0, 11.0, 12.0, 13.0], [0.0] * 5)
    assert job_cpu(trace)[-1][1] == pytest.approx(4.0)


def spin(cpu_s: float, then_s: float = 0.0) -> list[str]:
    program = f"import time\nwhile time.process_time() < {cpu_s}: pass\ntime.sleep({then_s})"
    return [sys.executable, "-I", "-S", "-c", program]


def test_the_tree_counts_children_waited_for_or_not() -> None:
    tree = ProcessTree(os.getpid())
    before_s, _ = tree.sample()
    subprocess.run(spin(0.2), check=True)
    waited_s, _ = tree.sample()
    assert waited_s - before_s >= 0.18
    child = subprocess.Popen(spin(0.2, then_s=60))
    while True:
        running_s, resident = tree.sample()
        if running_s - waited_s >= 0.18:
            break
        time.sleep(0.02)
    assert child.pid in tree.members
    assert resident > 0
    child.kill()
    child.wait()
    ended_s, _ = tree.sample()
    assert ended_s >= running_s - CLOCK_TICK_S  # what a waited child used is known to one tick
    assert child.pid not in tree.members


def test_what_an_orphan_used_is_kept() -> None:
    """A grandchild whose parent died first goes to init, yet its seconds stay the job's."""
    program = f"import subprocess; subprocess.Popen({spin(0.2, then_s=60)!r}); input()"
    tree = ProcessTree(os.getpid())
    start_s, _ = tree.sample()
    parent = subprocess.Popen([sys.executable, "-I", "-S", "-c", program], stdin=subprocess.PIPE)
    while True:
        known_s, _ = tree.sample()
        if known_s - start_s >= 0.18:
            break
        time.sleep(0.02)
    (orphan,) = [pid for pid, one in tree.members.items() if one.parent == parent.pid]
    assert parent.stdin is not None
    parent.stdin.close()
    parent.wait()
    tree.sample()
    assert orphan in tree.members
    os.kill(orphan, 9)
    while os.path.exists(f"/proc/{orphan}/stat") and orphan in tree.members:
        last_s, _ = tree.sample()
    last_s, _ = tree.sample()
    assert last_s >= known_s


def test_machine_figures_are_plausible() -> None:
    machine = Machine()
    assert machine.busy_s() > 0
    assert machine.used_bytes() > 0


def test_threads_are_no_processes() -> None:
    """A child's threads have numbers in /proc and the child's parent, yet are counted once."""
    program = (
        "import threading, time\n"
        "for _ in range(3): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "print('up', flush=True)\ntime.sleep(60)"
    )
    tree = ProcessTree(os.getpid())
    tree.sample()
    tree.sample()
    command = [sys.executable, "-I", "-S", "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        for _ in range(3):
            tree.sample()
        threads = set(map(int, os.listdir(f"/proc/{child.pid}/task")))
        assert len(threads) == 4
        assert threads & set(tree.members) == {child.pid}
        child.kill()


def test_a_control_group_is_charged_where_it_is_recorded() -> None:
    trace = trace_of([None] * 5, [0.0, 1.0, 2.0, 3.0, 4.0], [0.0] * 5)
    trace.zones = {}
    for second, sample in enumerate(trace.samples):
        sample.cgroup_s = 7.0 + 1.5 * second
    cpu = measure_cpu(trace, EnergySettings(period_s=1.0), LOAD, {})[0].component
    assert cpu.attribution == "cgroup"
    assert cpu.energy_j == pytest.approx(6 * 50.0)


@pytest.mark.parametrize(
    ("lines", "name", "content", "seconds"),
    [
        ("0::/slurm/job_9\n", "slurm/job_9/cpu.stat", "usage_usec 2500000\nuser_usec 1\n", 2.5),
        (
            "3:memory:/x\n2:cpu,cpuacct:/slurm/job_9\n",
            "cpu,cpuacct/slurm/job_9/cpuacct.usage",
            "2500000000\n",
            2.5,
        ),
    ],
)
def test_control_groups_of_both_versions(
    tmp_path: Path, lines: str, name: str, content: str, seconds: float
) -> None:
    own = tmp_path / "own"
    own.write_text(lines)
    assert cgroup_file(str(tmp_path), str(own)) is None
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert cgroup_file(str(tmp_path), str(own)) == str(path)
    assert cgroup_s(str(path)) == seconds
    own.write_text("0::/\n1:cpuacct:/\n")
    assert cgroup_file(str(tmp_path), str(own)) is None
    assert cgroup_s(str(tmp_path / "gone")) is None


def test_a_living_process_is_known_to_the_millisecond() -> None:
    tree = ProcessTree(os.getpid())
    before_s, _ = tree.sample()
    until = time.process_time() + 0.004
    while time.process_time() < until:
        pass
    after_s, _ = tree.sample()
    assert after_s - before_s >= 0.004


def test_a_package_that_did_not_move_is_unresolved_not_zero() -> None:
    found = package(trace_of([5, 5, 5], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0]))
    assert found.component.energy_j is None
    assert [warning.code for warning in found.warnings] == ["unresolved"]
