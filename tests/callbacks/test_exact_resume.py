"""ExactResume: interrupted and uninterrupted runs, compared bit for bit."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_tuning.callbacks import ExactResume
from lightning_tuning.callbacks.exact_resume import hash_counters
from lightning_tuning.errors import InvalidValueError

EPOCHS, BATCHES = 4, 5


class Noisy(Dataset):
    """Items augmented with all three generators."""

    def __len__(self) -> int:
        return 4 * BATCHES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        noise = 0.1 * torch.randn(4) + 0.1 * random.random() + 0.1 * float(np.random.rand())  # noqa: NPY002
        return torch.full((4,), index / 20) + noise, index % 2


class StatefulLoader:
    """Goes through a shuffled epoch; the first ``iter`` after ``load_state_dict`` continues, a second one would not."""

    def __init__(self) -> None:
        self.epoch = self.batch = 0
        self.resumed = False

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Iterator[Any]:
        if self.batch == BATCHES:
            self.epoch, self.batch = self.epoch + 1, 0
        elif not self.resumed:
            self.batch = 0
        self.resumed = False
        return self.batches()

    def batches(self) -> Iterator[Any]:
        order = torch.randperm(4 * BATCHES, generator=torch.Generator().manual_seed(self.epoch)).view(BATCHES, 4)
        while self.batch < BATCHES:
            self.batch += 1
            index = order[self.batch - 1]
            yield index[:, None] * torch.full((4,), 0.05), index % 2

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.batch, self.resumed = state["epoch"], state["batch"], True


class Net(LightningModule):
    def __init__(self, scheduler: str = "none") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2))
        self.scheduler = scheduler
        self.history: list[tuple[int, float, float]] = []

    def on_train_epoch_start(self) -> None:
        lr = self.optimizers(use_pl_optimizer=False).param_groups[0]["lr"]
        self.history.append((self.current_epoch, lr, torch.rand(()).item()))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x + 0.1 * torch.randn_like(x)), y)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        # Grows, so that the plateau scheduler has something to do.
        self.log("val/loss", nn.functional.cross_entropy(self.net(x), y) + 0.1 * self.current_epoch)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        if self.scheduler == "step":
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]
        if self.scheduler == "plateau":
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val/loss"}}
        return optimizer


def fit(
    folder: Path,
    module: LightningModule,
    *callbacks: Callback,
    checkpoint: dict[str, Any] | None = None,
    resume: str | None = None,
    loader: Any = None,
    workers: int = 0,
    **settings: Any,
) -> Trainer:
    torch.seed()  # a new process does not have the old one's state
    random.seed()
    np.random.seed()  # noqa: NPY002
    saving = ModelCheckpoint(folder, "{step}", save_top_k=-1, **(checkpoint or {}))
    trainer = Trainer(
        callbacks=[*callbacks, saving],
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": EPOCHS} | settings,
    )
    train = DataLoader(Noisy(), batch_size=4, shuffle=True, num_workers=workers) if loader is None else loader
    val = DataLoader(Noisy(), batch_size=4, num_workers=workers)
    trainer.fit(module, train, val, ckpt_path=resume, weights_only=None if resume is None else True)
    return trainer


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


MOMENTS = {
    "train epoch end": {},
    "validation end": {"save_on_train_epoch_end": False},
    "last batch": {"every_n_train_steps": BATCHES},
}


def test_without_it_a_resumed_run_differs(tmp_path: Path) -> None:
    whole, rest = Net(), Net()
    fit(tmp_path / "a", whole)
    fit(tmp_path / "b", rest, resume=f"{tmp_path}/a/step={BATCHES}.ckpt")
    assert not equal(whole, rest)


@pytest.mark.parametrize("scheduler", ["none", "step", "plateau"])
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("settings", [{}, {"max_steps": 18}], ids=["epochs", "max_steps"])
def test_resume_at_an_epoch_end_is_bitwise_equal(
    scheduler: str, moment: str, epochs: int, settings: dict[str, Any], tmp_path: Path
) -> None:
    def run(folder: str, resume: str | None = None) -> tuple[Net, Trainer, dict[str, Any]]:
        net, stopping = Net(scheduler), EarlyStopping("val/loss", patience=9)
        callbacks = (stopping, ExactResume(3))
        trainer = fit(
            tmp_path / folder, net, *callbacks, checkpoint=MOMENTS[moment], resume=resume, **settings
        )  # fmt: skip
        return net, trainer, stopping.state_dict()

    whole, whole_trainer, whole_stopping = run("a")
    rest, rest_trainer, rest_stopping = run("b", f"{tmp_path}/a/step={BATCHES * epochs}.ckpt")
    assert equal(whole, rest)
    assert rest.history == whole.history[epochs:]
    assert rest_stopping == whole_stopping
    assert rest_trainer.global_step == whole_trainer.global_step
    assert rest_trainer.current_epoch == whole_trainer.current_epoch
    counts = [t.fit_loop.epoch_loop._batches_that_stepped for t in (whole_trainer, rest_trainer)]
    assert counts[0] == counts[1]
    assert "on_run_start" not in vars(rest_trainer.fit_loop.epoch_loop)


@pytest.mark.parametrize(
    ("settings", "checkpoint"),
    [
        ({"limit_val_batches": 0}, {}),
        ({"limit_val_batches": 0}, {"every_n_train_steps": BATCHES}),
        ({"limit_val_batches": 0, "max_steps": 18}, {"every_n_train_steps": BATCHES}),
        ({"check_val_every_n_epoch": 2}, {"every_n_train_steps": BATCHES}),
        ({"accumulate_grad_batches": 2}, {"every_n_train_steps": 3}),
        ({"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}, {}),
        ({"workers": 2}, {}),
    ],
)
def test_other_settings(settings: dict[str, Any], checkpoint: dict[str, Any], tmp_path: Path) -> None:
    whole, rest = Net("step"), Net("step")
    steps = 3 if "accumulate_grad_batches" in settings else BATCHES
    fit(tmp_path / "a", whole, ExactResume(3), checkpoint=checkpoint, **settings)
    path = f"{tmp_path}/a/step={steps}.ckpt"
    fit(tmp_path / "b", rest, ExactResume(3), checkpoint=checkpoint, resume=path, **settings)
    assert equal(whole, rest)
    assert rest.history == whole.history[1:]


def test_draws_of_a_hook_that_only_the_first_epoch_of_a_process_makes(tmp_path: Path) -> None:
    class Warmup(Callback):
        drawn = False

        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if not self.drawn:
                torch.rand(1)
            self.drawn = True

    whole, rest = Net(), Net()
    fit(tmp_path / "a", whole, ExactResume(3), Warmup())
    fit(tmp_path / "b", rest, ExactResume(3), Warmup(), resume=f"{tmp_path}/a/step={BATCHES}.ckpt")
    assert equal(whole, rest)


@pytest.mark.parametrize("settings", [{}, {"max_steps": 18}], ids=["epochs", "max_steps"])
def test_checkpoint_of_a_finished_fit(settings: dict[str, Any], tmp_path: Path) -> None:
    whole, start, rest = Net("plateau"), Net("plateau"), Net("plateau")
    fit(tmp_path / "a", whole, ExactResume(3), **settings)
    fit(tmp_path / "b", start, ExactResume(3), **settings | {"max_epochs": 2}).save_checkpoint(tmp_path / "end.ckpt")
    fit(tmp_path / "c", rest, ExactResume(3), resume=f"{tmp_path}/end.ckpt", **settings)
    assert equal(whole, rest)
    assert rest.history == whole.history[2:]


@pytest.mark.parametrize("step", [3, 7, 10, 13, 15])
def test_any_batch_with_a_stateful_loader(step: int, tmp_path: Path) -> None:
    whole, rest = Net(), Net()
    every = {"every_n_train_steps": 1}
    fit(tmp_path / "a", whole, ExactResume(3), checkpoint=every, loader=StatefulLoader())
    path = f"{tmp_path}/a/step={step}.ckpt"
    fit(tmp_path / "b", rest, ExactResume(3), checkpoint=every, resume=path, loader=StatefulLoader())
    assert equal(whole, rest)


class Validations(Callback):
    """Keeps when validation was made, and what it found."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, float]] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            found = trainer.callback_metrics["val/loss"].item()
            self.seen.append((trainer.current_epoch, trainer.fit_loop.batch_idx, found))


@pytest.mark.parametrize(("step", "made"), [(2, 0), (3, 1), (7, 2)])
def test_a_validation_that_was_due_at_the_checkpoint_is_made(step: int, made: int, tmp_path: Path) -> None:
    """Stock resuming leaves out those of steps 2 and 7, which come after the checkpoint."""
    whole, rest, seen, seen_again = Net(), Net(), Validations(), Validations()
    settings: dict[str, Any] = {"checkpoint": {"every_n_train_steps": 1}, "val_check_interval": 2}
    one = fit(tmp_path / "a", whole, ExactResume(3), seen, loader=StatefulLoader(), **settings)
    path = f"{tmp_path}/a/step={step}.ckpt"
    two = fit(tmp_path / "b", rest, ExactResume(3), seen_again, loader=StatefulLoader(), resume=path, **settings)
    assert [(epoch, batch) for epoch, batch, _ in seen.seen] == [(e, b) for e in range(EPOCHS) for b in (1, 3)]
    assert seen_again.seen == seen.seen[made:]
    assert equal(whole, rest)
    counts = [trainer.fit_loop.epoch_loop._batches_that_stepped for trainer in (one, two)]
    assert counts[0] == counts[1] == EPOCHS * BATCHES


@pytest.mark.parametrize("end", [{"max_steps": 7}, {"max_steps": 18}], ids=["in the second epoch", "in the last"])
def test_an_epoch_that_max_steps_ended_is_gone_on_with(end: dict[str, Any], tmp_path: Path) -> None:
    whole, start, rest = Net(), Net(), Net()
    fit(tmp_path / "a", whole, ExactResume(3), loader=StatefulLoader())
    stopped = fit(tmp_path / "b", start, ExactResume(3), loader=StatefulLoader(), **end)
    assert stopped.fit_loop.epoch_loop.batch_progress.current.ready < BATCHES
    stopped.save_checkpoint(tmp_path / "end.ckpt")
    resumed = fit(tmp_path / "c", rest, ExactResume(3), loader=StatefulLoader(), resume=f"{tmp_path}/end.ckpt")
    assert resumed.global_step == EPOCHS * BATCHES
    assert equal(whole, rest)


class Draws(Net):
    """Keeps the first number of each generator in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[tuple[float, float, float]] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.draws.append((torch.rand(()).item(), random.random(), float(np.random.rand())))  # noqa: NPY002
        return super().training_step(batch, batch_idx)


def draws(folder: Path, seed: int | None, rank: int = 0, **settings: Any) -> list[tuple[float, float, float]]:
    class Ranked(ExactResume):
        def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
            trainer.strategy.global_rank = rank
            super().on_train_batch_start(trainer, *args)
            trainer.strategy.global_rank = 0

    net = Draws()
    fit(folder, net, Ranked(seed), max_epochs=2, limit_val_batches=0, **settings)
    return net.draws


def test_streams_differ_between_steps_epochs_ranks_seeds_and_generators(tmp_path: Path) -> None:
    runs = [draws(tmp_path / "a", 0), draws(tmp_path / "b", 1), draws(tmp_path / "c", 0, rank=1)]
    assert draws(tmp_path / "d", 0) == runs[0]
    numbers = [number for run in runs for step in run for number in step]
    assert len(set(numbers)) == len(numbers) == 3 * 2 * BATCHES * 3


def test_torch_and_numpy_do_not_run_the_same_twister() -> None:
    ExactResume()._reseed(1, 2, 3)
    assert np.random.get_state()[1][0] != torch.initial_seed() & 0xFFFFFFFF  # noqa: NPY002


def test_seed_comes_from_the_environment_and_from_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    assert draws(tmp_path / "a", None) == draws(tmp_path / "b", 0)
    monkeypatch.setenv("PL_GLOBAL_SEED", "11")
    assert draws(tmp_path / "c", None) == draws(tmp_path / "d", 11)
    whole, rest = Net(), Net()
    fit(tmp_path / "e", whole, ExactResume())
    monkeypatch.delenv("PL_GLOBAL_SEED")
    fit(tmp_path / "f", rest, ExactResume(), resume=f"{tmp_path}/e/step={BATCHES}.ckpt")
    assert equal(whole, rest)


def test_warnings_on_resume(tmp_path: Path) -> None:
    fit(tmp_path / "a", Net(), ExactResume(1), max_epochs=1)
    with pytest.warns(UserWarning, match=r"ExactResume\(seed=2\) resumes a run of seed 1"):
        fit(tmp_path / "b", Net(), ExactResume(2), resume=f"{tmp_path}/a/step={BATCHES}.ckpt", max_epochs=1)
    fit(tmp_path / "c", Net(), max_epochs=1)
    with pytest.warns(UserWarning, match="written without ExactResume"):
        fit(tmp_path / "d", Net(), ExactResume(2), resume=f"{tmp_path}/c/step={BATCHES}.ckpt", max_epochs=1)


class Forgets(Callback):
    """Takes the checkpoint from one rank, as where a node does not see the folder of the runs."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_rank == self.rank:
            trainer.ckpt_path = None


@pytest.mark.parametrize("rank", [0, 1])
def test_all_ranks_resume_or_none(rank: int, tmp_path: Path) -> None:
    fit(tmp_path / "a", Net(), ExactResume(), max_epochs=1)
    path = f"{tmp_path}/a/step={BATCHES}.ckpt"
    settings: dict[str, Any] = {"strategy": "ddp_fork", "devices": 2, "resume": path, "max_epochs": 1}
    found = f"goes on from {path}, and another one found|found"
    with pytest.raises(Exception, match=rf"CheckpointError: Process \d of 2 ({found}) no checkpoint to go on from"):
        fit(tmp_path / "b", Net(), Forgets(rank), ExactResume(), **settings)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, True, "7"])
def test_bad_seed(seed: Any) -> None:
    with pytest.raises(InvalidValueError, match="it must be an integer from 0 to"):
        ExactResume(seed)


def test_mix_spreads_neighbouring_counters() -> None:
    values = np.array(
        [hash_counters(0, e, b, r) for e, b, r in itertools.product(range(20), range(50), range(4))], dtype=np.uint64
    )
    assert len(set(values.tolist())) == len(values)
    assert len({value & 0xFFFFFFFF for value in values.tolist()}) == len(values)
    bits = (values[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.04  # 5 standard deviations of a fair coin
    changed = bits[1:] != bits[:-1]
    assert abs(changed.mean() - 0.5) < 0.01


class Endless(IterableDataset):
    """Fewer batches than ``limit_train_batches`` allows, which nobody knows beforehand."""

    def __iter__(self) -> Iterator[Any]:
        return iter([Noisy()[index] for index in range(4 * 3)])


@pytest.mark.parametrize("limit", [None, 8])
def test_an_epoch_that_the_data_end(limit: int | None, tmp_path: Path) -> None:
    """It is no epoch that was cut short."""
    runs: list[Any] = []
    for folder, resume in (("a", None), ("b", f"{tmp_path}/a/step=3.ckpt")):
        net = Net()
        settings = {"loader": DataLoader(Endless(), batch_size=4), "resume": resume, "limit_train_batches": limit}
        trainer = fit(tmp_path / folder, net, ExactResume(3), **settings, checkpoint={"save_on_train_epoch_end": True})
        runs.append((net, trainer.global_step))
    assert runs[0][1] == runs[1][1] == 3 * EPOCHS
    assert equal(runs[0][0], runs[1][0])


def test_no_checkpoint_within_a_window_behind_a_resume(tmp_path: Path) -> None:
    """ModelCheckpoint forgets that it has saved this step, and would save again a batch later."""
    saved: list[tuple[int, int]] = []

    class Notes(Callback):
        def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
            saved.append((trainer.global_step, trainer.fit_loop.epoch_loop.batch_progress.current.ready))

    settings: dict[str, Any] = {"checkpoint": {"every_n_train_steps": 1}, "accumulate_grad_batches": 2, "max_epochs": 1}
    fit(tmp_path / "a", Net(), ExactResume(3), Notes(), loader=StatefulLoader(), **settings)
    assert saved == [(1, 2), (2, 4), (3, 5)]
    saved.clear()
    resume = f"{tmp_path}/a/step=1.ckpt"
    fit(tmp_path / "b", Net(), ExactResume(3), Notes(), loader=StatefulLoader(), resume=resume, **settings)
    assert saved == [(2, 4), (3, 5)]
