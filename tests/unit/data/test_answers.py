"""What a filter keeps of a corpus, and how mathematical answers are compared."""

from __future__ import annotations

import pytest

from angelshare.data.answers import (
    filter_answers,
    final_answer,
    original_answers,
    repetition,
)
from angelshare.data.settings import AnswerFilter
from angelshare.data.tables import CORPUS_SCHEMA, sequence_table


def row(name: str, answer: str | None, tokens: int, finish: str = "stop") -> dict:
    messages = [{"role": "user", "content": "?"}]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    return {
        "id": name,
        "split": "train",
        "messages": messages,
        "finish_reason": finish,
        "prompt_tokens": 1,
        "generated_tokens": tokens,
    }


CORPUS = sequence_table(
    [
        row("good", "It is \\boxed{5}.", 10),
        row("cut", "It is", 50, "length"),
        row("short", "5", 1),
        row("loop", "the cask " * 20, 40),
        row("wrong", "So #6", 8),
        row("unanswered", None, 0, "prompt_too_long"),
        row("unlabelled", "#1", 5),
    ],
    CORPUS_SCHEMA,
)
ORIGINALS = {"good": "#### 5.0", "wrong": "#5", "short": "no result", "loop": "#1"}


def kept(**settings) -> tuple[list[str], dict]:
    table, report = filter_answers(CORPUS, ORIGINALS, AnswerFilter(**settings))
    return table["id"].to_pylist(), report.to_json()


def test_without_a_filter_only_the_unanswered_go() -> None:
    names, report = kept()
    assert names == ["good", "cut", "short", "loop", "wrong", "unlabelled"]
    assert report == {
        "answers": 7,
        "kept": 6,
        "tokens": 114,
        "dropped_tokens": 0,
        "dropped": {"prompt_too_long": 1},
        "unchecked": 0,
        "dropped_j": None,
    }


@pytest.mark.parametrize(
    ("settings", "reason", "gone", "tokens"),
    [
        ({"drop_cut": True}, "cut", {"cut"}, 50),
        ({"min_tokens": 2}, "too_short", {"short"}, 1),
        ({"max_tokens": 45}, "too_long", {"cut"}, 50),
        ({"max_repetition": 0.5}, "repetitive", {"loop"}, 40),
        ({"check": True}, "wrong_answer", {"loop", "wrong"}, 48),
    ],
)
def test_each_filter_by_hand(settings, reason, gone, tokens) -> None:
    names, report = kept(**settings)
    assert set(names) == {"good", "cut", "short", "loop", "wrong", "unlabelled"} - gone
    assert report["dropped"] == {"prompt_too_long": 1, reason: len(gone)}
    assert report["dropped_tokens"] == tokens


def test_rows_without_an_original_result_are_kept_and_counted() -> None:
    names, report = kept(check=True)
    assert {"cut", "short", "unlabelled"} <= set(names)
    assert report["unchecked"] == 3


def test_repetition_is_the_share_of_four_word_runs_seen_before() -> None:
    assert repetition("one two three") == 0
    assert repetition("a b c d e f") == 0
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5)  # only abcd comes again
    assert repetition("x " * 13) == pytest.approx(9 / 10)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("first \\boxed{1}, then \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{ 1,024 }", "1024"),
        ("#### 20", "20"),
        ("12+7=19;#19", "19"),
        ("nothing", None),
        ("\\boxed{unclosed", "unclosed"),
    ],
)
def test_final_answers(text, answer) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("#5", "\\boxed{5.0}", True),
        ("#1/2", "#0.5", True),
        ("#1/0", "#1/0", True),
        ("#1/0", "#2/0", False),
        ("\\boxed{x+1}", "\\boxed{x + 1}", True),
        ("\\boxed{x+1}", "\\boxed{1+x}", False),
        ("no result", "#5", False),
    ],
)
def test_answers_are_compared_as_numbers_or_as_they_are_written(one, other, same) -> None:
    corpus = sequence_table([row("a", one, 3)], CORPUS_SCHEMA)
    table, _ = filter_answers(corpus, {"a": other}, AnswerFilter(check=True))
    assert (table.num_rows == 1) is same


def test_original_answers_are_those_of_labelled_rows() -> None:
    table = sequence_table(
        [
            {"id": "a", "split": "train", "messages": row("a", "#5", 1)["messages"]},
            {"id": "b", "split": "unlabelled", "messages": row("b", None, 0)["messages"]},
        ]
    )
    assert original_answers(table) == {"a": "#5"}
