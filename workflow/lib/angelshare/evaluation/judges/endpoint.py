"""A judge behind an OpenAI-compatible endpoint, over OpenAI's own client.

The client repeats a request after timeouts, lost connections, rate limits and server errors, waits
as ``Retry-After`` says, and gives up after ``retries``. A question that is still without an answer
is missing; several in a row mean that nobody is there, and end the job with what it has kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any

import openai

from angelshare.errors import AngelshareError
from angelshare.evaluation.judges.asking import REFUSED, UNANSWERED, Question, Reply
from angelshare.evaluation.judges.settings import JudgeSettings

GIVE_UP_AFTER = 3
"""Questions in a row, each with all its retries, that got no answer."""


class EndpointJudge:
    """See the module."""

    def __init__(self, name: str, settings: JudgeSettings) -> None:
        """``AngelshareError`` where the key's environment variable is not set."""
        self._name, self._settings = name, settings
        self._key = _key(name, settings)
        self._client = openai.OpenAI(
            api_key=self._key or "none",
            base_url=settings.endpoint,
            timeout=settings.timeout_s,
            max_retries=settings.retries,
        )

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[Question, Reply]]:
        """Replies as they come; ``AngelshareError`` where the endpoint refuses to serve."""
        in_a_row = 0
        with ThreadPoolExecutor(self._settings.concurrency) as pool:
            asked: dict[Future[Reply], Question] = {
                pool.submit(self._reply, question): question for question in questions
            }
            try:
                for future in as_completed(asked):
                    reply = future.result()
                    in_a_row = in_a_row + 1 if reply.missing == UNANSWERED else 0
                    if in_a_row == GIVE_UP_AFTER:
                        raise AngelshareError(
                            f"judge {self._name} at {self._settings.endpoint} gave no answer to "
                            f"{in_a_row} questions in a row ({reply.text}). The verdicts so far "
                            "are kept: start the workflow again when it answers"
                        )
                    yield asked[future], reply
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _reply(self, question: Question) -> Reply:
        options: dict[str, Any] = {}
        if question.top_logprobs:
            options = {"logprobs": True, "top_logprobs": question.top_logprobs}
        try:
            answer = self._client.chat.completions.create(
                model=self._settings.model,
                messages=[dict(message) for message in question.messages],  # type: ignore[misc]
                max_tokens=question.max_tokens or self._settings.max_tokens,
                temperature=self._settings.temperature,
                **options,
            )
        except (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError) as e:
            return Reply(missing=UNANSWERED, text=self._said(e))
        except openai.BadRequestError as error:
            if error.code == "content_filter":
                return Reply(missing=REFUSED)
            raise self._useless(error) from None
        except openai.APIStatusError as error:
            raise self._useless(error) from None
        except openai.APIError as error:
            return Reply(missing=UNANSWERED, text=self._said(error))
        return _read(answer)

    def _said(self, error: Exception) -> str:
        text = f"{type(error).__name__}: {error}"
        return (text.replace(self._key, "***") if self._key else text)[:300]

    def _useless(self, error: Exception) -> AngelshareError:
        return AngelshareError(
            f"judge {self._name} at {self._settings.endpoint} does not take the question "
            f"({self._said(error)}): check judges.{self._name}.model and the key in its "
            "api_key_env. The verdicts so far are kept"
        )


def _key(name: str, settings: JudgeSettings) -> str:
    if settings.api_key_env is None:
        return ""
    key = os.environ.get(settings.api_key_env, "")
    if not key:
        raise AngelshareError(
            f"judges.{name}.api_key_env: the environment variable {settings.api_key_env} is not "
            "set: export the endpoint's key in it, and on a cluster let jobs inherit it"
        )
    return key


def _read(answer: Any) -> Reply:
    """The first choice of a chat completion, whatever a server left out of it."""
    choices = getattr(answer, "choices", None)
    if not choices or getattr(choices[0], "message", None) is None:
        return Reply(missing=UNANSWERED, text="a response without choices")
    choice, usage = choices[0], getattr(answer, "usage", None)
    text = choice.message.content
    refused = bool(getattr(choice.message, "refusal", None)) or (
        choice.finish_reason == "content_filter"
    )
    first = getattr(getattr(choice, "logprobs", None), "content", None) or []
    return Reply(
        text=None if refused else text or "",
        missing=REFUSED if refused else None,
        model=getattr(answer, "model", None),
        prompt_tokens=getattr(usage, "prompt_tokens", 0) or 0,
        generated_tokens=getattr(usage, "completion_tokens", 0) or 0,
        logprobs=tuple(
            {"token": one.token, "logprob": one.logprob}
            for one in (first[0].top_logprobs if first else [])
        ),
    )
