"""What a running job has used so far: sums by hand, and a file that Prometheus reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from angelshare.energy import EnergySettings, Job, window
from angelshare.energy.probes import live

JobMaker = Callable[..., Job]


def values(path: Path) -> dict[str, float]:
    """Value by component."""
    found = {}
    for line in path.read_text().splitlines():
        if line.startswith("angelshare_energy_joules{"):
            labels, value = line.rsplit(" ", 1)
            found[labels.split('component="')[1].split('"')[0]] = float(value)
    return found


def test_sums_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "a.prom"
    shown = live.Live(str(path), {"rule": 'a "b"'}, {"cpu_j": 4.0, "dram_w": 0.5})
    shown.sample(10.0, (1.0, 100.0, 8), [("gpu0", 1000, 0)], [("cpu1", 1000, 900)])
    # 2 s: 1.5 CPU seconds of 3 busy ones, 4 J each; 8 bytes at 0.5 W; 500 mJ; a wrap of 300 uJ.
    shown.sample(12.0, (2.5, 103.0, 8), [("gpu0", 1500, 0)], [("cpu1", 1000, 200)])
    # A counter that fell (reset) is held at its power: 3 s at 2 W.
    shown.sample(15.0, (2.5, 103.0, 8), [("gpu0", 10, 2000)], [("cpu1", 1000, 200)])
    assert values(path) == pytest.approx(
        {"cpu0": 6.0, "dram": 8.0 + 12.0, "gpu0": 0.5 + 6.0, "cpu1": 0.0}, abs=1e-3
    )
    text = path.read_text()
    assert 'rule="a \\"b\\""' in text
    assert "angelshare_window_seconds" in text
    assert text.endswith("\n")
    shown.remove()
    assert not path.exists()


def test_a_window_shows_and_cleans_up(
    job: JobMaker, settings: EnergySettings, tmp_path: Path
) -> None:
    folder = tmp_path / "textfiles"
    folder.mkdir()
    with window(job(), settings.model_copy(update={"live": folder})) as opened:
        (path,) = folder.glob("*.prom")
        assert 'rule="train"' in path.read_text()
        assert opened.used_j() == pytest.approx(sum(values(path).values()), abs=1.0)
    assert list(folder.iterdir()) == []
    assert opened.used_j() is None
