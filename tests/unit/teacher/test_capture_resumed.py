"""A killed capture goes on after its finished windows and ends with the same bytes."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_teacher import nothing

from angelshare.data.sequences import encode_table
from angelshare.store.journal import Journal
from angelshare.teacher import logits
from angelshare.teacher.logits import capture_logits
from angelshare.teacher.models import load_tokenizer
from angelshare.teacher.pieces import packed, unpacked
from angelshare.teacher.settings import CaptureSettings
from angelshare.teacher.windows import windows_of

TOP5 = {"name": "topk_tail", "top_k": 5, "top_p": 0.9}
DRAWS = {"name": "rskd", "samples": 7}


@pytest.fixture(autouse=True)
def small_windows(monkeypatch) -> None:
    """Windows of about three rows; the alphabet comes from about the first five rows."""
    monkeypatch.setattr("angelshare.teacher.windows.TOKENS_PER_WINDOW", 130)
    monkeypatch.setattr("angelshare.teacher.cache.ALPHABET_TARGETS", 100)
    monkeypatch.setattr("angelshare.teacher.cache.TARGETS_PER_GROUP", 30)


class Attempts:
    """Captures of one part, as its jobs make them; ``captured`` has the rows of every batch."""

    def __init__(self, model_dir, table, folder, codec, monkeypatch) -> None:
        self.model_dir, self.table, self.folder = model_dir, table, folder
        self.settings = CaptureSettings(
            codec=codec, temperatures=(0.5, 1.0), max_length=96, batch_tokens=100
        )
        self.captured: list[list[str]] = []
        original = logits.capture_batch

        def noted(model, head, settings, rows):
            self.captured.append([row.id for row in rows])
            return original(model, head, settings, rows)

        monkeypatch.setattr(logits, "capture_batch", noted)

    def run(self, name: str, *, journal: str | None = None, count=nothing) -> bytes:
        out = self.folder / name
        capture_logits(
            self.model_dir,
            self.table,
            self.settings,
            out,
            progress=nothing,
            count=count,
            journal=Journal(self.folder / journal, "inputs") if journal else None,
        )
        return out.read_bytes()

    def killed(self, after: int) -> None:
        """An attempt with a journal that is interrupted within its batch number ``after``."""
        batches: list[int] = []

        def interrupt(cached: int) -> None:
            batches.append(cached)
            if len(batches) == after:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            self.run("broken", journal="part", count=interrupt)
        assert not (self.folder / "broken").exists()

    @property
    def pieces(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "part").glob("*.piece"))


@pytest.fixture(params=[TOP5, DRAWS], ids=["topk_tail", "rskd"])
def attempts(request, model_dir, dataset, tmp_path, monkeypatch) -> Attempts:
    return Attempts(model_dir, dataset, tmp_path, request.param, monkeypatch)


@pytest.fixture
def windows(attempts) -> list[list[list[str]]]:
    """The ids of every window's batches."""
    tokenizer = load_tokenizer(attempts.model_dir)
    rows = encode_table(attempts.table, tokenizer, 96)
    lengths = [len(row.encoded.input_ids) for row in rows]
    found = windows_of(lengths, 100)
    assert len(found) >= 5
    return [[[rows[i].id for i in batch] for batch in batches] for batches in found]


@pytest.mark.parametrize("finished", [0, 1, 3, 4])
def test_a_killed_capture_goes_on_and_ends_with_the_same_bytes(
    attempts, windows, finished, monkeypatch
) -> None:
    straight = attempts.run("straight")
    whole = attempts.captured.copy()
    assert whole == [batch for window in windows for batch in window]
    assert attempts.run("kept", journal="other") == straight

    attempts.captured.clear()
    before = sum(len(window) for window in windows[:finished])
    attempts.killed(after=before + 1)
    assert len(attempts.pieces) == finished
    assert attempts.captured == whole[: before + 1]

    attempts.captured.clear()
    counted: list[int] = []
    resumed = attempts.run("broken", journal="part", count=lambda cached: counted.append(cached))
    assert resumed == straight
    assert attempts.captured == whole[before:]  # no window was captured twice
    assert len(counted) == len(attempts.captured)
    assert len(attempts.pieces) == len(windows)

    monkeypatch.setattr(logits, "load_causal_lm", lambda *_, **__: pytest.fail("nothing was left"))
    assert attempts.run("broken", journal="part") == straight


def test_a_capture_killed_at_every_window_ends_with_the_same_bytes(attempts, windows) -> None:
    straight = attempts.run("straight")
    attempts.captured.clear()
    for window in windows[:-1]:
        attempts.killed(after=len(window) + 1)
    assert attempts.run("broken", journal="part") == straight
    again = [window[0] for window in windows[1:]]  # the batch at which each attempt was killed
    assert sorted(attempts.captured) == sorted([*(b for w in windows for b in w), *again])


def test_pieces_of_other_sequences_are_captured_anew(attempts, windows, tmp_path) -> None:
    straight = attempts.run("straight")
    attempts.run("kept", journal="other")
    kept = Journal(tmp_path / "other", "inputs").pieces()
    first, second, third = next(kept), next(kept), next(kept)
    journal = Journal(tmp_path / "part", "inputs")
    for piece in (first, third, second):
        journal.add(piece)
    attempts.captured.clear()
    assert attempts.run("broken", journal="part") == straight
    assert attempts.captured == [batch for window in windows[1:] for batch in window]
    attempts.captured.clear()
    assert attempts.run("broken", journal="part") == straight
    assert attempts.captured == []


def test_a_window_that_cannot_be_kept_publishes_nothing(attempts, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Journal, "add", full)
    with pytest.raises(OSError, match="no space left"):
        attempts.run("broken", journal="part")
    assert not (attempts.folder / "broken").exists()


def test_a_piece_gives_back_every_bit(attempts, tmp_path) -> None:
    attempts.run("kept", journal="part")
    for piece in Journal(tmp_path / "part", "inputs").pieces():
        rows = unpacked(piece, 2)
        assert packed(rows) == piece
        for row in rows:
            assert row.log_partition.shape == row.log_tail.shape == (len(row.kept), 2)
            floats = [row.logits, row.log_partition, row.log_tail, row.gold_logprob, row.entropy]
            assert {array.dtype for array in floats} == {np.dtype(np.float32)}
            assert row.kept.dtype == row.token_ids.dtype == np.int32
            assert row.kept.sum() == len(row.token_ids) == len(row.logits)
