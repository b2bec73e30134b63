"""ActivationHealth: dead and saturated units, the scale of activations and gradients by layer, and what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_tuning.errors import check_count, check_range
from lightning_tuning.functional import run_lengths, step_was_skipped

from ._activation_look import ActivationLook, Place, has_weights, is_activation, leaves
from ._diagnosis import diagnose
from ._gradients import holds_whole_gradients, remaining_scale
from ._health_picture import draw_health
from ._health_report import Layer, Limits, Reading, Report
from ._pictures import save_picture
from .gradient_norm import Norms

_MOST_LOOKS = 256
_REDRAWN_AT = 1.5


class ActivationHealth(Callback):
    """Looks at one batch every n steps for dead and saturated units, the scale of activations and gradients by layer,
    and says in a sentence what is wrong and what helps.

    At a look it logs ``health/<metric>/<layer>``. For layers that hooks can see, those without layers inside: ``mean``
    and ``std`` of the outputs and ``variation`` (how much of them depends on the sample, from 0 to 1). For activations
    besides: ``pre_mean`` and ``pre_std`` of the inputs, ``dead`` (share of units that no sample has switched on in the
    last looks) and ``saturated`` (share of outputs where the activation is flat), where the activation can be so. For
    layers with weights: ``gradient``, the root mean square of the weight's gradient. ``health/gradient_ratio`` is that
    of the first layer divided by that of the last, ``health/gradient_norm`` the norm of the whole gradient. It draws
    ``activation_health.png``, and each diagnosis is a warning and a line in ``diagnosis.txt``.

    The first forward pass of the step counts, with the graph, of the last batch of an accumulation window, on the first
    process. Hooks stand for that pass only. It changes nothing of the training.

    Args:
        every_n_steps: Optimizer steps between two looks, at least 1; the first step is one.
        window: Looks in a row, at least 1, that make a unit dead, and that a finding on shares or ratios has to last.
        max_dead: Share of dead units of a layer above which it is told, in [0, 1]; 1 = never.
        max_saturated: Share of saturated outputs of a hidden layer above which it is told, in [0, 1]; 1 = never.
        min_variation: ``variation`` of a hidden activation below which it is told, at least 0; 0 = never.
        max_ratio: How many times the weight gradient's RMS may differ between the first and the last layer, and the
            activations' between the first and any other, before it is told, above 1; .inf = never.
        max_growth: How many times what they used to be the gradient's norm and the RMS of a layer's activations may be,
            above 1; .inf = never. What they used to be is the median of the earlier looks, but no less than the first.

    Raises:
        InvalidValueError: If an argument is out of range.

    Source: Glorot & Bengio, 2010, "Understanding the difficulty of training deep feedforward neural networks"
    (saturation, activations and gradients by layer); Lu et al., 2020, "Dying ReLU and initialization" (dead units).

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[ActivationHealth(every_n_steps=100)], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        window: int = 3,
        max_dead: float = 0.5,
        max_saturated: float = 0.5,
        min_variation: float = 0.01,
        max_ratio: float = 1000.0,
        max_growth: float = 100.0,
    ) -> None:
        super().__init__()
        check_count("every_n_steps", every_n_steps, 1)
        check_count("window", window, 1)
        check_range("max_dead", max_dead, 0, 1)
        check_range("max_saturated", max_saturated, 0, 1)
        check_range("min_variation", min_variation)
        for name, value in (("max_ratio", max_ratio), ("max_growth", max_growth)):
            if value != math.inf:
                check_range(name, value, 1, open_low=True)
        self.every_n_steps = every_n_steps
        self._limits = Limits(window, max_dead, max_saturated, min_variation, max_ratio, max_growth)
        self._handles: list[RemovableHandle] = []
        self._look: ActivationLook | None = None
        self._is_due = self._stepped = False
        self._gradients: dict[str, Tensor] = {}
        self._forget()

    def _forget(self) -> None:
        self._steps = 0
        self._looks = self._looks_drawn = 0
        self._forget_readings()

    def _forget_readings(self) -> None:
        self._report = Report(self._limits)
        self._idle_runs: dict[str, Tensor] = {}
        self._stride = 1
        self._look_steps: list[int] = []
        self._series: dict[str, list[float]] = {}

    # A run.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.global_step == 0:  # a later fit of the same Trainer goes on
            self._forget()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._release()
        if not trainer.is_global_zero:  # a checkpoint has brought those of the first process, which alone looks
            self._forget_readings()

        def stepped(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            self._stepped |= not step_was_skipped(optimizer)

        self._handles = [optimizer.register_step_post_hook(stepped) for optimizer in trainer.optimizers]
        if not any(is_activation(layer) for _, layer in leaves(pl_module)):
            rank_zero_info(
                f"ActivationHealth: {type(pl_module).__name__} has no activation layer. Functions such as F.relu(x) "
                "cannot be looked at: write self.act = nn.ReLU() in __init__ and self.act(x) in forward. The scale of "
                "the other layers and the gradients are looked at all the same."
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._close()
        self._stepped = False
        self._is_due = self._steps % self.every_n_steps == 0 and not trainer.fit_loop._should_accumulate()
        if self._is_due and trainer.is_global_zero:
            self._look = ActivationLook(pl_module)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        # Layers that are called from now on compute something again: checkpointing, SAM.
        if self._look is not None:
            self._look.close()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self._look is None or not holds_whole_gradients(trainer.strategy):
            return
        norms = Norms(trainer.precision_plugin.main_params(optimizer), widen=True)
        scale = remaining_scale(trainer, optimizer, norms.total)
        each, total = (x if scale is None else x / scale for x in (norms.each, norms.total))
        known = self._gradients.get("gradient_norm")
        self._gradients["gradient_norm"] = total if known is None else torch.hypot(known, total)
        squares = dict(zip(norms.parameters, each.square(), strict=True))
        for place in self._look.places():
            weights = [p for p in place.layer.parameters() if p.ndim >= 2 and p in squares]
            # An embedding's gradient is zero in all rows that the batch does not use.
            if weights and not isinstance(place.layer, nn.Embedding) and "#" not in place.name:
                mean = sum(squares[p] for p in weights) / sum(p.numel() for p in weights)
                self._gradients[f"gradient/{place.name}"] = torch.as_tensor(mean).sqrt()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._is_due:
            counts, sentences = self._finish(trainer, pl_module, self._look) if self._look else (False, [])
            # Every process has to take part in writing a diagnosis or a picture.
            counts, sentences = trainer.strategy.broadcast((counts, sentences))
            self._looks += counts
            for sentence in sentences:
                diagnose(trainer, sentence)
        self._close()
        self._steps += self._stepped

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Rarely enough that drawing costs little, and by a rule that all processes follow.
        if not trainer.sanity_checking and self._looks >= max(_REDRAWN_AT * self._looks_drawn, 1):
            self._draw(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._looks > self._looks_drawn:
            self._draw(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._close()
        self._release()

    def _release(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _close(self) -> None:
        if self._look is not None:
            self._look.close()
        self._look, self._is_due, self._gradients = None, False, {}

    def _draw(self, trainer: Trainer) -> None:
        save_picture(trainer, draw_health(self._look_steps, self._series), "activation_health")
        self._looks_drawn = self._looks

    # A look.

    def _finish(self, trainer: Trainer, module: LightningModule, look: ActivationLook) -> tuple[bool, list[str]]:
        """Whether the look counts, and what it says.

        One whose step fp16's scaler skipped is repeated at the next step and advances nothing.
        """
        places = look.places()
        if not places:
            return False, self._blind(module)
        known = self._idle_runs
        idle_runs = {p.name: run_lengths(known.get(p.name), p.idle) for p in places if p.idle is not None}
        reading = self._read(places, idle_runs)
        if not self._stepped:
            return False, self._report.not_finite(reading)
        self._idle_runs |= idle_runs
        logged: Any = {f"health/{name}": value for name, value in reading.values.items()}
        trainer._logger_connector.log_metrics(logged)
        sentences = self._report.examine(reading, self._series)
        self._keep(reading)
        return True, sentences

    def _blind(self, module: LightningModule) -> list[str]:
        if not (self._stepped and self._report.memory.is_news("blind", 0.0)):
            return []
        return [
            f"ActivationHealth sees no layer of {type(module).__name__}; hooks reach neither what torch.compile has "
            "compiled nor parameters that are used without a layer: leave the model uncompiled while you look at it, "
            "make layers of its parts (self.fc = nn.Linear(...)), or remove the callback."
        ]

    def _read(self, places: Sequence[Place], idle_runs: Mapping[str, Tensor]) -> Reading:
        scalars = {f"{metric}/{place.name}": value for place in places for metric, value in place.values.items()}
        for name, runs in idle_runs.items():
            scalars[f"dead/{name}"] = runs.ge(self._limits.window).float().mean()
        scalars |= self._gradients
        scalars |= {f"weight/{p.name}": p.largest_weight for p in places if p.largest_weight is not None}
        device = next(iter(scalars.values())).device
        numbers: list[float] = torch.stack([value.to(device).float() for value in scalars.values()]).tolist()
        values = dict(zip(scalars, numbers, strict=True))  # one wait for the device
        weights = {place.name: values.pop(f"weight/{place.name}", 0.0) for place in places}
        profile = [values[name] for p in places if (name := f"gradient/{p.name}") in values]
        if len(profile) > 1 and profile[-1] > 0:
            values["gradient_ratio"] = profile[0] / profile[-1]
        layers = [Layer(p.name, type(p.layer).__name__, is_activation(p.layer), has_weights(p.layer)) for p in places]
        broken = [name for name, value in weights.items() if not math.isfinite(value)]
        return Reading(self._steps, layers, values, broken, [p.name for p in places if p.dtype == torch.float16])

    def _keep(self, reading: Reading) -> None:
        """Add the look to those that are drawn: all, or of very many every 2nd, 4th, ..."""
        if self._looks % self._stride:
            return
        for name in reading.values:
            self._series.setdefault(name, [math.nan] * len(self._look_steps))
        for name, values in self._series.items():
            values.append(reading.values.get(name, math.nan))
        self._look_steps.append(reading.step)
        if len(self._look_steps) > _MOST_LOOKS:
            self._stride *= 2
            self._look_steps = self._look_steps[::2]
            self._series = {name: values[::2] for name, values in self._series.items()}

    # Checkpoints.

    def state_dict(self) -> dict[str, Any]:
        return {
            "steps": self._steps,
            "looks": self._looks,
            "report": self._report.state(),
            "idle_runs": {name: runs.cpu() for name, runs in self._idle_runs.items()},
            "stride": self._stride,
            "look_steps": list(self._look_steps),
            "series": {name: torch.tensor(values, dtype=torch.float64) for name, values in self._series.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._steps, self._looks, self._looks_drawn = state_dict["steps"], state_dict["looks"], 0
        self._report.load(state_dict["report"])
        self._idle_runs = dict(state_dict["idle_runs"])
        self._stride, self._look_steps = state_dict["stride"], list(state_dict["look_steps"])
        self._series = {name: values.tolist() for name, values in state_dict["series"].items()}
