"""AlpacaEval 2 (arXiv:2404.04475): how often a judge prefers an answer to the baseline's, at equal
length.

All that makes the benchmark is its own package, ``alpaca_eval``: which of two answers stands first,
the prompt, how a preference is read off the log-probabilities of the judge's one token, and the
length-controlled win rate, a logistic regression in which the difference of lengths is set to zero.
Here are only the answers, the judge that is asked, and the files, which the package would otherwise
fetch while it computes.

A verdict that is missing is in no win rate. The length-controlled one is, as the package has it,
the mean of the regression's predictions, which there are for these instructions too.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

from angelshare.data.answers import UNANSWERED as NO_ROOM
from angelshare.data.tables import sequence_table
from angelshare.errors import AngelshareError
from angelshare.evaluation.judges.asking import (
    MALFORMED,
    TOO_LONG,
    Ask,
    Question,
    Reply,
    reasons,
)
from angelshare.evaluation.judges.settings import AlpacaEvalSettings
from angelshare.evaluation.scores import Score
from angelshare.recipes import digest

NAME = "alpaca_eval_2"
ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"
"""The package's name of what AlpacaEval 2 asks and how it reads the reply."""
FOLDS = 5
"""Of the regression's cross-validation: it needs as many verdicts."""
_MARKS = re.compile(r"<\|(im_start|im_end)\|>")
_COLUMNS = {
    "model",
    "index",
    "preference",
    "std_delta_len",
    "instruction_difficulty",
    "not_gamed_baseline",
}
_RATES = (
    ("length_controlled_winrate", "lc_standard_error"),
    ("win_rate", "standard_error"),
    ("discrete_win_rate", None),
)
"""The metrics, in percent, with the package's name of their standard error."""


class AlpacaEval2:
    """The benchmark, its file of instructions and the baseline's answers read."""

    def __init__(self, settings: AlpacaEvalSettings) -> None:
        """``AngelshareError`` where the file is not what it must be."""
        self.gamed = Path(settings.gamed)
        self.baseline = read_baseline(Path(settings.data), settings.limit)
        self.verdicts = len(self.baseline)

    def prompts(self) -> pa.Table:
        """The sequence table that a model answers."""
        return sequence_table(
            {
                "id": _id(row),
                "split": "test",
                "messages": [{"role": "user", "content": row["instruction"]}],
            }
            for row in self.baseline
        )

    def scores(self, answers: Sequence[Mapping[str, Any]], ask: Ask) -> list[Score]:
        """The length-controlled win rate, then the others.

        Raises:
            AngelshareError: where there are too few verdicts for the regression.
        """
        annotations, missing = self.annotations(answers, ask)
        judged = sum(row["preference"] is not None for row in annotations)
        if judged < FOLDS:
            raise AngelshareError(
                f"{NAME}: {judged} of {self.verdicts} verdicts are there ({reasons(missing)}), and "
                f"the length-controlled win rate needs {FOLDS}. A judge must give the "
                "log-probabilities of its first token (top_logprobs)"
            )
        metrics = length_controlled(annotations, self.gamed)
        problems = sorted([_id(row), row["instruction"], row["output"]] for row in self.baseline)
        return [
            Score(
                task=NAME,
                metric=name,
                value=float(metrics[name]),
                stderr=float(metrics[error]) if error else None,
                samples=judged,
                task_version=f"{ANNOTATOR} against {self.baseline[0]['generator']}",
                harness=AlpacaEvalSettings.needs,
                problems_sha256=digest("angelshare/problems", problems),
                missing=reasons(missing),
            )
            for name, error in _RATES
        ]

    def annotations(
        self, answers: Sequence[Mapping[str, Any]], ask: Ask
    ) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """The package's annotations of answers, the rows of a corpus; why verdicts are missing.

        A preference is from 1, the baseline's answer, to 2; None where there is no verdict.
        """
        by_id = {row["id"]: row for row in answers}
        missing = {n: TOO_LONG for n, row in by_id.items() if row["finish_reason"] == NO_ROOM}
        rows = [row for row in self.baseline if _id(row) not in missing]
        if not rows:
            return [], missing
        own = [
            {
                "index": row["index"],
                "instruction": row["instruction"],
                "output": _plain(by_id[_id(row)]["messages"][-1]["content"]),
                "generator": "answers",
            }
            for row in rows
        ]
        return annotate(rows, own, ask, missing), missing


def read_baseline(path: Path, limit: int | None = None) -> list[dict[str, Any]]:
    """Instructions with the baseline's answers, each with its place in the file as ``index``."""
    try:
        rows = [
            {
                "index": index,
                "instruction": str(row["instruction"]),
                "output": str(row["output"]),
                "generator": str(row["generator"]),
            }
            for index, row in enumerate(json.loads(path.read_bytes())[:limit])
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise AngelshareError(
            f"{path} is not a list of instruction, output and generator ({error!r}): it must be "
            "alpaca_eval_gpt4_baseline.json of the data set tatsu-lab/alpaca_eval"
        ) from None
    if len(names := {row["generator"] for row in rows}) != 1:
        raise AngelshareError(
            f"{path} must hold the answers of one model, and there are {len(names)}: it must be "
            "alpaca_eval_gpt4_baseline.json of the data set tatsu-lab/alpaca_eval"
        )
    return rows


def annotate(
    baseline: Sequence[Mapping[str, Any]],
    answers: Sequence[Mapping[str, Any]],
    ask: Ask,
    missing: dict[str, str],
) -> list[dict[str, Any]]:
    """The package's annotations, by a judge of ours; ``missing`` gets why a verdict is."""
    annotator = _package("annotators").PairwiseAnnotator(
        annotators_config=ANNOTATOR, caching_path=None
    )
    (single,) = annotator.annotators.values()

    def completions(prompts: Sequence[str], **how: Any) -> dict[str, list[Any]]:
        questions = [_question(n, prompt, how) for n, prompt in enumerate(prompts)]
        replies = ask(questions)
        given = [_completion(replies[question.id]) for question in questions]
        for question, completion in zip(questions, given, strict=True):
            if math.isnan(single.fn_completion_parser(completion)[0]):
                missing[question.id] = replies[question.id].missing or MALFORMED
        texts = [replies[question.id].text for question in questions]
        return {"completions": texts, single.completion_key: given}

    single.fn_completions = completions
    # One chunk, so that all questions are there at once.
    found = annotator.annotate_head2head(baseline, answers, is_ordered=True, chunksize=None)
    return list(found)


def length_controlled(annotations: Sequence[Mapping[str, Any]], gamed: Path) -> dict[str, Any]:
    """The package's metrics of annotations, with its file ``df_gamed.csv`` from ``gamed``.

    Raises:
        AngelshareError: where that file is not what it must be.
    """
    check_gamed(gamed, max(row["index"] for row in annotations))
    regression = _package("metrics.glm_winrate")
    fetch = regression.hf_hub_download
    regression.hf_hub_download = lambda **_: str(gamed)
    try:
        found = regression.get_length_controlled_winrate(list(annotations), save_weights_dir=None)
    finally:
        regression.hf_hub_download = fetch
    return dict(found)


def check_gamed(path: Path, last: int) -> None:
    """``AngelshareError`` unless row n of the file is of instruction n, up to the last."""
    try:
        columns = pa.csv.read_csv(path).to_pydict()
        whole = not _COLUMNS - columns.keys()
        whole = whole and columns["index"][: last + 1] == list(range(last + 1))
    except pa.ArrowInvalid:
        whole = False
    if not whole:
        raise AngelshareError(
            f"{path} does not hold {', '.join(sorted(_COLUMNS))} of instructions 0 to {last}, in "
            "their order: it must be df_gamed.csv of the data set tatsu-lab/alpaca_eval"
        )


def _plain(answer: str) -> str:
    """An answer without what the package, which strips answers too, would read as chat turns."""
    return _MARKS.sub(r"<\1>", answer).strip()


def _id(row: Mapping[str, Any]) -> str:
    return f"{NAME}-{row['index']}"


def _question(number: int, prompt: str, how: Mapping[str, Any]) -> Question:
    return Question(
        id=f"question-{number}",
        messages=tuple(_package("utils").prompt_to_chatml(prompt.strip())),
        max_tokens=how["max_tokens"],
        top_logprobs=how["top_logprobs"],
    )


def _completion(reply: Reply) -> dict[str, Any]:
    """A reply as the package's parser reads it."""
    first = {"top_logprobs": [dict(one) for one in reply.logprobs]}
    return {"logprobs": {"content": [first]}}


def _package(module: str) -> Any:
    """A module of the package, which on import makes every library's logger talk."""
    root = logging.getLogger()
    level = root.level
    try:
        return import_module(f"alpaca_eval.{module}")
    finally:
        root.setLevel(level)
