"""PostHocEMA: averages of weights whose length is chosen after the run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_tuning.checkpoint_file import checked
from lightning_tuning.errors import InvalidValueError, check_choice, check_range, check_used
from lightning_tuning.functional import (
    LARGEST_SIGMA_REL,
    WeightAverage,
    assign_,
    gamma_of,
    parts_named,
    power_decay,
    power_shares,
)
from lightning_tuning.timing.durations import check_duration, duration_of
from lightning_tuning.whole_file import write_whole

from ._averaging import AveragingCallback
from ._candidates import metric_of, refuse_restoring, save_checkpoint, validation_metrics
from ._pictures import run_folder
from ._training_batches import recalibrate_on_training_data

_FOLDER = "post_hoc_ema"


class PostHocEMA(AveragingCallback):
    """Stores power-function averages of the weights along the run, from which an average of any length can be made when
    it is over (Karras et al., 2024).

    An average's length ``sigma_rel`` is the standard deviation of its profile, as a share of the run. Two averages are
    kept and written to ``post_hoc_ema/`` in the run's folder from time to time; :meth:`reconstruct` combines the files
    by least squares to one of the length that is wanted. With ``candidates`` that is done at the end of the fit: each
    length is validated, the module carries the best, and it is written to ``checkpoints/post_hoc_ema.ckpt``, which the
    command line tests.

    Until then the first of the two averages is what validations measure and what checkpoints hold. Training goes on
    with the weights, and a resumed run is bitwise the straight one. Steps are optimizer steps that fp16's scaler did
    not skip.

    Args:
        sigma_rels: Lengths of the averages that are kept, at least two different ones in (0, 0.2886]. From the paper's
            0.05 and 0.1, lengths from 0.03 to 0.25 can be made.
        store_every: Time between two files; ``0.05dur`` makes 20. Each holds both averages.
        candidates: Lengths that are compared at the end of the fit, in (0, 0.2886]. Null: none; the run ends with the
            first of ``sigma_rels``.
        monitor: The metric of validation by which they are compared.
        mode: Whether it is to be as small (``min``) or as large (``max``) as can be.
        offload: Whether the averages are kept in the CPU's memory, for a copy of the weights at each step.
        validate_raw: Whether each validation of the fit is run with the weights too, and its metrics logged with
            ``_raw`` behind their names.
        final: What the module carries after a fit without candidates: the ``average``, or the ``raw`` weights.

    Raises:
        InvalidValueError: An argument is not allowed, or validation does not log the metric.
        MisconfigurationException: When training starts, if another callback averages weights too, with candidates if
            an ``EarlyStop`` restores weights, or under strategies that keep the weights in tensors of their own
            (FSDP 1, DeepSpeed).
        NoEffectError: When training starts, if nothing is trained.

    Source: Karras, Aittala, Lehtinen, Hellsten, Aila & Laine, 2024, "Analyzing and improving the training dynamics of
    diffusion models", section 3 and appendix C.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[PostHocEMA(candidates=[0.05, 0.1, 0.2])], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        sigma_rels: Sequence[float] = (0.05, 0.1),
        store_every: str = "0.05dur",
        candidates: list[float] | None = None,
        monitor: str = "val/loss",
        mode: Literal["min", "max"] = "min",
        offload: bool = False,
        validate_raw: bool = False,
        final: Literal["average", "raw"] = "average",
    ) -> None:
        super().__init__(offload=offload, validate_raw=validate_raw, final=final)
        if not isinstance(sigma_rels, (list, tuple)) or len(set(sigma_rels)) < 2:
            raise InvalidValueError(
                f"sigma_rels is {sigma_rels!r}; it must be a list of at least two different lengths."
            )
        if candidates is not None and not (isinstance(candidates, (list, tuple)) and candidates):
            raise InvalidValueError(f"candidates is {candidates!r}; it must be a list of lengths, or None.")
        for name, values in {"sigma_rels": sigma_rels, "candidates": candidates or []}.items():
            for value in values:
                check_range(name, value, 0.0, LARGEST_SIGMA_REL, open_low=True)
        check_duration("store_every", store_every)
        check_choice("mode", mode, ("min", "max"))
        check_used("monitor", monitor, "val/loss", "candidates", bool(candidates))
        check_used("mode", mode, "min", "candidates", bool(candidates))
        if candidates:
            check_used("final", final, "average", "candidates: null", False)
        self.sigma_rels = tuple(sigma_rels)
        self.store_every = store_every
        self.candidates = candidates
        self.monitor = monitor if candidates else None  # what MonitorCheck looks for
        self.mode = mode
        self.made_checkpoint: Path | None = None
        """After a fit with candidates, the file of the best."""
        self.scores: dict[float, float] = {}
        """After a fit with candidates, the metric of each."""
        self._gammas = [gamma_of(sigma_rel) for sigma_rel in self.sigma_rels]
        self._others: list[WeightAverage] = []
        """The averages but the first."""
        self._store_steps = 1.0
        self._stored: list[str] = []

    def _decay(self, update: int) -> float:
        return power_decay(update, self._gammas[0])

    # The fit.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and self._average is None:
            self._stored, self.scores, self.made_checkpoint = [], {}, None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.candidates:
            refuse_restoring(trainer, "PostHocEMA(candidates=...)")
        self._store_steps = max(duration_of(self.store_every).steps(trainer), 1.0)
        super().on_train_start(trainer, pl_module)
        for average in self._others:
            average.add(self._parts(pl_module))
            average.place()

    def _begin(self, pl_module: LightningModule) -> None:
        super()._begin(pl_module)
        self._others = [WeightAverage(self._parts(pl_module), offload=self.offload) for _ in self._gammas[1:]]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        trained = self._trained
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._trained is not trained:
            for average in self._others:
                average.add(self._parts(pl_module))

    def _after_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super()._after_step(trainer, pl_module)
        for average, gamma in zip(self._others, self._gammas[1:], strict=True):
            average.update(power_decay(self._updates, gamma))
        if self._updates // self._store_steps > (self._updates - 1) // self._store_steps:
            self._store(trainer)

    def _store(self, trainer: Trainer) -> None:
        path = run_folder(trainer) / _FOLDER / f"{self._updates:09d}.pt"
        if self._average is None or str(path) in self._stored:
            return
        averages = [average.values() for average in (self._average, *self._others)]
        is_written = True
        if trainer.is_global_zero:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._set_aside(path.parent, everything=trainer.ckpt_path is None and not self._stored)
                write_whole({"updates": self._updates, "gammas": self._gammas, "averages": averages}, path)
            except (OSError, RuntimeError) as error:  # torch has its own for some cases of a full disk
                is_written = False
                rank_zero_warn(f"PostHocEMA: {path} was not written: {error}. The averages are made without it.")
        if trainer.strategy.broadcast(is_written):
            self._stored.append(str(path))

    def _set_aside(self, folder: Path, everything: bool) -> None:
        """Move files of an earlier run or of steps that were taken back: :meth:`reconstruct` would mix them in."""
        others = [path for path in folder.glob("*.pt") if everything or int(path.stem) > self._updates]
        if others:
            free = (folder.with_name(f"{folder.name}_earlier_{number}") for number in count(1))
            aside = next(path for path in free if not path.exists())
            aside.mkdir()
            for path in others:
                path.rename(aside / path.name)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._store(trainer)
        super().on_train_end(trainer, pl_module)
        if self.candidates and self.monitor is not None:
            trainer.strategy.barrier("PostHocEMA")
            self._choose(trainer, pl_module, self.candidates, self.monitor)

    def _choose(self, trainer: Trainer, pl_module: LightningModule, candidates: list[float], monitor: str) -> None:
        sign = 1 if self.mode == "max" else -1
        self.scores = {}
        for sigma_rel in candidates:
            self._take_on(trainer, pl_module, sigma_rel)
            self.scores[sigma_rel] = metric_of(validation_metrics(trainer), monitor, "PostHocEMA")
        best = max(self.scores, key=lambda sigma_rel: sign * self.scores[sigma_rel])
        self._take_on(trainer, pl_module, best)
        self.made_checkpoint = save_checkpoint(trainer, _FOLDER, weights_only=True)
        table = ", ".join(f"{sigma_rel:g}: {score:.6g}" for sigma_rel, score in self.scores.items())
        rank_zero_info(f"PostHocEMA: {monitor} by sigma_rel is {table}. The module carries {best:g}.")

    def _take_on(self, trainer: Trainer, pl_module: LightningModule, sigma_rel: float) -> None:
        state = _combined([Path(path) for path in self._stored], sigma_rel)
        assign_(parts_named(pl_module, state), state)
        recalibrate_on_training_data(trainer, pl_module)

    # A guard's rewind.

    def _averages(self) -> list[WeightAverage]:
        return [*super()._averages(), *(self._others if self._average is not None else [])]

    def rewind(self, state: dict[str, Any]) -> None:
        super().rewind(state)
        self._stored = [path for path in self._stored if int(Path(path).stem) <= self._updates]

    # Checkpoints.

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "stored": self._stored}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._stored = [path for path in state_dict["stored"] if Path(path).is_file()]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._average is not None:
            checkpoint["callbacks"][self.state_key]["others"] = [average.values() for average in self._others]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        self._others = []
        state = checkpoint["callbacks"].get(self.state_key, {})
        if trainer.state.fn != TrainerFn.FITTING or "others" not in state:
            return
        for values in state.pop("others"):
            average = WeightAverage(parts_named(pl_module, values), offload=self.offload)
            average.load(values)
            self._others.append(average)

    @staticmethod
    def reconstruct(folder: str | Path, sigma_rel: float, updates: int | None = None) -> dict[str, Tensor]:
        """The average of a length, from the files of a run.

        Batch norm's statistics are combined like weights; compute them anew with
        :func:`lightning_tuning.functional.recalibrate_batch_norm`.

        Args:
            folder: The run's ``post_hoc_ema`` folder.
            sigma_rel: The length, in (0, 0.2886].
            updates: The optimizer step at which it would have been taken, that of a file. None: the last.

        Returns:
            What is averaged, by name, for ``module.load_state_dict(state, strict=False)``.

        Raises:
            InvalidValueError: There are no files, or none of that step.
        """
        check_range("sigma_rel", sigma_rel, 0.0, LARGEST_SIGMA_REL, open_low=True)
        paths = sorted(Path(folder).glob("*.pt"))
        if not paths:
            raise InvalidValueError(f"PostHocEMA: there are no files in {folder}; it is a run's folder {_FOLDER}.")
        if updates is not None:
            steps = [int(path.stem) for path in paths]
            if updates not in steps:
                raise InvalidValueError(f"updates is {updates}; there are files of {', '.join(map(str, steps))}.")
            paths = [path for path in paths if int(path.stem) <= updates]
        return _combined(paths, sigma_rel)


def _mapped(path: Path) -> dict[str, Any]:
    with checked(path):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _combined(paths: Iterable[Path], sigma_rel: float) -> dict[str, Tensor]:
    """The average of that length at the time of the last file, in float64 until it is complete."""
    paths = list(paths)
    heads = [_mapped(path) for path in paths]
    stored = [(head["updates"], gamma) for head in heads for gamma in head["gammas"]]
    shares = iter(power_shares(stored, (heads[-1]["updates"], gamma_of(sigma_rel))).tolist())
    last = heads[-1]["averages"][0]
    sums = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in last.items()}
    for head in heads:
        for average in head["averages"]:
            share = next(shares)
            for name, value in average.items():
                sums[name] += share * value.double()
    for name in sums:
        if name.endswith("running_var"):
            sums[name].clamp_(min=0.0)  # shares may be negative
    return {name: value.to(last[name].dtype) for name, value in sums.items()}
