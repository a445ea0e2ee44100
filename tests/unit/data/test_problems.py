from __future__ import annotations

import hashlib
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from angelshare.data.problems import make_dataset, teacher_problems
from angelshare.data.settings import WordProblems
from angelshare.data.tables import in_splits, read_table, write_table
from angelshare.errors import AngelshareError

SMALL = WordProblems(labelled=40, unlabelled=60, validation=20, test=30)


def value_of(question: str) -> int:
    """The question's answer, worked out from its words alone."""
    start, *steps, last = re.findall(r"[^.?]+[.?]", question)
    value = int(re.search(r"has (\d+)", start)[1])
    for step in steps:
        number = re.search(r"\d+", step)
        if re.search("doubles|twice", step):
            value *= 2
        elif re.search("triples|three times", step):
            value *= 3
        elif re.search("loses|gives away|sold", step):
            value -= int(number[0])
        else:
            assert re.search("finds|buys|come", step)
            value += int(number[0])
        assert 0 <= value <= 99
    assert last == " How many now?"
    return value


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**9))
def test_worked_answers_agree_with_the_words(seed: int) -> None:
    table = make_dataset(SMALL.model_copy(update={"seed": seed}))
    for messages in in_splits(table, ["train", "validation", "test"])["messages"].to_pylist():
        question, answer = (message["content"] for message in messages)
        *worked, final = answer.split(";")
        assert 1 <= len(worked) <= 3
        for step in worked:
            left, right = step.split("=")
            first, operation, second = re.fullmatch(r"(\d+)([*+-])(\d+)", left).groups()
            expected = {
                "+": int(first) + int(second),
                "-": int(first) - int(second),
                "*": int(first) * int(second),
            }
            assert expected[operation] == int(right)
        assert final == f"#{value_of(question)}"


def test_splits_have_their_sizes_and_unlabelled_rows_no_answer() -> None:
    table = make_dataset(SMALL)
    sizes = {
        split: in_splits(table, [split]).num_rows
        for split in ("train", "unlabelled", "validation", "test")
    }
    assert sizes == {"train": 40, "unlabelled": 60, "validation": 20, "test": 30}
    for split, messages in zip(
        table["split"].to_pylist(), table["messages"].to_pylist(), strict=True
    ):
        roles = [message["role"] for message in messages]
        assert roles == (["user"] if split == "unlabelled" else ["user", "assistant"])


def test_no_question_occurs_twice_anywhere() -> None:
    questions = [row[0]["content"] for row in make_dataset(SMALL)["messages"].to_pylist()]
    questions += [problem.question for problem in teacher_problems(SMALL, 2000)]
    assert len(set(questions)) == len(questions)


def test_held_out_problems_do_not_move_when_more_are_labelled() -> None:
    held_out = [
        in_splits(make_dataset(SMALL.model_copy(update=change)), ["test", "validation"]).to_pylist()
        for change in ({}, {"labelled": 80, "unlabelled": 0})
    ]
    assert held_out[0] == held_out[1]


def test_the_seed_decides_the_bytes(tmp_path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_table(make_dataset(SMALL.model_copy(update={"seed": seed})), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()
    assert read_table(tmp_path / "a").equals(make_dataset(SMALL))


def test_too_many_problems_are_refused(monkeypatch) -> None:
    monkeypatch.setattr("angelshare.data.problems.LARGEST", 2)
    monkeypatch.setattr("angelshare.data.problems.MAX_STEPS", 1)
    with pytest.raises(AngelshareError, match="not 1000 different word problems"):
        teacher_problems(SMALL.model_copy(update={"labelled": 1, "test": 1}), 1000)


def test_the_meaning_of_the_default_is_pinned() -> None:
    """A change here changes what existing artifacts mean: raise the dataset stage's version."""
    rows = json.dumps(make_dataset(WordProblems()).to_pylist(), sort_keys=True)
    assert hashlib.sha256(rows.encode()).hexdigest() == (
        "1217f47bef6dddad7a10a25df4e81505be1326f1b1a4c672f435e8b2b3523ccb"
    )
