"""WeightEMA: evaluates and keeps a moving average of the weights."""

from __future__ import annotations

from typing import Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_tuning.errors import InvalidValueError, check_count, check_range, check_used
from lightning_tuning.functional import LARGEST_SIGMA_REL, ema_decay, gamma_of, half_life_decay, power_decay
from lightning_tuning.timing.durations import check_duration, duration_of
from lightning_tuning.timing.progress import total_steps

from ._averaging import AveragingCallback, BufferPolicy

_DECAY = 0.999


class WeightEMA(AveragingCallback):
    """Validates, saves and finally keeps a moving average of the weights, while training goes on with the weights.

    The average is what validations of the fit measure, what checkpoints hold as the module's weights (also those
    with weights alone) and what the module carries after the fit. The weights to train on travel in the callback's own
    state, so that a resumed run is bitwise the straight one. Before ``start`` all that holds of the weights themselves.

    It averages what is trained, and batch norm's running statistics: no teachers, frozen parts or metrics. What is
    unfrozen or added later joins with its value of then. Steps are optimizer steps that fp16's scaler did not skip.

    Args:
        decay: Share of the average that stays at each optimizer step, in ``[0, 1]``: 0.999 averages over about 1000
            steps, 0 makes the average the weights.
        half_life: Duration in which the share of a step's weights falls by half, in place of the decay: ``500st``,
            ``2ep``, ``0.05dur``. Off: null.
        sigma_rel: Standard deviation of a power-function profile, as a share of the steps so far, in ``(0, 0.2886]``,
            in place of the decay: the average reaches back further, the longer the run. Karras et al. use 0.05 to 0.2;
            at 0.2886 it is the mean of all. Off: null.
        warmup_power: Exponent p of the warm-up, in ``(0, 1]``: the t-th decay is at most ``1 - (1 + t) ** -p``, so
            that the first weights are soon forgotten. 1 is a running mean of all so far, 2/3 or 3/4 forget faster.
            Null: no warm-up. A power-function profile needs none.
        start: Duration after which the average begins, with the weights of then.
        every_n_steps: Optimizer steps between two updates, at least 1. The decay is that of a step all the same.
        buffers: ``average`` batch norm's running statistics like weights; ``copy`` uses those of the weights;
            ``recompute`` computes them anew from an epoch's training batches before each validation and at the end.
        offload: Whether the average is kept in the CPU's memory, for a copy of the weights at each update.
        validate_raw: Whether each validation of the fit is run with the weights too, and its metrics logged with
            ``_raw`` behind their names.
        final: What the module carries after the fit: the ``average``, or the ``raw`` weights.

    Raises:
        InvalidValueError: An argument is not allowed, or two of decay, half-life and sigma_rel are given.
        MisconfigurationException: When training starts, if another callback averages weights too, or under strategies
            that keep the weights in tensors of their own (FSDP 1, DeepSpeed).
        NoEffectError: When training starts, if nothing is trained.

    Source: Polyak & Juditsky, 1992; warm-up of Tarvainen & Valpola, 2017, and (powers below 1) of timm's ModelEmaV3;
    power-function profile of Karras et al., 2024, "Analyzing and improving the training dynamics of diffusion models",
    section 3.1.

    Example:
        >>> trainer = Trainer(callbacks=[WeightEMA(half_life="2ep", start="1ep")], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        decay: float | None = _DECAY,
        half_life: str | None = None,
        sigma_rel: float | None = None,
        warmup_power: float | None = 1.0,
        start: str = "0st",
        every_n_steps: int = 1,
        buffers: BufferPolicy = "average",
        offload: bool = False,
        validate_raw: bool = False,
        final: Literal["average", "raw"] = "average",
    ) -> None:
        super().__init__(start, buffers, offload, validate_raw, final)
        if half_life is not None:
            check_duration("half_life", half_life)
        if sigma_rel is not None:
            check_range("sigma_rel", sigma_rel, 0.0, LARGEST_SIGMA_REL, open_low=True)
        if warmup_power is not None:
            check_range("warmup_power", warmup_power, 0.0, 1.0, open_low=True)
        check_count("every_n_steps", every_n_steps, 1)
        given = {"decay": None if decay == _DECAY else decay, "half_life": half_life, "sigma_rel": sigma_rel}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) > 1 or (decay is None and not given):
            found = " and ".join(f"{name}={value!r}" for name, value in given.items()) or "none of them"
            raise InvalidValueError(
                f"WeightEMA takes one of decay, half_life and sigma_rel, but came with {found}. Leave the others out."
            )
        if decay is not None:
            check_range("decay", decay, 0.0, 1.0)
        if sigma_rel is not None and warmup_power is not None:
            check_used("warmup_power", warmup_power, 1.0, "a decay or half_life", False)
        self.decay = decay
        self.half_life = half_life
        self.sigma_rel = sigma_rel
        self.warmup_power = warmup_power
        self.every_n_steps = every_n_steps
        self._gamma = None if sigma_rel is None else gamma_of(sigma_rel)
        self._update_decay = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.half_life is None:
            decay = self.decay or 0.0
        else:
            decay = half_life_decay(duration_of(self.half_life).steps(trainer))
        self._update_decay = decay**self.every_n_steps
        super().on_train_start(trainer, pl_module)
        self._warn_of_idleness(trainer)

    def _warn_of_idleness(self, trainer: Trainer) -> None:
        try:
            length = total_steps(trainer)
        except MisconfigurationException:  # a run without an end
            return
        short = trainer.fast_dev_run  # type: ignore[attr-defined]
        if self._updates or short or self._start_steps + self.every_n_steps <= length:
            return
        begins = self._start_steps < length
        rank_zero_warn(
            f"WeightEMA never moves in this run of {length} optimizer steps, with start={self.start!r} and "
            f"every_n_steps={self.every_n_steps}. What is validated, saved and delivered are "
            f"{f'the weights of step {self._start_steps}' if begins else 'the weights, and no average'}. Write an "
            "earlier start or smaller steps."
        )

    def _is_due(self, trainer: Trainer) -> bool:
        return (self._steps - self._start_steps) % self.every_n_steps == 0

    def _decay(self, update: int) -> float:
        if self._gamma is not None:
            return power_decay(update, self._gamma)
        warmup = self.warmup_power is not None
        return ema_decay(update, self._update_decay, warmup, self.warmup_power or 1.0)
