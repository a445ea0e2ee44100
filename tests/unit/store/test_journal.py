"""Pieces of an unfinished part: what outlives a kill, and what is never taken up."""

import pytest

from angelshare.errors import AngelshareError
from angelshare.store.artifacts import ArtifactStore
from angelshare.store.journal import UNFINISHED, Journal
from angelshare.store.verify import leftovers


def filled(folder, made_from="inputs", pieces=(b"first", b"second", b"third")):
    journal = Journal(folder, made_from)
    for piece in pieces:
        journal.add(piece)
    return journal


def test_the_next_attempt_goes_on_after_the_last_piece(tmp_path):
    filled(tmp_path / "part")
    journal = Journal(tmp_path / "part", "inputs")
    assert list(journal.pieces()) == [b"first", b"second", b"third"]
    journal.add(b"fourth")
    assert list(Journal(tmp_path / "part", "inputs").pieces())[-1] == b"fourth"


def test_pieces_of_other_inputs_are_discarded(tmp_path):
    filled(tmp_path / "part")
    assert list(Journal(tmp_path / "part", "others").pieces()) == []
    assert list(Journal(tmp_path / "part", "inputs").pieces()) == []


def test_a_damaged_piece_and_those_after_it_are_made_again(tmp_path):
    filled(tmp_path / "part")
    (damaged,) = (tmp_path / "part").glob("000001-*.piece")
    damaged.write_bytes(b"seconds")
    journal = Journal(tmp_path / "part", "inputs")
    assert list(journal.pieces()) == [b"first"]
    journal.add(b"second anew")
    assert list(Journal(tmp_path / "part", "inputs").pieces()) == [
        b"first",
        b"second anew",
        b"third",
    ]


def test_a_piece_that_cannot_be_used_is_made_again_with_those_after_it(tmp_path):
    filled(tmp_path / "part")
    journal = Journal(tmp_path / "part", "inputs")
    for piece in journal.pieces():
        if piece == b"second":
            journal.forget_last()
            break
    journal.add(b"second anew")
    again = Journal(tmp_path / "part", "inputs")
    assert list(again.pieces()) == [b"first", b"second anew"]


def test_half_a_piece_is_no_piece(tmp_path):
    filled(tmp_path / "part", pieces=[b"first"])
    (tmp_path / "part" / ".tmp-000001-abc.piece-12").write_bytes(b"sec")
    assert list(Journal(tmp_path / "part", "inputs").pieces()) == [b"first"]


def test_what_was_made_from_damaged_inputs_is_not_kept(tmp_path):
    def damaged():
        raise AngelshareError("an input is damaged")

    journal = Journal(tmp_path / "part", "inputs", damaged)
    with pytest.raises(AngelshareError, match="an input is damaged"):
        journal.add(b"wrong")
    assert list(Journal(tmp_path / "part", "inputs").pieces()) == []


def test_a_committed_part_has_no_journal_and_a_forgotten_one_is_garbage(tmp_path):
    folder = tmp_path / "corpus" / ("0" * 32) / UNFINISHED / "00000"
    journal = filled(folder)
    assert len(leftovers(ArtifactStore(tmp_path))) == 4
    journal.discard()
    assert leftovers(ArtifactStore(tmp_path)) == []
    assert not folder.exists()
