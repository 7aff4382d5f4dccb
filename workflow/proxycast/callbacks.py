"""Proxies of a model while it is trained: a callback for the Trainer of `transformers`."""

import logging
import sys
from collections.abc import Sequence
from types import FrameType

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from proxycast.library.proxy_values import RECOMMENDED, TAIL_TOKENS, log_values, parsed_name, require_temperatures
from proxycast.library.scoring import ModelScoring
from proxycast.library.solution_files import Tasks, require_tasks
from proxycast.options import InputError

log = logging.getLogger(__name__)


class ProxyCallback(TrainerCallback):
    """Logs `proxy/<task>/<statistic>/<weighting>` each `every` steps and at the last one, wherever the Trainer logs.

    `solutions`: as `load_solutions` returns them. `proxies`: names as in `log_values`. `tokenizer`: without it, the
    Trainer's `processing_class`. `options`: those of `score` for a model in memory, as `tail_tokens`.

    A step is a step of the optimizer, and a resumed run goes on counting. Processes of distributed training divide the
    solutions; the Trainer's reports come from the first one. Training goes on as if the callback was not there.

    Raises InputError before the first step, where the solutions, a name, the tokenizer or the model cannot be used.
    Later, a model that cannot be scored (its weights have become NaN) is a warning in the log: the training goes on.
    """

    def __init__(
        self,
        solutions: Tasks,
        every: int = 1000,
        proxies: Sequence[str] = RECOMMENDED,
        tokenizer: object = None,
        **options: object,
    ):
        if not isinstance(every, int) or every < 1:
            raise InputError(f"ProxyCallback: every: found {every!r}; give a number of steps, 1 or more")
        self.solutions, self.every, self.proxies = require_tasks(solutions), every, list(proxies)
        statistics = [parsed_name(name)[0] for name in self.proxies]
        require_temperatures(statistics, bool(options.get("temperatures")), "ProxyCallback")
        self._tokenizer, self._options = tokenizer, options
        self._scoring: ModelScoring | None = None
        self._logged_at: int | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given) -> None:
        tokenizer = given.get("processing_class") if self._tokenizer is None else self._tokenizer
        if tokenizer is None:
            raise InputError(
                "ProxyCallback: found no tokenizer; give the Trainer a processing_class, or the callback a tokenizer"
            )
        self._trainer = _trainer_above(sys._getframe())
        self._scoring = ModelScoring(tokenizer, self.solutions, **self._options)
        self._logged_at = None
        self._scoring.check(given["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given) -> None:
        is_last = control.should_training_stop or state.global_step >= state.max_steps
        if state.global_step % self.every == 0 or is_last:
            self._log(state, control, given["model"])

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given) -> None:
        """Some callbacks stop the training behind a step, when they have seen an evaluation."""
        if control.should_training_stop:
            self._log(state, control, given["model"])

    def _log(self, state: TrainerState, control: TrainerControl, model: object) -> None:
        if self._logged_at == state.global_step:
            return
        self._logged_at = state.global_step
        try:
            token_stats = self._scoring(model, f"step{state.global_step}", sharded=True)
        except InputError as error:
            log.warning("step %d: no proxies are logged: %s", state.global_step, error)
            return
        should_log, tail_tokens = control.should_log, self._options.get("tail_tokens", TAIL_TOKENS)
        self._trainer.log(log_values(token_stats, self.proxies, tail_tokens))
        control.should_log = should_log  # the Trainer takes the loss of this step for logged


def _trainer_above(frame: FrameType | None) -> Trainer:
    """The Trainer that calls the callback: `transformers` gives callbacks no other way to log."""
    while frame is not None:
        if isinstance(trainer := frame.f_locals.get("self"), Trainer):
            return trainer
        frame = frame.f_back
    raise InputError("ProxyCallback: no Trainer calls it; add it to one, or use log_values in a loop of your own")
