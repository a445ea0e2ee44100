"""What a run checks before its first job, so that it does not fail after the teacher's work."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping

from angelshare.config import Config
from angelshare.errors import AngelshareError
from angelshare.published import require_files
from angelshare.revisions import require_resolved

_READ_FILES = frozenset(
    {"answer_student", "answer_teacher", "judge_student", "judge_teacher", "report_overlap"}
)
"""The rules whose jobs read the files of judged benchmarks."""


def require_ready(
    config: Config, rules: Collection[str], environment: Mapping[str, str] = os.environ
) -> None:
    """``AngelshareError`` where the jobs of these rules would lack something they need.

    That is: a commit, a file that `angelshare resolve` fetches, the key of a judge, an evaluation
    task that its engine does not have, that engine's environment.
    """
    require_resolved(config)
    planned = set(rules)
    if _READ_FILES & planned:
        require_files(config)
    if {"judge_student", "judge_teacher"} & planned:
        require_keys(config, environment)
    if {"evaluate_student", "evaluate_teacher"} & planned:
        from angelshare.evaluation.engines import refuse_unready

        refuse_unready(config.evaluation)


def require_keys(config: Config, environment: Mapping[str, str]) -> None:
    """``AngelshareError`` where the environment variable with a judge's key is not set."""
    for one in config.evaluation.judged:
        variable = config.judges[one.judge].api_key_env
        if variable and not environment.get(variable):
            raise AngelshareError(
                f"judges.{one.judge}.api_key_env: the environment variable {variable} is not set. "
                f"Export the endpoint's key in it, name another judge of {one.benchmark}, or take "
                "that entry out of evaluation.judged."
            )
