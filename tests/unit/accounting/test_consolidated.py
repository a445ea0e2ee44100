"""Reading with a memory gives what reading everything gives, and parses only what is new."""

from __future__ import annotations

from pathlib import Path

import pytest
from studies import demo_study, sidecar, write

from angelshare.accounting import consolidated
from angelshare.accounting.attempts import Record, load_attempts
from angelshare.accounting.consolidated import load_consolidated
from angelshare.accounting.settings import AccountingSettings
from angelshare.accounting.study import AttemptSource
from angelshare.accounting.tables import write_tables
from angelshare.errors import AngelshareError


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are parsed."""
    names: list[str] = []
    read = Record.read

    def counting(path: Path) -> Record:
        names.append(path.name)
        return read(path)

    monkeypatch.setattr(consolidated.Record, "read", staticmethod(counting))
    return names


def same(sources: list[AttemptSource], memory: Path) -> None:
    for kept, fresh in zip(load_consolidated(sources, memory), load_attempts(sources), strict=True):
        assert kept.equals(fresh)


def test_only_what_is_new_is_parsed(tmp_path: Path, parsed: list[str]) -> None:
    folder, memory = tmp_path / "r", tmp_path / "memory"
    sources = [AttemptSource(write(folder, sidecar("a", "evaluate", 5.0)), "r")]
    load_consolidated(sources, memory)
    assert len(parsed) == 1
    load_consolidated(sources, memory)
    assert len(parsed) == 1
    write(folder, sidecar("b", "evaluate", 7.0))
    attempts, components = load_consolidated(sources, memory)
    assert parsed[1:] == ["20260101T000000Z-b.json"]
    assert attempts["energy_j"].to_list() == [5.0, 7.0]
    assert components.height == 2
    same(sources, memory)


def test_changed_removed_and_renamed_records_are_followed(tmp_path: Path) -> None:
    folder, memory = tmp_path / "r", tmp_path / "memory"
    write(folder, sidecar("a", "evaluate", 5.0), sidecar("b", "evaluate", 7.0))
    load_consolidated([AttemptSource(folder, "r")], memory)
    write(folder, sidecar("a", "evaluate", 123456.0))
    same([AttemptSource(folder, "r")], memory)
    (folder / "20260101T000000Z-b.json").unlink()
    same([AttemptSource(folder, "r")], memory)
    same([AttemptSource(folder, None, "logits", "k")], memory)
    attempts, _ = load_consolidated([AttemptSource(folder, None, "logits", "k")], memory)
    assert attempts.select("run", "artifact_key").rows() == [(None, "k")]


def test_a_running_attempt_is_read_again(tmp_path: Path, parsed: list[str]) -> None:
    folder = write(tmp_path / "r", sidecar("a", "evaluate", 5.0, status="running"))
    for _ in range(2):
        attempts, components = load_consolidated([AttemptSource(folder, "r")], tmp_path / "memory")
        assert (attempts.height, components.height) == (1, 1)
    assert len(parsed) == 2


def test_faults_are_the_same(tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    with pytest.raises(AngelshareError, match="the energy of run r is unknown"):
        load_consolidated([AttemptSource(tmp_path / "none", "r")], memory)
    folders = [write(tmp_path / name, sidecar("a", "evaluate", 1.0)) for name in ("r", "s")]
    load_consolidated([AttemptSource(folders[0], "r")], memory)
    with pytest.raises(AngelshareError, match="attempt a stands in two records"):
        load_consolidated(
            [AttemptSource(folder, name) for folder, name in zip(folders, "rs", strict=True)],
            memory,
        )


def test_tables_with_a_memory_are_the_same(tmp_path: Path) -> None:
    study = demo_study(tmp_path / "in")
    how = AccountingSettings(draws=200)
    plain = write_tables(study, how, tmp_path / "plain")
    for _ in range(2):
        kept = write_tables(study, how, tmp_path / "kept", memory=tmp_path / "memory")
        assert kept.runs.equals(plain.runs)
        assert kept.frontier.equals(plain.frontier)
    old = tmp_path / "memory" / "attempts.parquet"
    old.write_bytes((tmp_path / "plain" / "attempts.parquet").read_bytes())
    assert write_tables(study, how, tmp_path / "kept", tmp_path / "memory").runs.equals(plain.runs)
