"""What a run with W&B leaves behind: settings in its config, terms in its history."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
import wandb
from lightning.pytorch.loggers import WandbLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning import (
    EMATeacherMixin,
    FixMatchMixin,
    L1Mixin,
    LabelSmoothingMixin,
    MixupMixin,
    RDropMixin,
    SAMMixin,
    TuningMixin,
)

from .helpers_wandb import config_and_history

SETTINGS = {
    "sam_rho": 0.07,
    "sam_adaptive": True,
    "sam_eta": 0.013,
    "sam_gsam_alpha": 0.0,
    "sam_interval": 1,
    "sam_ascent": "synchronized",
    "ema_teacher_decay": 0.123456789,
    "ema_teacher_half_life": None,
    "ema_teacher_warmup": False,
    "ema_teacher_buffers": "copy",
    "ema_teacher_evaluates": True,
    "ema_teacher_labels": True,
    "fixmatch_weight": 0.3,
    "fixmatch_threshold": 0.35,
    "fixmatch_ramp": None,
    "fixmatch_statistics": "separate",
    "mixup_alpha": 0.9,
    "mixup_probability": 1.0,
    "mixup_off_epoch": None,
    "rdrop_weight": 1 / 3,
}
OFF = {"label_smoothing_epsilon": 0.0, "l1_weight": 0.0}
TERMS = {"train/fixmatch", "train/fixmatch_share", "train/mixup", "train/rdrop"}
BATCHES, EPOCHS = 4, 2


class Host(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.num_classes = 3
        self.net = nn.Sequential(nn.Linear(5, 16), nn.Dropout(0.5), nn.Linear(16, 3))

    def forward(self, x):
        return self.net(x)

    def compute_loss(self, logits, target):
        return F.cross_entropy(logits, target)

    def training_step(self, batch, batch_idx):
        x, target = batch
        loss = self.compute_loss(self(x), target)
        self.log("host_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Recorder(TuningMixin):
    """SAM's second pass is not recorded."""

    def log_term(self, name, value, prog_bar=False):
        super().log_term(name, value, prog_bar)
        if not self.replaying:
            self.__dict__.setdefault("recorded", []).append((self.global_step, f"train/{name}", value.item()))


class Net(
    SAMMixin, Recorder, EMATeacherMixin, FixMatchMixin, MixupMixin, RDropMixin, LabelSmoothingMixin, L1Mixin, Host
):
    pass


def fit(net: pl.LightningModule, folder, **settings) -> tuple[dict, list[dict]]:
    x, target = torch.randn(8 * BATCHES, 5), torch.randint(0, 3, (8 * BATCHES,))
    labeled = DataLoader(TensorDataset(x, target), batch_size=8)
    unlabeled = DataLoader(TensorDataset(x, x + 0.1 * torch.randn_like(x)), batch_size=8)
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=WandbLogger(project="tests", offline=True, save_dir=folder),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(net, {"labeled": labeled, "unlabeled": unlabeled} if isinstance(net, FixMatchMixin) else labeled)
    wandb.finish()
    wandb.teardown()  # the file is complete once the writing process has ended
    return config_and_history(folder)


@pytest.mark.parametrize(("accumulate", "every"), [(1, 1), (2, 1), (1, 3)])
def test_settings_and_terms_arrive_exactly(offline, accumulate, every):
    net = Net(**SETTINGS, **OFF)

    config, history = fit(net, offline, accumulate_grad_batches=accumulate, log_every_n_steps=every)

    assert net.tuning_settings() == SETTINGS
    assert config == SETTINGS
    steps = BATCHES * EPOCHS // accumulate
    logged = [
        (row["trainer/global_step"], name, value) for row in history for name, value in row.items() if name in TERMS
    ]
    # The last batch of a step counts; steps are counted from 0.
    expected = {(step, name): value for step, name, value in net.recorded if (step + 1) % every == 0}
    assert len(net.recorded) == BATCHES * EPOCHS * len(TERMS)
    assert len(expected) == steps // every * len(TERMS)
    assert sorted(logged) == sorted((step, name, value) for (step, name), value in expected.items())
    assert {name for row in history for name in row if name.startswith("train/")} == {
        *TERMS,
        *(f"{name}_epoch" for name in TERMS),
    }
    assert [row["trainer/global_step"] for row in history] == sorted(row["trainer/global_step"] for row in history)


def test_epoch_means_arrive_at_the_epochs_last_step(offline):
    net = Net(**SETTINGS, **OFF)

    _, history = fit(net, offline, log_every_n_steps=1)

    for name in TERMS:
        rows = [(row["trainer/global_step"], row[f"{name}_epoch"]) for row in history if f"{name}_epoch" in row]
        values = [value for _, recorded, value in net.recorded if recorded == name]
        means = [sum(values[:BATCHES]) / BATCHES, sum(values[BATCHES:]) / BATCHES]
        assert [step for step, _ in rows] == [BATCHES - 1, 2 * BATCHES - 1]
        assert [mean for _, mean in rows] == pytest.approx(means, rel=1e-6)


def test_a_run_without_a_technique_leaves_the_hosts_values_alone(offline):
    off = {"sam_rho": 0.0, "ema_teacher_decay": None, "mixup_alpha": 0.0, "rdrop_weight": 0.0, **OFF}

    class Off(SAMMixin, EMATeacherMixin, MixupMixin, RDropMixin, LabelSmoothingMixin, L1Mixin, Host):
        pass

    config, history = fit(Off(**off), offline, log_every_n_steps=1)

    assert config == {}
    assert len(history) == BATCHES * EPOCHS
    assert {name for row in history for name in row if not name.startswith("_")} == {
        "host_loss",
        "epoch",
        "trainer/global_step",
    }
