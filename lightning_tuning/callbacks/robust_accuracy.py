"""RobustAccuracy: the accuracy under attack, measured in validation and test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from tqdm import tqdm

from lightning_tuning.errors import InvalidValueError, check_choice, check_count, check_range, warn_of_reach
from lightning_tuning.functional import (
    PixelScale,
    default_step_size,
    error_odds,
    get_rng_state,
    projected_ascent,
    set_rng_state,
    start_of,
)
from lightning_tuning.functional.normalizing import NormalizedBefore

from .exact_resume import hash_counters

_SECONDS_BEFORE_BAR = 2
_NONE = torch.zeros(3, dtype=torch.long)


class RobustAccuracy(Callback):
    """Logs ``val/robust_accuracy`` and ``test/robust_accuracy``: the share of samples that are classified right however
    projected gradient descent (Madry et al., 2018) moves them, and ``.../clean_accuracy`` of the same samples.

    A sample is robust if it is right as it is and after the last step of every restart; what one restart has broken is
    not attacked again. What answers is what answers in evaluation: ``pl_module(x)``, so an EMA teacher where there is
    one. Batches are ``(x, y)``, or what ``unpack_batch`` makes of them, with floating ``x`` ``[N, ...]`` and class ids
    ``[N]``.

    Args:
        epsilon: Radius of the ball around each sample, > 0. In pixels of [0, 1] where the module's attribute
            ``normalize``, or else the datamodule's, tells mean and std: 0.0314 is 8/255. Otherwise in the unit of the
            inputs.
        steps: Steps of each restart, at least 1; 20 to 100.
        restarts: Attacks from different random starts, at least 1.
        step_size: Length of a step, in the unit of epsilon, > 0. None: 2.5 ``epsilon / steps``.
        norm: ``linf``: each pixel moves by at most epsilon; ``l2``: the Euclidean norm of the whole change is at most
            epsilon.
        max_batches: How many batches of each loader, and rank, are attacked, at least 1. None: all.
        every_n_epochs: During ``fit``, validations that are measured: those of every n-th epoch, at least 1.
        seed: Key of the random starts, at least 0, so that each epoch's measure has the same ones.

    Raises:
        InvalidValueError: An argument is out of range, or a batch is not of that form.

    Source: Madry, Makelov, Schmidt, Tsipras & Vladu, 2018, "Towards deep learning models resistant to adversarial
    attacks", section 2.1. The loss that is raised is the logarithm of the odds against the label: its gradient is that
    of the cross entropy but for a positive factor, and does not vanish where the network is sure.

    Example:
        >>> trainer = Trainer(callbacks=[RobustAccuracy(0.3, steps=50, restarts=3)], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        epsilon: float = 0.0314,
        steps: int = 20,
        restarts: int = 1,
        step_size: float | None = None,
        norm: Literal["linf", "l2"] = "linf",
        max_batches: int | None = None,
        every_n_epochs: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_range("epsilon", epsilon, open_low=True)
        check_count("steps", steps, 1)
        check_count("restarts", restarts, 1)
        if step_size is not None:
            check_range("step_size", step_size, open_low=True)
        check_choice("norm", norm, ("linf", "l2"))
        check_count("max_batches", max_batches, 1, optional=True)
        check_count("every_n_epochs", every_n_epochs, 1)
        check_count("seed", seed, 0)
        self.epsilon = epsilon
        self.steps = steps
        self.restarts = restarts
        self.step_size = default_step_size(epsilon, steps, "uniform") if step_size is None else step_size
        self.norm = norm
        self.max_batches = max_batches
        self.every_n_epochs = every_n_epochs
        self.seed = seed
        self._told_units = False
        self._told_reach = False
        self._counts: dict[int, Tensor] = {}
        """By loader: the samples that are robust, those that are right, all."""

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._counts = {}

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._counts = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._is_due(trainer):
            self._measure(trainer, pl_module, batch, batch_idx, dataloader_idx)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._measure(trainer, pl_module, batch, batch_idx, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_due(trainer):
            self._log(trainer, pl_module, "val", trainer.num_val_batches)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(trainer, pl_module, "test", trainer.num_test_batches)

    def _is_due(self, trainer: Trainer) -> bool:
        in_fit = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        return not (in_fit and (trainer.current_epoch + 1) % self.every_n_epochs)

    def _measure(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int, loader: int) -> None:
        if self.max_batches is not None and batch_idx >= self.max_batches:
            return
        x, target = _unpack(module, batch)
        with _nothing_left_behind(module):
            _seed(module.device, hash_counters(self.seed, loader, batch_idx, trainer.global_rank))
            x, target = x.clone(), target.clone()  # autograd takes none that were made under inference_mode
            scale = self._scale(trainer, module, x)

            def right(inputs: Tensor, target: Tensor) -> Tensor:
                with torch.no_grad(), trainer.precision_plugin.forward_context():
                    logits = module(inputs)
                if logits.ndim != 2 or logits.shape[1] < 2:
                    raise InvalidValueError(
                        f"RobustAccuracy takes logits [N, C] of two or more classes, but {type(module).__name__} gives "
                        f"{list(logits.shape)}."
                    )
                return logits.argmax(1) == target

            clean = right(x, target)
            standing = clean.nonzero()[:, 0]
            # The sanity check is to learn the metrics' names and whether an attack works, for which one step will do.
            steps, restarts = (1, 1) if trainer.sanity_checking else (self.steps, self.restarts)
            for _ in self._progress(trainer, restarts):
                if len(standing) == 0:
                    break
                part, labels = x[standing], target[standing]
                with NormalizedBefore(module, "RobustAccuracy"):
                    delta = self._attack(module, part, labels, scale, steps)
                standing = standing[right(part + delta, labels)]
            counts = torch.tensor([len(standing), int(clean.sum()), len(target)])
        self._counts[loader] = self._counts.get(loader, _NONE) + counts

    def _attack(
        self, module: LightningModule, x: Tensor, target: Tensor, scale: PixelScale | None, steps: int
    ) -> Tensor:
        def gradient(delta: list[Tensor]) -> list[Tensor]:
            # Outside of autocast: rounded gradients would make a weaker attack.
            moved = (x + delta[0]).requires_grad_()
            loss = error_odds(module(moved), target)
            if not loss.requires_grad:
                raise InvalidValueError(
                    f"RobustAccuracy needs logits with a gradient with respect to the inputs; {type(module).__name__}"
                    ".forward cuts it off. Leave out detach and torch.no_grad there."
                )
            return list(torch.autograd.grad(loss, [moved]))

        start = start_of([x], self.epsilon, self.norm, "uniform")
        (delta,) = projected_ascent(
            [x],
            start,
            gradient,
            epsilon=self.epsilon,
            steps=steps,
            step_size=self.step_size,
            norm=self.norm,
            scales=[scale],
        )
        return delta

    def _scale(self, trainer: Trainer, module: LightningModule, x: Tensor) -> PixelScale | None:
        datamodule = getattr(trainer, "datamodule", None)
        scales = [PixelScale.of(getattr(owner, "normalize", None)) for owner in (module, datamodule)]
        scale = scales[0] or scales[1]
        if scale is not None and not scale.fits(x):
            raise InvalidValueError(
                f"RobustAccuracy: normalize has {len(scale.mean)} channels, but the inputs are {list(x.shape)}. Set "
                f"self.normalize, with one mean and std for each channel, in {type(module).__name__}."
            )
        if scale is not None and not self._told_reach:
            self._told_reach = True
            warn_of_reach("RobustAccuracy", self.epsilon, self.norm)
        if scale is None and not self._told_units:
            self._told_units = True
            rank_zero_info(
                "RobustAccuracy: epsilon has the unit of the inputs, which are not clipped to a range. For epsilon in "
                "pixels of [0, 1] set self.normalize, in the module or datamodule, to an object with the mean and std "
                "of each channel (0 and 1 for inputs that are not normalised)."
            )
        return scale

    def _progress(self, trainer: Trainer, restarts: int) -> Any:
        hidden = not trainer.is_global_zero or trainer.progress_bar_callback is None
        return tqdm(range(restarts), "attack", leave=False, delay=_SECONDS_BEFORE_BAR, disable=hidden)

    def _log(self, trainer: Trainer, module: LightningModule, part: str, num_batches: list[int | float]) -> None:
        for loader in range(len(num_batches)):
            counts = self._counts.get(loader, _NONE).to(module.device, copy=True)
            robust, right, total = trainer.strategy.reduce(counts, reduce_op="sum").tolist()
            suffix = f"/dataloader_idx_{loader}" if len(num_batches) > 1 else ""
            if not total:
                continue
            for name, count in (("clean", right), ("robust", robust)):
                # Equal on all ranks already; sync_dist keeps Lightning from warning.
                module.log(
                    f"{part}/{name}_accuracy{suffix}",
                    count / total,
                    sync_dist=True,
                    prog_bar=name == "robust",
                    add_dataloader_idx=False,
                )


@contextmanager
def _nothing_left_behind(module: LightningModule) -> Iterator[None]:
    """Gradients can be taken in it, and the random generators are put back."""
    state = get_rng_state(module.device)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        set_rng_state(state)


def _seed(device: torch.device, bits: int) -> None:
    seeds: list[Callable[[int], Any]] = [torch.default_generator.manual_seed]
    if device.type != "cpu":
        seeds.append(torch.get_device_module(device).manual_seed)
    for seed in seeds:
        seed(bits)


def _unpack(module: LightningModule, batch: Any) -> tuple[Tensor, Tensor]:
    unpack = getattr(module, "unpack_batch", None)
    items = unpack(batch) if unpack is not None else batch
    if isinstance(items, (tuple, list)) and len(items) > 1:
        x, target = items[:2]
        fits = isinstance(x, Tensor) and isinstance(target, Tensor) and x.is_floating_point()
        if fits and target.ndim == 1 and not target.is_floating_point():
            return x, target
    raise InvalidValueError(
        "RobustAccuracy takes batches (x, y) of floating inputs [N, ...] and class ids [N]. Define "
        f"unpack_batch(batch) -> (x, y) in {type(module).__name__}."
    )
