"""The training loop."""

import dataclasses
import math
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from goldfinch.argument_checks import shortened
from goldfinch.devices import dtype_name, resolve_dtype
from goldfinch.errors import UserError
from goldfinch.inference.language_model import LanguageModel
from goldfinch.training.config import TrainConfig
from goldfinch.training.divergence import Diverged, all_finite, first_bad_tensor
from goldfinch.training.expected_warnings import ignore_expected_warnings
from goldfinch.training.gradient import accumulate, clip_gradient
from goldfinch.training.initial_weights import check_initial
from goldfinch.training.interruption import Interrupted, stop_signals
from goldfinch.training.loss import Validation, combine_validations, validate
from goldfinch.training.model import build_model
from goldfinch.training.optimizer.groups import build_optimizer, set_learning_rate
from goldfinch.training.optimizer.schedule import learning_rate
from goldfinch.training.optimizer.update_sizes import UpdateSizes
from goldfinch.training.parallel.parallelize import full_weights, gather_model, reshard
from goldfinch.training.parallel.processes import SINGLE_PROCESS, Processes
from goldfinch.training.reporter import LogReporter, Reporter
from goldfinch.training.run.checkpoint import (
    Checkpoints,
    Progress,
    list_checkpoints,
    newest_checkpoint,
    remove_unfinished,
)
from goldfinch.training.run.data import RunData
from goldfinch.training.run.folder import (
    append_sample,
    check_new,
    check_resumable,
    describe_model,
    remove_temporary_files,
    write_data,
    write_settings,
)
from goldfinch.training.run.metrics import Metrics
from goldfinch.training.run.throughput import Throughput
from goldfinch.training.run.trackers import check_trackers, open_trackers


class Trainer:
    """One training run, from its settings to its final weights.

    >>> config = gf.TrainConfig(
    ...     model=gf.build("goldfinch-L3-D64", vocab_size=257).config,
    ...     data="data/books",              # from `goldfinch data prepare`
    ...     output="runs/books",
    ...     steps=2,
    ...     batch_size=2,
    ...     sequence_length=64,
    ... )
    >>> gf.Trainer(config).train().bits_per_byte > 0
    True
    >>> gf.load("runs/books").config == config.model
    True

    Args:
        config: the settings.
        reporter: called at every step; None logs to the logger "goldfinch".
        resume: continue from the newest complete checkpoint in `config.output`; otherwise the folder must hold no run.
        processes: those that train together, from `join_processes`; each makes a trainer with the same settings.

    Raises:
        UserError: data, tokenizer and model do not fit together, or the folder cannot be used.
    """

    def __init__(
        self,
        config: TrainConfig,
        reporter: Reporter | None = None,
        resume: bool = False,
        processes: Processes = SINGLE_PROCESS,
    ) -> None:
        if not isinstance(config, TrainConfig):
            raise UserError(f"config must be a gf.TrainConfig, not {shortened(config)}")
        self._processes = processes
        self._reporter = reporter or LogReporter()
        self._run = config.output
        with processes.fail_together():
            self._device = processes.device(config.device)
            self._dtype = resolve_dtype(config.dtype, self._device)
            # Recorded as resolved: a run resumes in the dtype that it began with, whatever machine it moves to.
            config = dataclasses.replace(config, dtype=dtype_name(self._dtype))
            self._config = config
            if processes.world_size % config.num_replicas:
                raise UserError(
                    f"num_replicas {config.num_replicas} must divide the number of processes, {processes.world_size}"
                )
            self._data = RunData(config, processes, resume=resume)
            if not resume:
                check_initial(config, self._data.tokenizer)
            if processes.is_main:
                check_trackers(config)
        # Before anything large is built: report a folder that cannot be used.
        checkpoint = processes.run_on_main(self._find_checkpoint if resume else lambda: check_new(self._run))
        self._model = build_model(config, processes, self._device, self._dtype, initialized=checkpoint is None)
        # Kept: while a model is gathered, it shows other parameters than those that the optimizer has.
        self._parameters = dict(self._model.named_parameters())
        with processes.fail_together():
            self._optimizer = build_optimizer(self._model, config.optimizer)
        self._checkpoints = Checkpoints(self._run, config.keep_checkpoints, config.keep_every, processes)
        self._progress = Progress()
        if checkpoint is not None:
            self._load(checkpoint)
        self._throughput = Throughput(config, self._device, self._dtype, processes.world_size)
        self._start = self._progress
        # From here on the folder is changed.
        with processes.fail_together():
            self._metrics = self._open_folder(resume) if processes.is_main else None

    def _find_checkpoint(self) -> Path | None:
        check_resumable(self._config)
        return newest_checkpoint(self._run, self._reporter.notice)

    def _load(self, checkpoint: Path) -> None:
        model, optimizer = self._model, self._optimizer
        with ignore_expected_warnings():
            self._progress, data = self._checkpoints.load(checkpoint, self._parameters, model, optimizer)
        with self._processes.fail_together():
            self._data.batches.load_state(self._progress.step, data)

    def _open_folder(self, resume: bool) -> Metrics:
        remove_temporary_files(self._run)
        if resume:
            remove_unfinished(self._run)
        else:
            describe_model(self._config, self._data.tokenizer, self._data.chat_template)
            write_data(self._run, self._data.fingerprint)
        write_settings(self._config)
        return Metrics(self._run, self._progress.step, open_trackers(self._config))

    def train(self) -> Validation:
        """Train to the last step.

        Returns:
            The validation of the final weights, on the whole split.

        Raises:
            Diverged: losses or gradients were not finite for too many steps in a row; the last good state is saved.
            Interrupted: Ctrl-C or SIGTERM in any process; the state is saved.
        """
        if self._processes.is_main:
            self._reporter.start(self._config, self._progress.step, self._data.steps)
        with ignore_expected_warnings():
            try:
                with stop_signals() as stop:
                    self._loop(stop)
                return self._validate(0)
            finally:
                self._data.batches.close()
                if self._metrics is not None:
                    self._metrics.close()
                self._checkpoints.wait()

    def _loop(self, stop: threading.Event) -> None:
        config = self._config
        self._clock = time.monotonic()
        while self._done() < 1:
            stopping = self._step(stop)
            step, last = self._progress.step, self._done() >= 1
            validating = config.validate_every > 0 and step % config.validate_every == 0 and not last
            saving = stopping or step % config.save_every == 0 or last
            sampling = config.sample_every > 0 and (step % config.sample_every == 0 or last)
            if validating or saving or sampling:
                self._check_weights()
            if validating:
                self._validate(config.max_validation_tokens)
            if saving:
                self._save()
            if sampling:
                self._sample()
            if stopping and not last:
                self._checkpoints.wait()
                raise self._processes.error_on_main(
                    Interrupted(
                        f"stopped after step {step} of {self._data.steps}, everything saved; "
                        f"resume with: goldfinch train --resume {self._run}"
                    )
                )
            if validating or saving or sampling:
                self._clock = time.monotonic()

    def _done(self) -> float:
        """Fraction of the run that is done: of its steps, or of its time if that is ahead."""
        by_steps = self._progress.step / self._data.steps
        by_clock = self._progress.seconds / (60 * self._config.max_minutes) if self._config.max_minutes else 0.0
        return min(max(by_steps, by_clock), 1.0)

    def _step(self, stop: threading.Event) -> bool:
        """Make one step; returns whether any process has been asked to stop."""
        config, step = self._config, self._progress.step
        windows = self._data.batches.batch(step).to(self._device)
        answers = self._data.batches.answers(step)
        rate = learning_rate(step, self._done(), config.optimizer)
        set_learning_rate(self._optimizer, rate)
        loss = accumulate(
            self._model,
            windows,
            config.micro_batch_size,
            self._processes,
            self._autocast(),
            self._data.reset_after,
            answers if answers is None else answers.to(self._device),
        )
        norm = clip_gradient(self._parameters.values(), config.optimizer.max_gradient_norm)
        # All that processes must agree on in a step, in one all-reduce; the time is the main one's.
        now = time.monotonic()
        loss, stops, seconds = self._processes.all_reduce_sum(
            loss, stop.is_set(), (now - self._clock) * self._processes.is_main
        )
        self._clock = now
        finite = math.isfinite(loss) and math.isfinite(norm)
        update_sizes: dict[str, float] = {}
        if finite:
            update_sizes = self._update_weights()
        else:
            self._check_skip(windows, loss, norm)
        self._optimizer.zero_grad()
        self._progress = self._progress.after(seconds, skipped=not finite)
        tokens = config.batch_size * config.sequence_length
        self._report_step(
            {
                "step": step + 1,
                "tokens": (step + 1) * tokens,
                **({"loss": loss, "gradient_norm": norm} if finite else {}),
                "learning_rate": rate,
                **({"update_sizes": update_sizes} if update_sizes else {}),
                **self._throughput.of_step(seconds),
                "skipped_steps": self._progress.skipped_steps,
            },
            seconds,
        )
        return stops > 0

    def _update_weights(self) -> dict[str, float]:
        """Make an optimizer step; returns the relative update sizes in steps that measure them."""
        every = self._config.update_sizes_every
        measured = every > 0 and (self._progress.step + 1) % every == 0
        sizes = UpdateSizes(self._optimizer) if measured else None
        self._optimizer.step()
        return sizes.relative(self._processes.all_reduce_sum(*sizes.squares())) if sizes else {}

    def _report_step(self, record: dict[str, Any], seconds: float) -> None:
        self._record(**record)
        if not self._processes.is_main:
            return
        self._reporter.step(record, self._done())
        if self._config.compile and self._progress.step == self._start.step + 2:
            first = self._progress.seconds - self._start.seconds - seconds
            self._reporter.compiled(first - seconds)

    def _record(self, **record: Any) -> None:
        if self._metrics is not None:
            self._metrics.add(**record)

    def _check_weights(self) -> None:
        """Raise Diverged if the weights are not finite: they must not be saved."""
        if not all_finite(self._parameters.values(), self._processes):
            self._check_skip(self._data.batches.batch(self._progress.step).to(self._device), math.nan, math.nan)

    def _check_skip(self, windows: Tensor, loss: float, norm: float) -> None:
        """Raise Diverged if too many steps in a row were not finite, or the weights are not finite either."""
        weights_finite = all_finite(self._parameters.values(), self._processes)
        if weights_finite and self._progress.skipped_in_a_row < self._config.max_skipped_steps:
            return
        step = self._progress.step
        with self._autocast():
            culprit = first_bad_tensor(self._model, self._parameters, windows, self._processes, self._data.reset_after)
        reshard(self._model)
        self._optimizer.zero_grad()
        if weights_finite:
            self._save()
        self._checkpoints.wait()
        last = next(iter(list_checkpoints(self._run)[::-1]), "no checkpoint yet")
        kept = f"the {'weights before this step' if weights_finite else 'last good weights'} are in {last}"
        places = "; ".join(self._data.batches.describe(step)[:4])
        skipped = self._progress.skipped_in_a_row
        raise self._processes.error_on_main(
            Diverged(
                f"step {step + 1}: loss {loss:g}, gradient norm {norm:g}"
                f"{f', after {skipped} skipped steps' if skipped else ''}; first bad tensor: {culprit}; "
                f"batch {step} (windows at {places} ...); "
                f"{kept}; resume with a lower --optimizer.learning-rate"
            )
        )

    def _validate(self, max_tokens: int) -> Validation:
        config, step = self._config, self._progress.step
        results = {}
        answers = self._data.validation_answers(max_tokens)
        for name, windows in self._data.validation_windows(max_tokens).items():
            with self._autocast():
                results[name] = validate(
                    self._model,
                    (part.to(self._device) for part in windows),
                    self._data.token_bytes,
                    self._processes,
                    end_of_text=self._data.tokenizer.end_of_text,
                    document_resets=config.document_resets,
                    answers=answers[name],
                )
        whole = self._data.is_whole_validation(max_tokens)
        result = dataclasses.replace(combine_validations(results), whole_set=whole)
        reshard(self._model)
        self._record(
            step=step,
            tokens=step * config.batch_size * config.sequence_length,
            validation_loss=result.loss,
            bits_per_byte=result.bits_per_byte,
            whole_validation_set=result.whole_set,
            loss_by_position=[dataclasses.asdict(part) for part in result.by_position],
            loss_by_document_position=[dataclasses.asdict(part) for part in result.by_document_position],
            **result.sources_record(),
        )
        if self._metrics is not None:
            self._metrics.plot()
            self._reporter.validation(step, result)
        return result

    def _sample(self) -> None:
        """Generate a sample in the main process, with the unsharded model; the others wait for it at the next step."""
        config, step = self._config, self._progress.step
        model = gather_model(self._model, self._device)
        if model is None:
            return
        lm = LanguageModel(model, self._data.tokenizer)
        prompt = config.sample_prompt or self._data.first_words()
        with self._autocast():
            generation = lm.generate(prompt, max_tokens=config.sample_max_tokens, temperature=0.8, top_p=0.9, seed=step)
            text = prompt + generation.text
        append_sample(self._run, step, text)
        self._reporter.sample(step, text)

    def _save(self) -> None:
        """Save a checkpoint to resume from, and the weights for `goldfinch.load`."""
        weights = full_weights(self._model)
        data = self._data.batches.state(self._progress.step)
        self._checkpoints.save(self._parameters, self._optimizer, self._progress, data, weights)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._dtype == torch.bfloat16)
