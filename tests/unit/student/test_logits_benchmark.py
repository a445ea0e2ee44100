"""`benchmarks/logits` on tiny sizes: every part runs, and the table states what was measured."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
import torch

from angelshare.teacher.settings import CaptureSettings, RskdSettings, TopkTailSettings

TINY = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


@pytest.fixture
def benchmark(monkeypatch):
    """The command with a vocabulary of 500 and tiny models."""
    module = importlib.import_module("benchmarks.logits.__main__")
    for name in ("teachers.VOCABULARY", "step.VOCAB", "__main__.VOCAB"):
        monkeypatch.setattr(f"benchmarks.logits.{name}", 500)
    codecs = {
        "topk_tail": CaptureSettings(codec=TopkTailSettings(top_k=9, top_p=0.9)),
        "rskd": CaptureSettings(codec=RskdSettings(samples=5)),
    }
    top = CaptureSettings(codec=TopkTailSettings(top_k=9, top_p=1.0))
    monkeypatch.setattr(module, "CODECS", codecs)
    monkeypatch.setattr(module, "SETTINGS", {**codecs, "top 100": top})
    monkeypatch.setattr(module, "WAITING_STUDENT", TINY)
    monkeypatch.setattr(module, "OLMO2_1B", TINY)
    monkeypatch.setattr(module, "shape", lambda logits: {})
    monkeypatch.setattr("benchmarks.logits.teachers.LIKELY_IDS", 400)
    sizes = module.Sizes(tokens=12, vocab=500, hidden=16, kept=9)
    monkeypatch.setattr(module, "Sizes", lambda: sizes)
    return module


def test_one_run_makes_the_whole_table(benchmark, tmp_path) -> None:
    torch.set_num_threads(1)
    found = benchmark.measure(SimpleNamespace(model=None, rows=8, repeats=1), tmp_path)
    rows = {row["name"]: row for row in benchmark.figures(found)}
    table = benchmark.table_of(list(rows.values()))
    assert len(table.splitlines()) == len(rows) + 2
    # Every ratio that has a target is there, and whether it was met follows from the value.
    targets = {name: row for name, row in rows.items() if row["met"] is not None}
    assert set(targets) == {
        "topk_tail, bytes per target",
        "topk_tail, paper over ours",
        "rskd, bytes per target",
        "rskd, paper over ours",
        "capture topk_tail, over forward",
        "capture rskd, over forward",
        "training waits, in memory",
        "training waits, read ahead",
        "loss, extra over dense KL",
        "step, KD over SFT",
        "step, KD over transformers' SFT",
    }
    for row in targets.values():
        kept = row["value"] <= row["most"] if row["most"] else row["value"] >= row["least"]
        assert row["met"] == kept
    assert all(row["meaning"] for row in rows.values())
    one = found["waiting"]["read ahead"]
    assert (one["workers"], found["waiting"]["in memory"]["workers"]) == (1, 0)
    assert one["share"] == pytest.approx(one["wait_s"] / (one["wait_s"] + one["step_s"]))
    stored = found["storage"]["topk_tail"]
    path = tmp_path / "topk_tail.parquet"
    assert stored["bytes_per_target"] == pytest.approx(path.stat().st_size / found["targets"])


def test_shares_are_percent_and_missed_targets_say_so(benchmark) -> None:
    from benchmarks.logits.figures import figure, table_of

    rows = [
        figure("a", 0.2, "share", "x", most=0.15),
        figure("b", 14.0, "×", "y", least=13),
        figure("c", 12345.6, "B", "z"),
    ]
    assert table_of(rows).splitlines()[2:] == [
        "| a | 20.00% | ≤ 15.00% | missed | x |",
        "| b | 14 × | ≥ 13 × | met | y |",
        "| c | 12,346 B |  |  | z |",
    ]
