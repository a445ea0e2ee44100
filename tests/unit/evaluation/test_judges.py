"""Judges: one interface, every failure of an endpoint, and verdicts that are asked for once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from tests.unit.evaluation.judge_server import judge_server

from angelshare.data.tokenizer import train_tokenizer
from angelshare.errors import AngelshareError
from angelshare.evaluation.judges.asking import Ledger, Question, Reply, ask_all
from angelshare.evaluation.judges.endpoint import EndpointJudge
from angelshare.evaluation.judges.local import LocalJudge
from angelshare.evaluation.judges.settings import JudgeSettings
from angelshare.student.models import make_student, publish_model
from angelshare.student.settings import ScratchStudent

JUDGE = {"name": "j", "model": "m"}


def questions(count: int) -> list[Question]:
    return [
        Question(id=str(n), messages=({"role": "user", "content": f"Q{n}"},), max_tokens=9)
        for n in range(count)
    ]


def remote(url: str, **changes: object) -> EndpointJudge:
    settings = {"model": "m", "endpoint": url, "retries": 2, "timeout_s": 5, **changes}
    return EndpointJudge("j", JudgeSettings.model_validate(settings))


def asked_all(judge, some: list[Question], ledger: Ledger) -> tuple[dict[str, Reply], Counter]:
    counts: Counter = Counter()
    replies = ask_all(
        judge, JUDGE, some, ledger, lambda *_: None, lambda **more: counts.update(more)
    )
    return replies, counts


def test_each_question_gets_its_reply_and_its_tokens_are_counted(tmp_path: Path) -> None:
    with judge_server(lambda body, _: {"text": body["messages"][0]["content"] + "!"}) as server:
        replies, counts = asked_all(remote(server.url), questions(5), Ledger(tmp_path / "l"))
    assert {n: reply.text for n, reply in replies.items()} == {str(n): f"Q{n}!" for n in range(5)}
    assert {reply.model for reply in replies.values()} == {"judge-2026-01"}
    assert counts == {"samples": 5, "prompt": 55, "generated": 15, "evaluated": 70}
    assert {body["max_tokens"] for body in server.asked} == {9}


def test_what_the_ledger_has_is_not_asked_again(tmp_path: Path) -> None:
    with judge_server(lambda body, _: {"text": "[[5]]"}) as server:
        asked_all(remote(server.url), questions(3), Ledger(tmp_path / "l"))
        replies, counts = asked_all(remote(server.url), questions(4), Ledger(tmp_path / "l"))
        assert len(server.asked) == 4
        assert counts["samples"] == 1
        assert {reply.text for reply in replies.values()} == {"[[5]]"}
        other = {**JUDGE, "version": "2"}
        ask_all(
            remote(server.url),
            other,
            questions(1),
            Ledger(tmp_path / "l"),
            print,
            lambda **_: None,
        )
    assert len(server.asked) == 5, "another judge is asked for itself"


def test_rate_limits_are_waited_for_as_they_say(tmp_path: Path) -> None:
    def limited(_body: dict, number: int) -> dict:
        if number == 0:
            return {"status": 429, "headers": {"Retry-After": "1"}, "body": {"error": {}}}
        return {"text": "[[7]]"}

    with judge_server(limited) as server:
        replies, _ = asked_all(remote(server.url), questions(1), Ledger(tmp_path / "l"))
    assert replies["0"].text == "[[7]]"
    assert len(server.asked) == 2
    assert server.times[1] - server.times[0] >= 1


@pytest.mark.parametrize(
    "failure",
    [
        {"status": 503, "body": {"error": {"message": "busy"}}},
        {"status": 500, "body": b"no json"},
        {"delay_s": 0.5, "text": "too late"},
    ],
    ids=["busy", "broken", "slow"],
)
def test_a_failure_is_repeated_and_then_over(tmp_path: Path, failure: dict) -> None:
    def once(_body: dict, number: int) -> dict:
        return failure if number == 0 else {"text": "[[8]]"}

    with judge_server(once) as server:
        judge = remote(server.url, timeout_s=0.2)
        replies, _ = asked_all(judge, questions(1), Ledger(tmp_path / "l"))
    assert (replies["0"].text, len(server.asked)) == ("[[8]]", 2)


def test_retries_are_bounded_and_one_lost_question_loses_no_other(tmp_path: Path) -> None:
    def one_fails(body: dict, _number: int) -> dict:
        lost = body["messages"][0]["content"] == "Q1"
        return {"status": 502, "body": {}} if lost else {"text": "[[3]]"}

    path = tmp_path / "l"
    with judge_server(one_fails) as server:
        judge = remote(server.url, retries=1, concurrency=1)
        replies, _ = asked_all(judge, questions(3), Ledger(path))
        assert Counter(b["messages"][0]["content"] for b in server.asked)["Q1"] == 2
        assert replies["1"].missing == "unanswered"
        assert len(Ledger(path)) == 2
        server.answer = lambda *_: {"text": "[[4]]"}
        again, _ = asked_all(judge, questions(3), Ledger(path))
    assert [again[n].text for n in "012"] == ["[[3]]", "[[4]]", "[[3]]"]
    assert len(server.asked) == 5, "only the lost one is asked again"


def test_nobody_there_ends_the_job_and_keeps_what_was_said(tmp_path: Path) -> None:
    def dies(_body: dict, number: int) -> dict:
        return {"text": "[[1]]"} if number < 2 else {"status": 500, "body": {}}

    with judge_server(dies) as server:
        judge = remote(server.url, retries=0, concurrency=1)
        with pytest.raises(AngelshareError, match="no answer to 3 questions in a row"):
            asked_all(judge, questions(20), Ledger(tmp_path / "l"))
    assert len(server.asked) < 20
    assert len(Ledger(tmp_path / "l")) == 2


def test_refusals_are_said_and_kept(tmp_path: Path) -> None:
    def refuses(body: dict, _number: int) -> dict:
        content = body["messages"][0]["content"]
        if content == "Q0":
            return {"text": None, "choice": {"message": {"refusal": "I will not."}}}
        if content == "Q1":
            return {"text": "", "choice": {"finish_reason": "content_filter"}}
        return {"status": 400, "body": {"error": {"code": "content_filter", "message": "no"}}}

    with judge_server(refuses) as server:
        replies, _ = asked_all(remote(server.url), questions(3), Ledger(tmp_path / "l"))
        asked_all(remote(server.url), questions(3), Ledger(tmp_path / "l"))
    assert [replies[n].missing for n in "012"] == ["refused"] * 3
    assert len(server.asked) == 3


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "sk-not-to-be-seen"
    with judge_server(lambda *_: {"text": "[[2]]"}) as server:
        with pytest.raises(AngelshareError, match="variable JUDGE_KEY is not set"):
            remote(server.url, api_key_env="JUDGE_KEY")
        monkeypatch.setenv("JUDGE_KEY", secret)
        judge = remote(server.url, api_key_env="JUDGE_KEY")
        asked_all(judge, questions(1), Ledger(tmp_path / "l"))
        assert server.keys == [f"Bearer {secret}"]
        server.answer = lambda *_: {
            "status": 401,
            "body": {"error": {"message": f"bad key {secret}"}},
        }
        with pytest.raises(AngelshareError, match="does not take the question") as error:
            asked_all(judge, questions(2), Ledger(tmp_path / "l"))
    assert secret not in str(error.value)
    assert secret.encode() not in (tmp_path / "l").read_bytes()


def test_a_kill_loses_no_verdict_and_asks_none_twice(tmp_path: Path) -> None:
    """A process that is killed amid its questions, and another that goes on."""
    script = (
        "import sys; from pathlib import Path; from tests.unit.evaluation.test_judges import *\n"
        "asked_all(remote(sys.argv[1], concurrency=1), questions(8), Ledger(Path(sys.argv[2])))"
    )
    path = tmp_path / "l"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def slow_after_four(_body: dict, number: int) -> dict:
        return {"text": "[[6]]", "delay_s": 30 if number == 4 else 0}

    with judge_server(slow_after_four) as server:
        command = [sys.executable, "-c", script, server.url, str(path)]
        process = subprocess.Popen(command, env=environment, cwd=Path(__file__).parents[3])
        while len(server.asked) < 5 and process.poll() is None:
            pass_time()
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(Ledger(path)) == 4
        with path.open("ab") as torn:
            torn.write(b'{"key": "abc", "repl')
        server.answer = lambda *_: {"text": "[[6]]"}
        replies, _ = asked_all(remote(server.url), questions(8), Ledger(path))
    assert len(replies) == 8
    times = Counter(body["messages"][0]["content"] for body in server.asked)
    assert times == {f"Q{n}": 2 if n == 4 else 1 for n in range(8)}, "only the lost one is repeated"


def pass_time() -> None:
    time.sleep(0.02)


def test_a_local_judge_answers_through_the_same_interface(tmp_path: Path) -> None:
    some = questions(3)
    tokenizer = train_tokenizer(["Q0 Q1 Q2 0123456789"], 140, 64)
    shape = ScratchStudent(hidden_size=16, layers=1, heads=2, intermediate_size=16)
    publish_model(make_student(shape, tokenizer, 64, seed=0), tokenizer, tmp_path / "model")
    settings = JudgeSettings(model=str(tmp_path / "model"))
    replies, counts = asked_all(LocalJudge("j", settings), some, Ledger(tmp_path / "l"))
    assert all(reply.text is not None for reply in replies.values())
    assert counts["samples"] == 3
    assert 0 < counts["generated"] <= 27
    long = Question(id="x", messages=({"role": "user", "content": "Q" * 90},), max_tokens=9)
    replies, _ = asked_all(LocalJudge("j", settings), [long], Ledger(tmp_path / "l"))
    assert replies["x"].missing == "prompt_too_long"
