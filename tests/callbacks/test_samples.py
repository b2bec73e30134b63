"""The callbacks that draw images: which ones, with what text, and where they go."""

from __future__ import annotations

from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning import (
    AdaMatchMixin,
    EMATeacherMixin,
    FixMatchMixin,
    FreeMatchMixin,
    PseudoLabelMixin,
    compose,
)
from lightning_tuning.callbacks import (
    AugmentedSamples,
    PredictionSamples,
    PseudoLabelPanel,
    augmented_samples,
    prediction_samples,
    pseudo_label_panel,
)
from lightning_tuning.callbacks._image_grid import BAD, GOOD, PLAIN, _pixels
from lightning_tuning.errors import InvalidValueError
from lightning_tuning.functional import PixelScale
from lightning_tuning.runs import ResilientWandbLogger
from tests.helpers_wandb import config_and_history

MODULES = {"a": augmented_samples, "p": prediction_samples, "l": pseudo_label_panel}


class Net(pl.LightningModule):
    """Its logits are the four pixels of an image of one row: what it believes can be read off the image."""

    num_classes = 4

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.gain = nn.Parameter(torch.ones(()))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(x.flatten(1) * self.gain)

    def compute_loss(self, logits, target):
        return nn.functional.cross_entropy(logits, target)

    def training_step(self, batch, batch_idx):
        return self.compute_loss(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Learner(EMATeacherMixin, FixMatchMixin, Net):
    pass


def images(*rows):
    return torch.tensor(rows, dtype=torch.float).reshape(len(rows), 1, 1, 4)


def fit(net, callback, folder, train, val=None, logger=False, epochs=1):
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=logger,
        default_root_dir=folder,
        callbacks=[callback],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,
    )
    trainer.fit(net, train, val)
    return trainer


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn: of each picture its title, its columns and its tiles (text, colour, frame, first pixel)."""
    pictures = []
    for module in MODULES.values():
        draw = module.image_grid

        def grid(trainer, net, tiles, title, columns=8, draw=draw):
            pictures.append((title, columns, [(t.text, t.color, t.framed, t.image.flatten().tolist()) for t in tiles]))
            return draw(trainer, net, tiles, title, columns)

        monkeypatch.setattr(module, "image_grid", grid)
    return pictures


X = images([9, 0, 0, 0], [0, 5, 0, 0], [0, 0, 0, 2], [7, 0, 0, 0], [0, 0, 1, 0])
Y = torch.tensor([0, 1, 1, 3, 2])
# The probability of the true class: 9996 / 9999, ..., e^0 / (3 + e^2) = 0.096, e^0 / (3 + e^7) = 0.0009, e / (3 + e).


def loader(x=X, y=Y, size=2):
    return DataLoader(TensorDataset(x, y), batch_size=size)


@pytest.mark.parametrize("size", [2, 5])
def test_the_most_wrong_predictions_come_first(drawn, tmp_path, size):
    fit(Net(), PredictionSamples(n=3), tmp_path, loader(), loader(size=size))
    ((title, _, tiles),) = drawn
    assert title == "epoch 0: least probable true classes"
    assert tiles == [
        ("0  1.00\nis 3", BAD, False, X[3].flatten().tolist()),
        ("3  0.71\nis 1", BAD, False, X[2].flatten().tolist()),
        ("2  0.48", GOOD, False, X[4].flatten().tolist()),
    ]
    assert (tmp_path / "prediction_samples.png").read_bytes().startswith(b"\x89PNG")


def test_the_first_predictions_and_the_epochs_that_are_due(drawn, tmp_path):
    fit(Net(), PredictionSamples(n=3, which="first", every_n_epochs=2), tmp_path, loader(), loader(), epochs=4)
    assert [title for title, _, _ in drawn] == [f"epoch {epoch}: first validation images" for epoch in (1, 3)]
    assert [tile[3] for tile in drawn[0][2]] == X[:3].flatten(1).tolist()


def test_of_what_are_no_images_nothing_is_drawn(drawn, tmp_path, told):
    fit(Net(), PredictionSamples(), tmp_path, loader(X.flatten(1)), loader(X.flatten(1)))
    assert not drawn
    assert told.text.count("PredictionSamples draws nothing") == 1
    fit(Net(), AugmentedSamples(), tmp_path, loader(X.flatten(1)))
    fit(Net(), PseudoLabelPanel(), tmp_path, loader())
    assert not drawn
    assert "PseudoLabelPanel draws nothing: Net has no technique that learns from unlabelled inputs" in told.text
    assert not list(tmp_path.glob("*.png"))


def streams():
    unlabeled = [
        {"weak": X[:3], "strong": X[:3] + 1, "target": torch.tensor([0, 1, 1])},
        {"weak": X[3:] * 0, "strong": X[3:], "target": Y[3:]},
    ]
    return {"labeled": loader(size=5), "unlabeled": DataLoader(unlabeled, batch_size=None)}


def test_the_panel_shows_what_is_believed_and_whether_it_is_right(drawn, tmp_path):
    net = Learner(fixmatch_weight=1.0, ema_teacher_decay=0.5)
    panel = PseudoLabelPanel(n=4, threshold=0.9)
    trainer = fit(net, pl.Callback(), tmp_path, streams())
    batches = [{"labeled": (X, Y), "unlabeled": part} for part in streams()["unlabeled"]]
    panel.on_fit_start(trainer, net)
    panel.on_train_batch_start(trainer, net, batches[0], 0)
    panel.on_train_batch_start(trainer, net, batches[1], 1)
    net.train()
    modes, random = [m.training for m in net.modules()], torch.get_rng_state()
    panel.on_train_epoch_end(trainer, net)
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    ((title, _, tiles),) = drawn
    assert title == "epoch 1: 2 of 3 reach 0.9, 2 of these right"
    assert [tile[:3] for tile in tiles] == [("0  1.00", GOOD, True), ("1  0.98", GOOD, True), ("3  0.71", BAD, False)]


def test_the_panel_without_true_classes(drawn, tmp_path):
    train = {"labeled": loader(size=5), "unlabeled": DataLoader([(X[:2], X[:2])], batch_size=None)}
    fit(Learner(fixmatch_weight=1.0, ema_teacher_decay=None), PseudoLabelPanel(threshold=0.99), tmp_path, train)
    ((title, _, tiles),) = drawn
    assert title == "epoch 0: 1 of 2 reach 0.99"
    assert [tile[1:3] for tile in tiles] == [(PLAIN, True), (PLAIN, False)]
    assert (tmp_path / "pseudo_label_panel.png").is_file()


def test_images_without_a_class_are_neither_right_nor_wrong(drawn, tmp_path):
    parts = [{"weak": X[:4], "strong": X[:4], "target": torch.tensor(target)} for target in ([0, -1, 3, 1], [-1] * 4)]
    for part in parts:
        train = {"labeled": loader(size=5), "unlabeled": DataLoader([part], batch_size=None)}
        fit(Learner(fixmatch_weight=1.0, ema_teacher_decay=None), PseudoLabelPanel(threshold=0.9), tmp_path, train)
        fit(Learner(fixmatch_weight=1.0, ema_teacher_decay=None), AugmentedSamples(), tmp_path, train)
    (some, _, tiles), (_, _, rows), (none, _, plain), _ = drawn
    assert some == "epoch 0: 3 of 4 reach 0.9, 1 right of the 2 whose class is known"
    assert [tile[1] for tile in tiles] == [GOOD, PLAIN, GOOD, BAD]
    assert [tile[0] for tile in rows[4:8]] == ["weak: 0", "", "3", "1"]
    assert none == "epoch 0: 3 of 4 reach 0.9"
    assert {tile[1] for tile in plain} == {PLAIN}


@pytest.mark.parametrize(
    ("arguments", "given", "title"),
    [
        ({"fixmatch_weight": 1.0, "fixmatch_threshold": 0.6}, {}, "epoch 0: 4 of 4 reach 0.6, 1 of these right"),
        ({"fixmatch_weight": 1.0, "fixmatch_threshold": 0.6}, {"threshold": 1.0}, "epoch 0: 0 of 4 reach 1"),
        ({"fixmatch_weight": 0.0, "pseudo_label_weight": 1.0, "pseudo_label_threshold": 0.7}, {}, "0.7, 1 of these"),
        ({"fixmatch_weight": 0.0, "freematch_weight": 1.0}, {}, "epoch 0: 3 of 4 reach 0.95, 1 of these right"),
        ({"fixmatch_weight": 0.0, "adamatch_weight": 1.0, "adamatch_threshold": 0.1}, {}, "epoch 0: 3 of 4 reach 0.95"),
    ],
)
def test_the_threshold_is_the_techniques(arguments, given, title, drawn, tmp_path):
    techniques = (FixMatchMixin, FreeMatchMixin, AdaMatchMixin, PseudoLabelMixin)
    net = compose(Net, *techniques)(
        **{"freematch_weight": 0.0, "adamatch_weight": 0.0, "pseudo_label_weight": 0.0} | arguments
    )
    unlabeled = [{"weak": X[:4], "strong": X[:4], "target": torch.tensor([0, 0, 1, 1])}]
    train = {"labeled": loader(size=5), "unlabeled": DataLoader(unlabeled, batch_size=None)}
    fit(net, PseudoLabelPanel(**given), tmp_path, train)
    assert title in drawn[0][0]


def test_rows_of_unequal_length_stand_below_each_other(drawn, tmp_path):
    train = {"labeled": loader(size=5), "unlabeled": DataLoader([(X[:2], X[:2])], batch_size=None)}
    fit(Learner(fixmatch_weight=1.0, ema_teacher_decay=None), AugmentedSamples(n=4), tmp_path, train)
    ((_, columns, tiles),) = drawn
    assert columns == 2
    assert [tile[0] for tile in tiles] == ["labeled: 0", "1", "weak", "", "strong", ""]


def test_augmented_samples_have_a_row_for_each_view(drawn, tmp_path):
    fit(Learner(fixmatch_weight=1.0, ema_teacher_decay=None), AugmentedSamples(n=2), tmp_path, streams(), epochs=2)
    ((_, columns, tiles),) = drawn
    assert columns == 2
    assert [(tile[0], tile[3]) for tile in tiles] == [
        ("labeled: 0", X[0].flatten().tolist()),
        ("1", X[1].flatten().tolist()),
        ("weak: 0", X[0].flatten().tolist()),
        ("1", X[1].flatten().tolist()),
        ("strong: 0", (X[0] + 1).flatten().tolist()),
        ("1", (X[1] + 1).flatten().tolist()),
    ]


def test_pixels_are_those_before_the_normalisation():
    image = torch.tensor([0.2, 0.8]).reshape(1, 1, 2)
    scale = PixelScale((0.5,), (0.25,))
    assert _pixels((image - 0.5) / 0.25, scale).tolist() == pytest.approx(image[0].numpy())
    assert _pixels(image * 10 - 3, None).tolist() == [[0.0, 1.0]]
    three = torch.rand(3, 2, 2)
    assert np.allclose(_pixels(three, PixelScale((0.0,), (1.0,))), three.permute(1, 2, 0))
    assert _pixels(torch.rand(2, 4, 5), None).shape == (4, 5)


def test_class_names_are_the_datamodules():
    trainer = SimpleNamespace(datamodule=SimpleNamespace(class_names=["cat", "dog"]))
    assert [prediction_samples.class_name(trainer, k) for k in (1, 2)] == ["dog", "2"]


def test_pictures_reach_tensorboard_and_wandb(offline):
    board, csv = TensorBoardLogger(offline / "tb"), CSVLogger(offline / "csv")
    logger = ResilientWandbLogger(save_dir=offline, offline=True)
    trainer = fit(Net(), PredictionSamples(n=3), offline, loader(), loader(), logger=[board, csv, logger])
    file = offline / "tb" / "lightning_logs" / "version_0" / "prediction_samples.png"
    (event,) = EventAccumulator(board.log_dir).Reload().Images("prediction_samples")
    width, height = Image.open(file).size
    assert (event.step, event.width, event.height) == (trainer.global_step, width, height)
    import wandb

    wandb.teardown()
    rows = config_and_history(next(offline.rglob("*.wandb")))[1]
    shown = {key: value for row in rows for key, value in row.items() if key.startswith("prediction_samples")}
    assert shown["prediction_samples.count"] == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PredictionSamples(n=0), "n is 0"),
        (lambda: PredictionSamples(which="best"), "which is 'best'"),
        (lambda: PredictionSamples(every_n_epochs=0), "every_n_epochs is 0"),
        (lambda: PseudoLabelPanel(threshold=1.5), "threshold is 1.5"),
        (lambda: PseudoLabelPanel(n=0), "n is 0"),
        (lambda: PseudoLabelPanel(every_n_epochs=0), "every_n_epochs is 0"),
        (lambda: AugmentedSamples(n=0), "n is 0"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(InvalidValueError, match=message):
        make()
