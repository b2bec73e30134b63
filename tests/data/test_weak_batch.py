"""The whole batch at once is bit for bit what the pipeline makes of each image."""

import random

import albumentations as A
import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerStatus

from lightning_tuning.data import Deterministic, SeededPipeline, named_transforms
from lightning_tuning.data.image_view import ImageView
from lightning_tuning.data.weak_batch import WeakBatch


def random_images(count, size, channels):
    return np.random.default_rng(size).integers(1, 256, (count, size, size, channels), dtype=np.uint8)


def random_seeds(count):
    seeds = np.random.default_rng(1).integers(0, 2**64, count, dtype=np.uint64)
    seeds[:4] = 0, 1, 2**32, 2**64 - 1
    return seeds


@pytest.mark.parametrize("salt", [0, 1, 17, 2**63 + 5])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [4, 7, 8, 16, 28, 32, 33])
def test_it_is_the_pipeline(size, channels, flip, salt):
    images, seeds = random_images(24, size, channels), random_seeds(24)
    before = images.copy()
    pipeline = SeededPipeline(named_transforms("weak", size, channels, flip), salt)
    expected = np.stack([pipeline(image, seed) for image, seed in zip(images, seeds.tolist(), strict=True)])
    weak = WeakBatch.of(pipeline)
    for given in (images, list(images)):
        batch = weak(given, seeds)
        assert batch.dtype == np.uint8
        assert batch.flags.c_contiguous
        np.testing.assert_array_equal(batch, expected)
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("flip", [False, True])
def test_thousands_of_seeds(flip):
    """Every shift comes up, so a wrong border or order of the numbers would be seen."""
    images, seeds = random_images(1, 16, 1).repeat(3000, axis=0), random_seeds(3000)
    pipeline = SeededPipeline(named_transforms("weak", 16, 1, flip), 2)
    batch = WeakBatch.of(pipeline)(images, seeds)
    np.testing.assert_array_equal(batch, [pipeline(images[0], seed) for seed in seeds.tolist()])
    assert len({image.tobytes() for image in batch}) == (50 if flip else 25)


def test_against_the_shifts_written_out():
    images, seeds = random_images(40, 9, 3), random_seeds(40)
    batch = WeakBatch(9, 3, flip=True, salt=6)(images, seeds)
    for image, seed, view in zip(images, seeds.tolist(), batch, strict=True):
        draw = random.Random(6 * 2**64 + seed).random
        image = image[:, ::-1] if draw() < 0.5 else image
        top, left = int(7 * draw()), int(7 * draw())
        padded = np.pad(image, ((3, 3), (3, 3), (0, 0)))
        np.testing.assert_array_equal(view, padded[top : top + 9, left : left + 9])


@pytest.mark.parametrize("count", [1, 2])
def test_few_images_of_which_none_or_all_are_mirrored(count):
    images, seeds = random_images(count, 8, 3), random_seeds(200)
    pipeline = SeededPipeline(named_transforms("weak", 8, 3, flip=True))
    weak = WeakBatch.of(pipeline)
    for start in range(0, 200, count):
        own = seeds[start : start + count]
        expected = [pipeline(image, seed) for image, seed in zip(images, own.tolist(), strict=True)]
        np.testing.assert_array_equal(weak(images, own), expected)


def test_images_that_are_not_contiguous():
    images, seeds = random_images(12, 8, 3), random_seeds(12)
    weak = WeakBatch(8, 2, flip=True)
    np.testing.assert_array_equal(weak(images[:, ::-1, ::-1], seeds), weak(images[:, ::-1, ::-1].copy(), seeds))


@pytest.mark.parametrize("flip", [False, True])
def test_the_weak_list_is_recognised(flip):
    weak = WeakBatch.of(SeededPipeline(named_transforms("weak", 33, 3, flip), 9))
    assert (weak.size, weak.padding, weak.flip, weak.salt) == (33, 4, flip, 9)


OTHERS = {
    "nothing": [],
    "strong": named_transforms("strong", 16),
    "more": named_transforms("weak + randaugment", 16),
    "more before": [A.Transpose(), *named_transforms("weak", 16)],
    "crop alone": [A.RandomCrop(16, 16)],
    "padding": [A.Pad(padding=3), A.RandomCrop(16, 16)],
    "uneven padding": [A.Pad(padding=(2, 3)), A.RandomCrop(16, 16)],
    "colour": [A.Pad(padding=2, fill=1), A.RandomCrop(16, 16)],
    "border": [A.Pad(padding=2, border_mode=4), A.RandomCrop(16, 16)],
    "sometimes": [A.Pad(padding=2), A.RandomCrop(16, 16, p=0.5)],
    "seldom mirrored": [A.HorizontalFlip(p=0.4), *named_transforms("weak", 16)],
    "upside down": [A.VerticalFlip(p=0.5), *named_transforms("weak", 16)],
    "not square": [A.Pad(padding=2), A.RandomCrop(16, 15)],
    "mirrored last": [A.Pad(padding=2), A.RandomCrop(16, 16), A.HorizontalFlip(p=0.5)],
    "other crop": [A.Pad(padding=2), A.CenterCrop(16, 16)],
    "not of Albumentations": [Deterministic(np.flipud), A.RandomCrop(16, 16)],
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_lists_are_left_alone(name):
    assert WeakBatch.of(SeededPipeline(OTHERS[name])) is None


def test_a_subclass_may_do_something_else():
    class Crop(A.RandomCrop):
        pass

    assert WeakBatch.of(SeededPipeline([A.Pad(padding=2), Crop(16, 16)])) is None


def test_which_images_it_takes():
    weak = WeakBatch(8, 1, flip=False)
    good, other, tall = (np.zeros(shape, np.uint8) for shape in [(8, 8, 3), (8, 8, 1), (9, 8, 3)])
    assert weak.takes([good, good])
    assert weak.takes(np.stack([other, other]))
    assert not weak.takes([good, other])
    assert not weak.takes([good, tall])
    assert not weak.takes([tall])
    assert not weak.takes([])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_datamodule_gives_the_same_batches_with_it_and_without(digits, monkeypatch, num_workers):
    """Labelled and unlabelled views over an epoch; by hand, so normalised, and bytes as the Trainer gets them."""
    settings = {"num_labels": 40, "batch_size": 8, "unlabeled_batch_size": 24, "steps_per_epoch": 4, "flip": True}
    settings |= {"unlabeled_views": "weak strong weak_2", "num_workers": num_workers}
    views = []

    def spy(self, images, seeds):
        views.append(len(images))
        return call(self, images, seeds)

    def batches(running):
        datamodule = digits(**settings)
        if running:
            datamodule.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
            datamodule.trainer.state.status = TrainerStatus.RUNNING
        return list(datamodule.train_dataloader())

    call = WeakBatch.__call__
    monkeypatch.setattr(WeakBatch, "__call__", spy)
    fast = [batches(False), batches(True)]
    assert views == (0 if num_workers else 8) * [8, 24, 24]
    monkeypatch.setattr(WeakBatch, "of", lambda pipeline: None)
    slow = [batches(False), batches(True)]
    assert views == (0 if num_workers else 8) * [8, 24, 24]
    assert [batch["labeled"][0].dtype for run in fast for batch in run] == [torch.float32] * 4 + [torch.uint8] * 4
    torch.testing.assert_close(fast, slow, rtol=0, atol=0)


def test_a_view_of_images_of_another_size_is_the_pipelines():
    """Such as images that are larger than the crop."""
    view = ImageView(SeededPipeline(named_transforms("weak", 8, 3, flip=True)), None)
    images, seeds = random_images(6, 12, 3), random_seeds(6)
    expected = np.stack([view.pipeline(image, seed) for image, seed in zip(images, seeds.tolist(), strict=True)])
    np.testing.assert_array_equal(view(list(images), seeds).permute(0, 2, 3, 1), expected)
