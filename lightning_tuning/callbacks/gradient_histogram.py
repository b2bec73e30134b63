"""GradientHistogram: how the magnitudes of each layer's gradients, weights and updates are spread, over the run."""

from __future__ import annotations

import os
from typing import Any, Literal, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_tuning.errors import check_choice, check_count
from lightning_tuning.functional import magnitude_counts
from lightning_tuning.functional.magnitude import HIGHEST, LOWEST, OCTAVES

from ._gradients import holds_whole_gradients, remaining_scale
from ._heat_maps import histogram_maps
from ._layer_names import names_by_layer
from ._norms import stored
from ._pictures import run_folder, save_after_error, save_picture
from ._timeline import Timeline

_TITLES = {kind: f"magnitudes of the {kind}s" for kind in ("gradient", "weight", "update")}


class GradientHistogram(Callback):
    """Collects histograms of the magnitudes of each layer's gradients and, on demand, of its weights and updates.

    Every ``every_n_steps`` optimizer steps it counts how many elements lie in each octave (between two powers of 2),
    how many are zero and how many are infinite or NaN. What it leaves:

    * ``gradient_histogram.npz`` in the run's folder: ``steps`` ``[T]``, ``layers`` ``[L]``, ``log2`` ``[65]`` (edges
      of the octaves) and for each of ``gradient``, ``weight`` and ``update`` that was asked for ``<name>``
      ``[T, L, 64]``, ``<name>_zeros`` and ``<name>_non_finite`` ``[T, L]``, all of them counts;
    * ``gradient_histogram.png``, ``weight_histogram.png``, ``update_histogram.png``: a heat map for each layer,
      magnitude over steps;
    * ``gradient_histogram/zeros`` and ``gradient_histogram/non_finite`` at the loggers: the shares over all layers;
    * at Weights & Biases, where that is a logger, ``gradient_histogram/<layer>`` as histograms.

    Files and pictures are written at the end of the training, also after Ctrl-C or an error in a run of one process. Of
    the steps at most 512 are kept, spread evenly over the run; they are saved in checkpoints.

    The gradient is the accumulated one under accumulation, the reduced one under DDP, the unscaled one under fp16, and
    the one that the optimizer uses under SAM, but before the Trainer's clipping. Callbacks that edit gradients act in
    the order of the list. The weights are those before the step, an update is what the step adds to them: zero if
    fp16's scaler skips it. Nothing is computed at the other steps.

    Args:
        every_n_steps: Optimizer steps between two looks, at least 1; the first step is one.
        group_by: ``layer``: one histogram for each module that owns parameters; ``parameter``: one for each parameter.
        weights: Whether histograms of the weights are taken too.
        updates: Whether histograms of the updates are taken too. For the length of such a step it holds a copy of the
            trained weights.

    Raises:
        InvalidValueError: If an argument is not allowed.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[GradientHistogram(every_n_steps=200)], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        every_n_steps: int = 100,
        group_by: Literal["layer", "parameter"] = "layer",
        weights: bool = False,
        updates: bool = False,
    ) -> None:
        super().__init__()
        check_count("every_n_steps", every_n_steps, 1)
        check_choice("group_by", group_by, ("layer", "parameter"))
        self.every_n_steps = every_n_steps
        self.group_by = group_by
        self.weights = weights
        self.updates = updates
        self._active = False
        self._counts: dict[str, dict[str, Tensor]] = {}
        self._before: dict[nn.Parameter, Tensor] = {}
        self._names: dict[nn.Parameter, str] = {}
        self._timelines: dict[str, Timeline] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.global_step == 0:  # a later fit of the same Trainer goes on
            self._timelines = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._counts, self._before, self._names = {}, {}, {}
        self._active = holds_whole_gradients(trainer.strategy)
        if not self._active:
            rank_zero_warn(
                f"GradientHistogram collects nothing under {type(trainer.strategy).__name__}: no rank holds whole "
                "gradients there. Train on a single device or with DDP, or remove the callback."
            )

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if not self._active or trainer.fit_loop.epoch_loop._batches_that_stepped % self.every_n_steps:
            return
        held = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not held:
            return
        if not all(p in self._names for p in held):
            self._names = dict.fromkeys(held, "other") | names_by_layer(pl_module, self.group_by)
        gradients = [stored(cast(Tensor, p.grad)) for p in held]
        scale = remaining_scale(trainer, optimizer, gradients[0])
        self._count("gradient", held, gradients if scale is None else [g / scale for g in gradients])
        if self.weights:
            self._count("weight", held, [p.detach() for p in held])
        if self.updates:
            self._before |= {p: p.detach().clone() for p in held if p not in self._before}

    def _count(self, kind: str, parameters: list[nn.Parameter], tensors: list[Tensor]) -> None:
        counts = magnitude_counts(tensors)
        layers: dict[str, Tensor] = {}
        for parameter, row in zip(parameters, counts, strict=True):
            name = self._names[parameter]
            layers[name] = layers[name] + row if name in layers else row
        self._counts.setdefault(kind, {}).update(layers)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._counts:
            return
        if self._before:
            moved = [(p.detach() - before) for p, before in self._before.items()]
            self._count("update", list(self._before), moved)
            self._before = {}
        counts, self._counts = self._counts, {}
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        for kind, layers in counts.items():
            rows = dict(zip(layers, torch.stack(list(layers.values())).int().cpu().numpy(), strict=True))
            self._timelines.setdefault(kind, Timeline()).add(step, rows)
            _show(trainer, kind, rows, step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        save_after_error(trainer, self._save)

    def _save(self, trainer: Trainer) -> None:
        arrays: dict[str, Any] = {}
        for kind, timeline in self._timelines.items():
            steps, layers, counts = timeline.arrays()
            arrays |= {"steps": steps, "layers": np.array(layers), "log2": np.arange(LOWEST, HIGHEST + 2)}
            arrays |= {kind: counts[..., :OCTAVES]}
            arrays |= {f"{kind}_zeros": counts[..., -2], f"{kind}_non_finite": counts[..., -1]}
            figure = histogram_maps(steps, layers, counts[..., :OCTAVES], LOWEST, _TITLES[kind])
            save_picture(trainer, figure, f"{kind}_histogram")
        folder = run_folder(trainer)
        if arrays and trainer.is_global_zero:
            path, part = folder / "gradient_histogram.npz", folder / ".gradient_histogram.part.npz"
            np.savez_compressed(part, **arrays)
            os.replace(part, path)

    def state_dict(self) -> dict[str, Any]:
        return {kind: timeline.state() for kind, timeline in self._timelines.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for kind, state in state_dict.items():
            self._timelines[kind] = Timeline()
            self._timelines[kind].load(state)


def _show(trainer: Trainer, kind: str, rows: dict[str, NDArray[Any]], step: int) -> None:
    """Hand a step's histograms to Weights & Biases, and the shares of zeros and non-finite values to all loggers."""
    total = np.stack(list(rows.values())).sum(0, dtype=np.int64)
    shares = {"zeros": total[-2] / total.sum(), "non_finite": total[-1] / total.sum()}
    metrics: dict[str, Any] = {f"{kind}_histogram/{name}": float(share) for name, share in shares.items()}
    trainer._logger_connector.log_metrics(metrics)
    edges = np.arange(LOWEST, HIGHEST + 2)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger) and trainer.is_global_zero:
            import wandb

            histograms = {
                f"{kind}_histogram/{layer}": wandb.Histogram(np_histogram=(row[:OCTAVES], edges))
                for layer, row in rows.items()
            }
            logger.log_metrics(histograms, step)  # type: ignore[arg-type]
