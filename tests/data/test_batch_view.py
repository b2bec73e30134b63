"""Augmentation of whole batches on the device that trains."""

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_tuning.data import DeviceAugment, DigitsDataModule, save_views
from lightning_tuning.errors import InvalidValueError

SETTINGS = {"batch_size": 8, "steps_per_epoch": 3, "image_size": 16, "seed": 5}


class Recorder(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch)
        return self.layer.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.seen_in_validation = batch

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(data, **kwargs):
    module, quiet = Recorder(), {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(max_epochs=2, accelerator="cpu", enable_model_summary=False, **quiet, **kwargs).fit(module, data)
    return module


def expected(data, steps, name, epoch=0, step=0):
    """What the augmentation makes of the images that the sampler draws, normalised."""
    sampler = data.train_dataloader().sampler
    sampler.set_epoch(epoch)
    keys = list(sampler)[step][0 if name == data.augment else 1]
    images = torch.from_numpy(np.stack([data.images[index] for index in keys.indices])).permute(0, 3, 1, 2)
    salt = data.pipelines[name].salt
    return data.normalize.batch(DeviceAugment(steps)(images, torch.from_numpy(keys.seeds.view(np.int64)), salt))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_running_trainer_augments_after_the_transfer(num_workers):
    data = DigitsDataModule(augment="batch(crop=2, erase=0.5)", num_workers=num_workers, **SETTINGS)
    module = fit(data)
    assert len(module.seen) == 6
    for epoch, step in ((0, 0), (0, 2), (1, 0)):
        x, _ = module.seen[3 * epoch + step]
        assert torch.equal(x, expected(data, {"crop": 2, "erase": 0.5}, data.augment, epoch, step))
    assert not torch.equal(module.seen[0][0], module.seen[3][0])


def test_by_hand_it_is_the_same():
    data = DigitsDataModule(augment="batch(crop=2, erase=0.5)", num_workers=0, **SETTINGS)
    module = fit(data)
    by_hand = DigitsDataModule(augment="batch(crop=2, erase=0.5)", num_workers=0, **SETTINGS)
    by_hand.setup()
    for (x, y), (x_seen, y_seen) in zip(by_hand.train_dataloader(), module.seen[:3], strict=True):
        assert torch.equal(x, x_seen)
        assert torch.equal(y, y_seen)


def test_a_hook_of_the_module_gets_finished_images():
    class Own(Recorder):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            x, y = batch
            assert x.dtype == torch.float32
            return -x, y

    seen = []
    for kind in (Own, Recorder):
        module, data = kind(), DigitsDataModule(augment="batch(crop=2)", num_workers=0, **SETTINGS)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **quiet).fit(module, data)
        seen.append([x for x, _ in (*module.seen, module.seen_in_validation)])
    assert all(torch.equal(own, -ours) for own, ours in zip(*seen, strict=True))


def test_views_draw_their_own_numbers():
    views = {"weak_transforms": "batch(crop=3)", "unlabeled_views": "weak weak_2 strong", "unlabeled_batch_size": 8}
    data = DigitsDataModule(augment="none", num_workers=0, **views, **SETTINGS)
    unlabeled = fit(data).seen[0]["unlabeled"]
    assert torch.equal(unlabeled["weak"], expected(data, {"crop": 3}, "weak"))
    assert torch.equal(unlabeled["weak_2"], expected(data, {"crop": 3}, "weak_2"))
    assert not torch.equal(unlabeled["weak"], unlabeled["weak_2"])
    assert unlabeled["strong"].dtype == torch.float32


@pytest.mark.filterwarnings("ignore:weak_transforms is given, but nothing uses it")
def test_validation_is_not_augmented():
    data = DigitsDataModule(augment="batch(crop=3)", weak_transforms="batch(crop=3)", num_workers=0, **SETTINGS)
    x, _ = fit(data).seen_in_validation
    first = np.stack([data.images[index] for index in data.val_indices[: len(x)]])
    assert torch.equal(x, data.normalize(first))


def test_flip_is_half_unless_it_is_said():
    def steps(augment, **kwargs):
        data = DigitsDataModule(augment=augment, **kwargs, **SETTINGS)
        data.setup()
        return data.device_augments[augment].steps

    assert steps("batch(crop=2)", flip=True) == {"flip": 0.5, "crop": 2}
    assert steps("batch(flip=0.1)", flip=True) == {"flip": 0.1}
    assert steps("batch(crop=2)") == {"crop": 2}
    assert steps("batch") == {}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("batch(zoom=2)", "augment is 'batch(zoom=2)', but batch has no setting 'zoom'. It has: flip, crop, erase."),
        ("batch(crop=0.5)", "crop is 0.5; it must be an integer of at least 0."),
        ("batch(flip=2)", "flip is 2; it must be a number in [0, 1]."),
        ("batches", "augment is 'batches'. It must be one of 'none', "),
    ],
)
def test_settings_that_are_not_allowed(name, message):
    with pytest.raises(InvalidValueError) as caught:
        DigitsDataModule(augment=name)
    assert message in str(caught.value)


def test_the_contact_sheet_draws_it(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("matplotlib.axes.Axes.imshow", lambda self, image, **kwargs: drawn.append(image))
    data = DigitsDataModule(augment="batch(crop=2)", **SETTINGS)
    data.setup()
    save_views(data, tmp_path / "views.png", n=2)
    originals, shifted = drawn[:2], drawn[-2:]
    assert (tmp_path / "views.png").stat().st_size > 0
    assert np.array_equal(originals[0], data.images[data.labeled_indices[0]])
    assert not np.array_equal(originals[0], shifted[0])
