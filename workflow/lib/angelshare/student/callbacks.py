"""What happens beside the training loop: early stopping, counting of work, lines of progress.

None keeps state of its own that a kill could lose: stopping is computed from the Trainer's log of
evaluations and work from its count of tokens, which every checkpoint carries.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from angelshare.errors import AngelshareError
from angelshare.student.settings import StoppingSettings

Progress = Callable[[int, int, str], None]
"""Takes the step, the steps of the whole schedule and a remark; may drop most of them."""
Count = Callable[..., None]
"""Takes work done as keyword arguments: trained, evaluated (tokens), samples, steps."""

METRIC = "cross_entropy"


def evaluations(state: TrainerState) -> list[float]:
    """Validation cross-entropies so far, in order, the one before the first step included."""
    return [entry[f"eval_{METRIC}"] for entry in state.log_history if f"eval_{METRIC}" in entry]


def stale_evaluations(values: Sequence[float], tolerance: float) -> int:
    """How many of the last values did not fall by more than ``tolerance`` below the last that did.

    Unlike transformers' EarlyStoppingCallback, small steps add up: 1.000, 0.999, 0.998, 0.997 with
    tolerance 0.002 has fallen by more than it, and is not stale.
    """
    reference, stale = math.inf, 0
    for value in values:
        if value < reference - tolerance:
            reference, stale = value, 0
        else:
            stale += 1
    return stale


def should_stop(state: TrainerState, settings: StoppingSettings) -> bool:
    """Whether the evaluations so far exhaust the patience."""
    return stale_evaluations(evaluations(state), settings.tolerance) >= settings.patience


class Stopping(TrainerCallback):
    """Early stopping on the validation cross-entropy, and an error where the loss is not finite."""

    def __init__(self, settings: StoppingSettings) -> None:
        self.settings = settings

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Stop when patience is exhausted."""
        if should_stop(state, self.settings):
            control.should_training_stop = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Raise ``AngelshareError`` when the training loss is not finite."""
        if not math.isfinite((logs or {}).get("loss", 0.0)):
            raise AngelshareError(
                f"the training loss is not finite at step {state.global_step}: lower "
                "optimizer.learning_rate or raise warmup_steps"
            )


class Interrupted(Exception):
    """The training was asked to stop and saved where it stood."""


class Interruption(TrainerCallback):
    """Saves and leaves the training by `Interrupted`, at the step where ``stop`` first says so."""

    def __init__(self, stop: Callable[[], bool]) -> None:
        self.stop = stop
        self.came = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Ask; the last step of a schedule ends by itself."""
        if state.global_step < state.max_steps and self.stop():
            self.came = True
            control.should_log = control.should_save = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Leave: a training that ended by itself would delete all but its best checkpoint."""
        if self.came:
            raise Interrupted(
                f"stopped at step {state.global_step} of {state.max_steps}, with a checkpoint"
            )


class Bookkeeping(TrainerCallback):
    """Reports work as it is done: trained and evaluated tokens (no padding), samples, steps."""

    def __init__(
        self, count: Count, train_rows: int, step_rows: int, validation_tokens: int
    ) -> None:
        """``step_rows``: of a whole optimizer step; the last one of an epoch has what is left."""
        self.count, self.validation_tokens = count, validation_tokens
        self.train_rows, self.step_rows = train_rows, step_rows
        self.tokens = self.samples = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Start from what an earlier attempt has already reported."""
        self.tokens, self.samples = state.num_input_tokens_seen, self._samples(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Report one optimizer step."""
        tokens, samples = state.num_input_tokens_seen, self._samples(state)
        self.count(trained=tokens - self.tokens, samples=samples - self.samples, steps=1)
        self.tokens, self.samples = tokens, samples

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Report one pass over the validation split."""
        self.count(evaluated=self.validation_tokens)

    def _samples(self, state: TrainerState) -> int:
        epochs, steps = divmod(state.global_step, math.ceil(self.train_rows / self.step_rows))
        return epochs * self.train_rows + steps * self.step_rows


class Reporting(TrainerCallback):
    """Step, latest losses and the time left, whenever the Trainer logs."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.started, self.first_step = time.monotonic(), 0
        self.losses: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Remember where this attempt begins."""
        self.started, self.first_step = time.monotonic(), state.global_step
        if state.global_step:
            self.progress(state.global_step, state.max_steps, "resuming from a checkpoint")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Say where training stands."""
        names = {"loss": "loss", f"eval_{METRIC}": "validation"}
        self.losses |= {names[key]: value for key, value in (logs or {}).items() if key in names}
        done = state.global_step - self.first_step
        if done:
            elapsed_s = time.monotonic() - self.started
            left_s = elapsed_s / done * (state.max_steps - state.global_step)
            losses = ", ".join(f"{name} {value:.4f}" for name, value in self.losses.items())
            self.progress(state.global_step, state.max_steps, f"{losses}, {left_s:.0f} s left")
