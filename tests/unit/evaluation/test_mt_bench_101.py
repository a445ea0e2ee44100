"""MT-Bench-101: turns, published prompts word for word, ratings, and what a missing one means."""

from __future__ import annotations

from pathlib import Path

import pytest

from angelshare.errors import AngelshareError
from angelshare.evaluation.judges.asking import Reply
from angelshare.evaluation.judges.mt_bench_101 import (
    MtBench101,
    rating,
    read_rubric,
    read_turns,
)
from angelshare.evaluation.judges.settings import MtBench101Settings

ROWS = Path(__file__).resolve().parents[2] / "data/benchmarks"


@pytest.fixture
def rubric():
    return read_rubric(ROWS / "mt_bench_101_prompts.py")


@pytest.fixture
def mt_bench():
    return MtBench101(
        MtBench101Settings(
            benchmark="mt_bench_101",
            judge="j",
            data=str(ROWS / "mt_bench_101.jsonl"),
            prompts=str(ROWS / "mt_bench_101_prompts.py"),
        )
    )


def answered(mt_bench, finish_reason="stop"):
    return [
        {"id": row["id"], "finish_reason": finish_reason, "messages": [*row["messages"], said]}
        for row in mt_bench.prompts().to_pylist()
        for said in [{"role": "assistant", "content": f"my {row['id']} {{history}}"}]
    ]


def test_the_first_turn_sets_the_scene_where_the_rubric_says_so(mt_bench) -> None:
    assert [turn.id for turn in mt_bench.turns] == [
        "CM-1-2",
        "CM-1-3",
        "GR-2-1",
        "GR-2-2",
        "GR-3-1",
    ]
    first = mt_bench.prompts().to_pylist()[0]["messages"]
    assert [m["content"] for m in first] == [
        "My cat is called Plum.",
        "A fine name.",
        "What is her name?",
    ]


def test_a_limit_takes_dialogues_of_each_ability(rubric) -> None:
    limited = read_turns(ROWS / "mt_bench_101.jsonl", rubric, limit=1)
    assert [turn.id for turn in limited] == ["CM-1-2", "CM-1-3", "GR-2-1", "GR-2-2"]


def test_the_judge_reads_the_published_words(mt_bench) -> None:
    asked, missing = mt_bench.questions(answered(mt_bench))
    assert not missing
    system, user = (message["content"] for message in asked[0].messages)
    assert system == "Rate the last answer. Does it remember? End with Rating: [[n]]."
    assert user == (
        "*** \n\n Human: My cat is called Plum.\n\nAssistant: A fine name."
        "\n\n Human: What is her name?\n\nAssistant:  my CM-1-2 {history} ***"
    )
    _, user = (message["content"] for message in asked[3].messages)
    assert "my GR-2-2 {history}" in user
    assert user.endswith(
        "### [{'role': 'user', 'content': 'All rooks are birds. Is a rook a bird?'}, "
        "{'role': 'assistant', 'content': 'Yes.'}, "
        "{'role': 'user', 'content': 'Is every bird a rook?'}, "
        "{'role': 'assistant', 'content': 'No {prediction}.'}] ###"
    ), "the dialogue's own answers, whatever stands in them"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Good. Rating: [[6]]", 6),
        ("As in [1], fine. Rating: [[10]]", 10),
        ("[[3]] at first, but no: [[ 4 ]]", 4),
        ("Rating: 6", None),
        ("Rating: [[11]]", None),
        ("Rating: [[0]]", None),
        ("Rating: [[7.5]]", None),
        ("", None),
    ],
)
def test_a_rating_is_read_or_missing(text: str, value: int | None) -> None:
    assert rating(text) == value


def judged(mt_bench, replies):
    asked = []

    def ask(questions):
        asked.extend(question.id for question in questions)
        return replies

    scores = mt_bench.scores(answered(mt_bench), ask)
    assert asked == [turn.id for turn in mt_bench.turns]
    return scores


def test_dialogues_count_as_their_worst_turn_and_abilities_alike(mt_bench) -> None:
    given = dict(zip((t.id for t in mt_bench.turns), (9, 5, 8, 6, 10), strict=True))
    replies = {name: Reply(text=f"[[{value}]]") for name, value in given.items()}
    whole, memory, reasoning = judged(mt_bench, replies)
    assert (whole.metric, whole.samples, whole.missing) == ("rating", 3, {})
    assert memory.value == 5
    assert reasoning.value == (6 + 10) / 2
    assert whole.value == (5 + 8) / 2
    assert memory.stderr is None
    assert reasoning.stderr == pytest.approx(2.0)  # sd of 6 and 10 is sqrt(8); over sqrt(2)


def test_a_missing_verdict_is_no_zero_and_takes_its_dialogue_along(mt_bench) -> None:
    replies = {turn.id: Reply(text="[[8]]") for turn in mt_bench.turns}
    replies["GR-2-1"] = Reply(text="I cannot rate this.")
    replies["CM-1-2"] = Reply(missing="refused")
    whole, reasoning = judged(mt_bench, replies)
    assert whole.missing == {"malformed": 1, "refused": 1}
    assert (whole.value, whole.samples, reasoning.metric) == (8, 1, "rating_GR")
    nothing = {turn.id: Reply(missing="unanswered") for turn in mt_bench.turns}
    with pytest.raises(AngelshareError, match="no dialogue has all its verdicts"):
        judged(mt_bench, nothing)


def test_an_answer_that_had_no_room_is_not_judged(mt_bench) -> None:
    asked, missing = mt_bench.questions(answered(mt_bench, "prompt_too_long"))
    assert not asked
    assert set(missing.values()) == {"prompt_too_long"}


def test_a_file_that_is_not_the_prompts_or_the_data_is_named(tmp_path: Path, rubric) -> None:
    (tmp_path / "x.py").write_text("judge = 'x'")
    with pytest.raises(AngelshareError, match="holds no eval_prompt_construct"):
        read_rubric(tmp_path / "x.py")
    (tmp_path / "x.py").write_text("no python")
    with pytest.raises(AngelshareError, match="no Python file"):
        read_rubric(tmp_path / "x.py")
    (tmp_path / "x.jsonl").write_text('{"task": "GR", "id": 1}\n')
    with pytest.raises(AngelshareError, match="line 1: not a dialogue of MT-Bench-101"):
        read_turns(tmp_path / "x.jsonl", rubric)
    (tmp_path / "x.jsonl").write_text('{"task": "XY", "id": 1, "history": []}\n')
    with pytest.raises(AngelshareError, match="know no ability 'XY'"):
        read_turns(tmp_path / "x.jsonl", rubric)


def test_a_line_ends_where_json_lines_end(tmp_path: Path, rubric) -> None:
    said = '{"task": "GR", "id": 1, "history": [{"user": "a\u2028b", "bot": "c"}]}\n'
    (tmp_path / "x.jsonl").write_text(said)
    (turn,) = read_turns(tmp_path / "x.jsonl", rubric)
    assert turn.before[-1]["content"] == "a\u2028b"
