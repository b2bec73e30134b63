"""LRRangeTest: which learning rates train, found out by steps that are taken back."""

from __future__ import annotations

import json
import math
import os
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from tqdm import tqdm

from lightning_tuning.errors import InvalidValueError, check_choice, check_count, check_range
from lightning_tuning.functional.lr_range import LR_RULES, has_diverged, lr_sweep, smoothed, suggest_lr

from ._learning_rates import full_rates, scale_rates, set_rates
from ._lr_range import LRRange, draw_lr_range
from ._pictures import save_picture
from ._rehearsal import rehearsal

_SECONDS_BEFORE_BAR = 2


class LRRangeTest(Callback):
    """Raises the learning rate step by step before training, watches the loss and suggests rates (Smith, 2017).

    At the first batch of a run it trains for ``steps`` optimizer steps at rates from ``min_lr`` to ``max_lr``, and
    takes all of it back: weights, buffers, optimizer, random numbers, counters, the place in the data, whatever
    techniques keep. With ``apply: false`` the run that follows is bitwise the run without the test. The steps are those
    of training: accumulation, precision, clipping, mixins and callbacks that edit gradients act; schedules do not, and
    nothing is logged.

    It writes ``lr_range_test.png`` and ``lr_range_test.json`` into the run's folder and prints what four rules suggest.
    The rate is that of the parameter group with the highest one; the others keep their ratio to it, in the test and
    when a suggestion is applied. A run that resumes from a checkpoint is left alone: its rates are in the checkpoint.

    Args:
        min_lr: First learning rate, > 0.
        max_lr: Last learning rate, above ``min_lr``.
        steps: Optimizer steps of the test, at least 10.
        mode: ``exponential`` raises the rate by equal factors, ``linear`` by equal differences.
        rule: Which suggestion is taken. ``steepest``: where the loss falls fastest over the logarithm of the rate;
            ``minimum``: a tenth of the rate at its minimum; ``valley``: the middle of its longest fall;
            ``divergence``: ``divergence_fraction`` of the rate at which it diverged.
        apply: Whether the run trains at the suggestion of ``rule``. The schedules' base rates are scaled too.
            Otherwise it is only reported.
        smoothing: Share of the old average in the average of the losses, in [0, 1). 0 takes the losses as they are.
        divergence_factor: The test stops where the averaged loss is above this factor times its lowest value, > 1, or
            is not finite.
        divergence_fraction: For the rule ``divergence``, in (0, 1].

    Raises:
        InvalidValueError: An argument is not allowed.
        MisconfigurationException: At the first batch, under manual optimization, where no process holds whole weights,
            or for data that can be read only once.

    Source: Smith, 2017, "Cyclical learning rates for training neural networks", section 3.3. The loss that is noted at
    a rate is that of the batch after the step with it.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[LRRangeTest(apply=True, rule="minimum")], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        min_lr: float = 1e-7,
        max_lr: float = 10.0,
        steps: int = 100,
        mode: Literal["exponential", "linear"] = "exponential",
        rule: Literal["steepest", "minimum", "valley", "divergence"] = "steepest",
        apply: bool = False,
        smoothing: float = 0.8,
        divergence_factor: float = 4.0,
        divergence_fraction: float = 0.1,
    ) -> None:
        super().__init__()
        check_range("min_lr", min_lr, open_low=True)
        check_range("max_lr", max_lr, min_lr, open_low=True)
        check_count("steps", steps, 10)
        check_choice("mode", mode, ("exponential", "linear"))
        check_choice("rule", rule, LR_RULES)
        if not isinstance(apply, bool):
            raise InvalidValueError(f"apply is {apply!r}; it must be true or false. Name the rule as rule={apply!r}.")
        check_range("smoothing", smoothing, 0, 1, open_high=True)
        check_range("divergence_factor", divergence_factor, 1, open_low=True)
        check_range("divergence_fraction", divergence_fraction, 0, 1, open_low=True)
        self.min_lr = min_lr
        self.max_lr = max_lr
        self.steps = steps
        self.mode = mode
        self.rule = rule
        self.apply = apply
        self.smoothing = smoothing
        self.divergence_factor = divergence_factor
        self.divergence_fraction = divergence_fraction
        self.suggestions: dict[str, float | None] = {}
        """What each rule suggests, once the test has been made; None where it finds nothing."""
        self._is_due = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        begins = trainer.ckpt_path is None and trainer.global_step == 0
        self._is_due = begins and not trainer.fast_dev_run  # type: ignore[attr-defined]
        if not begins:
            rank_zero_info("LRRangeTest does nothing: the run goes on from a checkpoint, with the rates in it.")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # Not earlier: by now every hook of the run's and the epoch's start has been called, in whatever order.
        if not self._is_due:
            return
        self._is_due = False
        found, own_lr = self._test(trainer, pl_module)
        self.suggestions = found.suggestions
        lr = found.suggestions[self.rule] if self.apply else None
        if lr is not None:
            scale_rates(trainer, trainer.optimizers[0], lr / own_lr)
            for logger in trainer.loggers:
                logger.log_hyperparams({"lr_range_test_lr": lr})
        self._report(trainer, found, own_lr, lr)

    def _test(self, trainer: Trainer, module: LightningModule) -> tuple[LRRange, float]:
        """Measure, and take it back. Returned with the configured learning rate."""
        lrs: list[float] = []
        losses: list[float] = []
        diverged_at = None
        rates = lr_sweep(self.min_lr, self.max_lr, self.steps, self.mode)
        with rehearsal(trainer, module, type(self).__name__) as steps:
            optimizer = trainer.optimizers[0]
            full = full_rates(trainer, optimizer)
            own_lr = max(full)
            if own_lr <= 0:
                raise InvalidValueError("LRRangeTest keeps the groups' ratios, but none has a learning rate above 0.")
            set_rates(optimizer, [rate / own_lr * rates[0] for rate in full])
            steps.step()
            for lr, next_lr in self._progress(trainer, list(zip(rates, [*rates[1:], rates[-1]], strict=True))):
                set_rates(optimizer, [rate / own_lr * next_lr for rate in full])
                loss = steps.step()  # taken before the step, so it is what the rate before has led to
                if loss is None:
                    continue
                averages = smoothed([*losses, loss], self.smoothing)
                if has_diverged(averages[-1], min(averages), self.divergence_factor):
                    diverged_at = lr
                if math.isfinite(loss):
                    lrs.append(lr)
                    losses.append(loss)
                if diverged_at is not None:
                    break
        averages = smoothed(losses, self.smoothing)
        suggestions = suggest_lr(lrs, averages, diverged_at, self.divergence_fraction)
        return LRRange(self.mode, lrs, losses, averages, diverged_at, suggestions), own_lr

    def _progress(self, trainer: Trainer, rates: list[Any]) -> Any:
        hidden = not trainer.is_global_zero or trainer.progress_bar_callback is None
        return tqdm(rates, "learning rates", leave=False, delay=_SECONDS_BEFORE_BAR, disable=hidden)

    def _report(self, trainer: Trainer, found: LRRange, own_lr: float, applied: float | None) -> None:
        """Draw, write and print it."""
        picture = save_picture(trainer, draw_lr_range(found, own_lr, self.rule), "lr_range_test")
        if picture is None:
            return
        content = {**found._asdict(), "rule": self.rule, "configured": own_lr, "applied": applied}
        part = picture.with_name(".lr_range_test.part.json")
        part.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(part, picture.with_suffix(".json"))
        decision = f"The run trains at {own_lr:.3g}, as configured."
        if applied is not None:
            decision = f"The run trains at {applied:.3g} ({self.rule}) instead of {own_lr:.3g}."
        rank_zero_info("\n".join([*found.table(self.rule), decision, f"Picture: {picture}"]))
        if self.apply and applied is None:
            rank_zero_warn(
                f"LRRangeTest: the rule {self.rule!r} finds no learning rate, so the run trains at {own_lr:.3g}, as "
                f"configured. {found.why_nothing(self.rule)} See {picture}"
            )
