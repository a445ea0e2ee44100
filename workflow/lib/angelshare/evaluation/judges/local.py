"""A judge that runs here, by transformers or vLLM: its energy is the job's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from angelshare.errors import AngelshareError
from angelshare.evaluation.judges.asking import TOO_LONG, Question, Reply
from angelshare.evaluation.judges.settings import JudgeSettings
from angelshare.teacher.generate import back_end
from angelshare.teacher.models import load_config, load_tokenizer
from angelshare.teacher.prompts import Prompt
from angelshare.teacher.settings import DecodingSettings


class LocalJudge:
    """See the module; the model is loaded with the first question."""

    def __init__(self, name: str, settings: JudgeSettings) -> None:
        """``AngelshareError`` where the model has no tokenizer with a chat template."""
        self._settings = settings
        self._tokenizer = load_tokenizer(settings.model, revision=settings.revision)
        if not self._tokenizer.chat_template:
            raise AngelshareError(
                f"judges.{name}.model: {settings.model} has no chat template: a judge is a chat "
                "model"
            )
        config = load_config(settings.model, revision=settings.revision)
        self._room: int = config.max_position_embeddings

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[Question, Reply]]:
        """Replies, a batch at a time."""
        if any(question.top_logprobs for question in questions):
            raise AngelshareError(
                "this benchmark reads the judge's log-probabilities: serve the model (vllm serve) "
                "and name the server as the judge's endpoint"
            )
        by_id = {question.id: question for question in questions}
        prompts, longest = [], max(question.max_tokens for question in questions)
        for question in questions:
            ids: Any = self._tokenizer.apply_chat_template(
                [dict(message) for message in question.messages],
                add_generation_prompt=True,
                return_dict=False,
            )
            if len(ids) + longest > self._room:
                yield question, Reply(missing=TOO_LONG)
            else:
                prompts.append(Prompt(id=question.id, token_ids=ids))
        if not prompts:
            return
        decoding = DecodingSettings(
            backend=self._settings.backend,
            max_new_tokens=longest,
            temperature=self._settings.temperature,
            batch_size=self._settings.batch_size,
        )
        generator = back_end(decoding)(
            self._settings.model, self._tokenizer, decoding, revision=self._settings.revision
        )
        lengths = {prompt.id: len(prompt.token_ids) for prompt in prompts}
        for some in generator.generate(prompts):
            for completion in some:
                text = self._tokenizer.decode(completion.token_ids, skip_special_tokens=True)
                yield (
                    by_id[completion.id],
                    Reply(
                        text=str(text),
                        model=self._settings.model,
                        prompt_tokens=lengths[completion.id],
                        generated_tokens=len(completion.token_ids),
                    ),
                )
