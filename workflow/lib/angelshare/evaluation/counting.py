"""What both back ends of the harness count, and what they refuse.

Tokens that pass through the model: ``prompt`` and ``generated`` for answers, and ``evaluated`` for
everything a score needed (both of these, and the tokens scored by likelihood). Padding is not
counted.
"""

from __future__ import annotations

from typing import Any

from lm_eval.api.model import TemplateLM

from angelshare.energy.phases import Phase
from angelshare.errors import AngelshareError
from angelshare.evaluation.scores import Count, Progress


class Counting(TemplateLM):
    """Mixed into a back end of the harness, before it."""

    progress: Progress
    count: Count
    phase: Phase
    task: str = ""
    """The entry of ``evaluation.tasks`` that is being asked."""
    done: int = 0
    requests: int = 0

    def note(self, requests: int, **tokens: int) -> None:
        """Requests are answered; ``tokens`` by meaning passed through the model."""
        self.count(samples=requests, **tokens)
        self.done += requests
        self.progress(self.done, self.requests, f"requests, {self.task}")

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Answer ``requests``; ``AngelshareError`` where a prompt would have to be cut."""
        self.requests += len(requests)
        for request in requests:
            prompt, options = request.args
            tokens = len(self.tok_encode(prompt))
            longest = options.get("max_gen_toks", self.max_gen_toks)
            room = self.max_length - longest
            if tokens > room:
                raise AngelshareError(
                    f"{request.task_name}: a prompt has {tokens} tokens, and a model of "
                    f"{self.max_length} has room for {room} before the answer: lower "
                    "evaluation.max_gen_toks or few_shot, or train with a larger max_length"
                )
        answers: list[str] = super().generate_until(requests, disable_tqdm)
        return answers

    def _loglikelihood_tokens(self, requests: list[Any], *args: Any, **kwargs: Any) -> Any:
        """Count the tokens of contexts and continuations."""
        tokens = sum(len(context) + len(continuation) for _, context, continuation in requests)
        self.requests += len(requests)
        with self.phase("score"):
            likelihoods = super()._loglikelihood_tokens(requests, *args, **kwargs)
        self.note(len(requests), evaluated=tokens)
        return likelihoods
