import warnings
from types import SimpleNamespace

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerState
from sklearn.datasets import load_digits
from torch.utils.data import SequentialSampler

from lightning_tuning.data import DigitsDataModule, SeededPipeline, named_transforms
from lightning_tuning.errors import InvalidValueError


def per_class(datamodule, indices):
    return np.bincount(load_digits().target[indices], minlength=10)


def test_the_parts_are_disjoint_stratified_and_of_the_given_sizes(digits):
    datamodule = digits()
    parts = [datamodule.train_indices, datamodule.val_indices, datamodule.test_indices]
    assert [len(part) for part in parts] == [1257, 180, 360]
    assert sorted(np.concatenate(parts).tolist()) == list(range(1797))
    for part in parts:
        assert np.abs(per_class(datamodule, part) - np.bincount(load_digits().target) * len(part) / 1797).max() < 1


def test_the_split_depends_on_split_seed_alone(digits):
    first, same, other = digits(seed=1), digits(seed=2, num_labels=50), digits(seed=1, split_seed=1)
    assert first.test_indices.tolist() == same.test_indices.tolist() != other.test_indices.tolist()
    assert first.val_indices.tolist() == same.val_indices.tolist() != other.val_indices.tolist()


@pytest.mark.parametrize("num_labels", [10, 40, 45, 250])
def test_labels_kept_are_balanced_and_of_the_training_part(digits, num_labels):
    datamodule = digits(num_labels=num_labels)
    kept = per_class(datamodule, datamodule.labeled_indices)
    assert kept.sum() == num_labels
    assert kept.max() - kept.min() <= 1
    assert set(datamodule.labeled_indices) <= set(datamodule.train_indices)
    assert datamodule.unlabeled_indices.tolist() == datamodule.train_indices.tolist()


def test_the_labels_kept_depend_on_the_seed(digits):
    chosen = [digits(num_labels=40, seed=seed).labeled_indices.tolist() for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


def test_without_a_seed_it_is_that_of_seed_everything(digits, monkeypatch):
    assert digits().effective_seed == 0
    monkeypatch.setenv("PL_GLOBAL_SEED", "17")
    assert digits().effective_seed == 17
    assert digits(seed=3).effective_seed == 3


def test_supervised_batches_of_one_pass(digits):
    datamodule = digits(num_labels=100, batch_size=32, augment="none")
    batches = list(datamodule.train_dataloader())
    assert len(batches) == len(datamodule.train_dataloader()) == 4  # 100 images need four batches of 32
    for x, y in batches:
        assert x.dtype == torch.float32
        assert x.shape == (32, 1, 16, 16)
        assert x.is_contiguous()
        assert y.dtype == torch.int64
        assert y.shape == (32,)
    first_pass = torch.cat([x for x, _ in batches])[:100]
    assert digest_rows(first_pass) == digest_rows(reference(datamodule, datamodule.labeled_indices))


def test_images_and_labels_belong_together(digits):
    datamodule = digits(augment="none", image_size=8, num_labels=30, batch_size=40, unlabeled_batch_size=4)
    images = reference(datamodule, np.arange(1797)).flatten(1)
    for batch in datamodule.train_dataloader():
        x, y = batch["labeled"]
        nearest = torch.cdist(x.flatten(1), images).argmin(1)
        assert y.tolist() == load_digits().target[nearest].tolist()


def reference(datamodule, indices):
    """Pixels / 16, resized, normalised with the training part's mean and standard deviation: [N, 1, H, W]."""
    images = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
    if datamodule.image_size != 8:
        images = np.stack([cv2.resize(image, (datamodule.image_size,) * 2) for image in images])
    train = images[datamodule.train_indices].astype(np.float64)
    return torch.tensor((images[indices] - train.mean()) / train.std(), dtype=torch.float32)[:, None]


def digest_rows(x):
    """The images as a sorted list; rounded, as float32 arithmetic was done in another order."""
    return sorted((x * 100).round().to(torch.int16).flatten(1).tolist())


@pytest.mark.parametrize("image_size", [8, 16])
def test_evaluation_batches_hold_the_part_in_order(digits, image_size):
    datamodule = digits(image_size=image_size, eval_batch_size=100)
    loaders = {
        "val": datamodule.val_dataloader(),
        "test": datamodule.test_dataloader(),
        "predict": datamodule.predict_dataloader(),
    }
    for name, loader in loaders.items():
        indices = datamodule.val_indices if name == "val" else datamodule.test_indices
        x, y = (torch.cat(parts) for parts in zip(*loader, strict=True))
        torch.testing.assert_close(x, reference(datamodule, indices), atol=1e-5, rtol=1e-5)
        assert y.tolist() == load_digits().target[indices].tolist()
    one_x, one_y = loaders["val"].dataset[np.array([3])]
    assert one_x.shape == (1, 1, image_size, image_size)
    assert one_y.tolist() == [load_digits().target[datamodule.val_indices[3]]]


def test_training_images_have_mean_0_and_standard_deviation_1(digits):
    datamodule = digits(batch_size=1257, augment="none")
    x, _ = next(iter(datamodule.train_dataloader()))
    assert x.mean().abs() < 1e-4
    assert (x.std() - 1).abs() < 1e-4


@pytest.mark.parametrize("size", [4, 5, 8, 28])
def test_images_of_any_size_keep_the_picture(digits, size):
    datamodule = digits(image_size=size)
    assert datamodule.images.shape == (1797, size, size, 1)
    assert datamodule.images.dtype == np.uint8
    brightness = datamodule.images.mean((1, 2, 3)), load_digits().images.mean((1, 2)) * 255 / 16
    assert np.corrcoef(*brightness)[0, 1] > 0.95


def test_semi_supervised_batches(digits):
    datamodule = digits(num_labels=20, batch_size=8, unlabeled_batch_size=64, augment="none", weak_transforms=[])
    loader = datamodule.train_dataloader()
    batches = list(loader)
    assert len(batches) == len(loader) == 20  # 1257 images need twenty batches of 64
    for batch in batches:
        x, y = batch["labeled"]
        assert (x.shape, y.shape) == ((8, 1, 16, 16), (8,))
        assert list(batch["unlabeled"]) == ["weak", "strong", "index", "target"]
        assert batch["unlabeled"]["weak"].shape == batch["unlabeled"]["strong"].shape == (64, 1, 16, 16)
    every_training_image = torch.cat([batch["unlabeled"]["weak"] for batch in batches])[:1257]
    assert digest_rows(every_training_image) == digest_rows(reference(datamodule, datamodule.train_indices))
    counts = np.unique(torch.cat([batch["labeled"][0] for batch in batches]).flatten(1), axis=0, return_counts=True)[1]
    assert counts.tolist() == [8] * 20  # 160 draws of 20 images


def test_weak_and_strong_are_views_of_the_same_images(digits):
    swap = [A.InvertImg(p=1.0)]
    datamodule = digits(unlabeled_batch_size=16, weak_transforms=[], strong_transforms=swap, image_size=8)
    for batch in datamodule.train_dataloader():
        weak, strong = batch["unlabeled"]["weak"], batch["unlabeled"]["strong"]
        pixel = 255 * torch.tensor(datamodule.normalize.std), 255 * torch.tensor(datamodule.normalize.mean)
        torch.testing.assert_close((weak + strong) * pixel[0] + 2 * pixel[1], torch.full_like(weak, 255.0))


def test_the_two_views_draw_different_random_numbers(digits):
    """Same transforms on both views: the shifts must not be the same."""
    shift = [A.Pad(padding=4), A.RandomCrop(16, 16)]
    batch = next(
        iter(digits(unlabeled_batch_size=64, weak_transforms=shift, strong_transforms=shift).train_dataloader())
    )
    weak, strong = batch["unlabeled"]["weak"], batch["unlabeled"]["strong"]
    assert (weak == strong).flatten(1).all(1).float().mean() < 0.2


def test_no_augmented_image_is_ever_repeated(digits):
    """Ten images, 160 draws an epoch, three epochs: as many different views as draws, in every stream."""
    datamodule = digits(
        num_labels=10, batch_size=16, unlabeled_batch_size=16, steps_per_epoch=10, augment="strong", image_size=32
    )
    loader, views = datamodule.train_dataloader(), {"labeled": set(), "strong": set()}
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            views["labeled"] |= {image.numpy().tobytes() for image in batch["labeled"][0]}
            views["strong"] |= {image.numpy().tobytes() for image in batch["unlabeled"]["strong"]}
    assert {name: len(images) for name, images in views.items()} == {"labeled": 480, "strong": 480}


@pytest.mark.parametrize(("augment", "expected"), [("none", 0), ("weak", 1), ("strong", 2)])
def test_augment_chooses_the_views_of_the_labelled_images(digits, augment, expected):
    transforms = {"weak_transforms": [A.Posterize(1, p=1.0)], "strong_transforms": [A.InvertImg(p=1.0)]}
    datamodule = digits(augment=augment, image_size=8, batch_size=1257, **transforms)
    x, _ = next(iter(datamodule.train_dataloader()))
    plain = reference(datamodule, datamodule.train_indices)
    values = len(torch.unique(x))
    brighter = bool(x.mean() > plain.mean() + 0.1)
    assert [values > 2 and not brighter, values == 2, brighter].index(True) == expected


@pytest.mark.parametrize("kwargs", [{}, {"unlabeled_batch_size": 16}])
def test_steps_per_epoch_sets_the_length(digits, kwargs):
    datamodule = digits(num_labels=10, steps_per_epoch=7, **kwargs)
    assert len(list(datamodule.train_dataloader())) == 7


def test_ranks_get_their_share_from_the_trainer(digits):
    """Two ranks with batches of 8 see together what one process with batches of 16 sees."""
    alone = digits(num_labels=20, batch_size=16, unlabeled_batch_size=32, seed=5)
    ranks = [digits(num_labels=20, batch_size=8, unlabeled_batch_size=16, seed=5) for _ in range(2)]
    for rank, datamodule in enumerate(ranks):
        datamodule.trainer = SimpleNamespace(
            world_size=2,
            global_rank=rank,
            overfit_batches=0,
            strategy=SimpleNamespace(root_device=torch.device("cpu")),
            state=TrainerState(),
        )
    loaders = [datamodule.train_dataloader() for datamodule in (alone, *ranks)]
    assert [len(loader) for loader in loaders] == [40, 40, 40]
    for whole, first, second in zip(*loaders, strict=True):
        for view in ("weak", "strong"):
            parts = torch.cat([first["unlabeled"][view], second["unlabeled"][view]])
            assert digest_rows(parts) == digest_rows(whole["unlabeled"][view])
        assert sorted([*first["labeled"][1], *second["labeled"][1]]) == sorted(whole["labeled"][1])
        assert first["unlabeled"]["weak"].shape == (16, 1, 16, 16)


def trainer(tmp_path, **kwargs):
    return Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )


def test_overfitting_repeats_the_first_batches(digits, recorder, tmp_path):
    datamodule, module = DigitsDataModule(batch_size=8, unlabeled_batch_size=8), recorder()
    trainer(tmp_path, overfit_batches=2, max_epochs=3).fit(module, datamodule=datamodule)
    hashes = [digest for _, _, digest in module.seen]
    assert len(hashes) == 6
    assert hashes[:2] == hashes[2:4] == hashes[4:]
    assert hashes[0] != hashes[1]


def test_parts_of_size_zero_are_left_out(recorder, tmp_path):
    datamodule, module = DigitsDataModule(val_size=0, test_size=0, batch_size=600), recorder()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Total length")  # which Lightning says of a part that was asked for
        trainer(tmp_path, max_epochs=1).fit(module, datamodule=datamodule)
    with pytest.warns(UserWarning, match="There is no sample to validate on; val_size is 0"):
        trainer(tmp_path).validate(module, datamodule=datamodule)
    assert len(module.seen) == 3
    assert len(datamodule.train_indices) == 1797


def test_evaluation_loaders_are_in_order(digits):
    assert isinstance(digits().val_dataloader().sampler, SequentialSampler)


def test_what_setup_makes_is_not_there_before_it():
    for name in ("labels", "keys_", "train_indices", "val_indices", "num_unlabeled", "targets", "normalize"):
        data = DigitsDataModule()
        assert not hasattr(data, name)
    with pytest.raises(
        AttributeError, match=r"^DigitsDataModule has no val_indices before setup\(\): call it first, as a"
    ):
        data.val_dataloader()
    with pytest.raises(AttributeError, match=r"^'DigitsDataModule' object has no attribute 'keys_'$"):
        data.keys_  # noqa: B018


def test_attributes_are_known_before_setup():
    datamodule = DigitsDataModule(image_size=12)
    assert (datamodule.num_classes, datamodule.in_channels, datamodule.image_size) == (10, 1, 12)
    assert datamodule.class_names == ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be an integer of at least 1"),
        ({"batch_size": 2.5}, "batch_size is 2.5; it must be an integer"),
        ({"batch_size": True}, "batch_size is True; it must be an integer"),
        ({"unlabeled_batch_size": -1}, "unlabeled_batch_size is -1; it must be an integer of at least 0"),
        ({"image_size": 3}, "image_size is 3; it must be an integer of at least 4"),
        ({"steps_per_epoch": 0}, "steps_per_epoch is 0; it must be an integer of at least 1 or None"),
        ({"val_size": -1}, "val_size is -1"),
        ({"test_size": -1}, "test_size is -1"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"eval_batch_size": 0}, "eval_batch_size is 0"),
        ({"seed": -1}, "seed is -1; it must be an integer from 0 to 4294967295 or None"),
        ({"split_seed": 2**32}, "split_seed is 4294967296; it must be an integer from 0 to 4294967295"),
        ({"augment": "week"}, "augment is 'week'; did you mean 'weak'\\? It must be one of 'none', 'weak', 'strong'"),
    ],
)
def test_arguments_out_of_range_are_refused_at_once(kwargs, message):
    with pytest.raises(InvalidValueError, match=message):
        DigitsDataModule(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_labels": 9}, "num_labels is 9; it must be an integer from 10 .* to 1257"),
        ({"num_labels": 1258}, "num_labels is 1258; it must be an integer from 10 .* to 1257"),
        ({"val_size": 900, "test_size": 888}, "val_size is 900 and test_size is 888; .* at most 1787"),
        ({"weak_transforms": [A.RandomCrop(8, 8)]}, r"weak_transforms turn .*\[16, 16, 1\] into \[8, 8, 1\]"),
        ({"strong_transforms": [A.Normalize(0.5, 0.5)]}, "strong_transforms: Normalize turns .* into float32"),
    ],
)
def test_what_does_not_fit_the_data_is_refused_at_setup(digits, kwargs, message):
    with pytest.raises(InvalidValueError, match=message):
        digits(**kwargs)


def test_unlabelled_batches_with_every_label_known(digits):
    assert "unlabeled" in next(iter(digits(num_labels=None, unlabeled_batch_size=8).train_dataloader()))


def test_images_travel_as_bytes_and_arrive_normalised(digits):
    """To a Trainer at work; read by hand before and after, the same batches are normalised already."""
    datamodule = digits(num_labels=10, batch_size=4, unlabeled_batch_size=8, steps_per_epoch=2, val_size=10)
    by_hand = list(datamodule.train_dataloader())
    seen = []

    class Look(LightningModule):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            seen.append(batch["labeled"][0].dtype if isinstance(batch, dict) else batch[0].dtype)
            return batch

        def training_step(self, batch, batch_idx):
            seen.append(batch)

        def validation_step(self, batch, batch_idx):
            seen.append(batch[0].dtype)

        def configure_optimizers(self):
            return None

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    Trainer(max_epochs=1, num_sanity_val_steps=0, precision="64-true", **quiet).fit(Look(), datamodule)
    assert [seen[0], seen[2], *seen[4:]] == [torch.uint8, torch.uint8, torch.uint8, torch.float64]
    for expected, got in zip(by_hand, seen[1:4:2], strict=True):
        assert torch.equal(expected["labeled"][0].double(), got["labeled"][0])
        assert torch.equal(expected["labeled"][1], got["labeled"][1])
        for name in ("weak", "strong"):
            assert torch.equal(expected["unlabeled"][name].double(), got["unlabeled"][name])
    after = next(iter(datamodule.train_dataloader()))
    assert torch.equal(after["labeled"][0], by_hand[0]["labeled"][0])


def test_named_augmentations(digits):
    """Of labelled images, and in place of the weak or strong views; one name, two of them, mirrored or not."""
    settings = {"batch_size": 16, "steps_per_epoch": 2, "seed": 4}
    name = "weak + randaugment(n=1, m=5)"
    x = {
        augment: next(iter(digits(augment=augment, **settings).train_dataloader()))[0]
        for augment in ("weak", name, "trivialaugment")
    }
    assert len({tuple(batch.flatten().tolist()) for batch in x.values()}) == 3
    datamodule = digits(augment=name, **settings)
    (keys,) = next(iter(datamodule.train_dataloader().sampler))
    pipeline = SeededPipeline(named_transforms(name, 16), salt=17)
    expected = datamodule.normalize([pipeline(datamodule.images[i], s) for i, s in zip(*keys, strict=True)])
    assert torch.equal(x[name], expected)

    two = {"unlabeled_batch_size": 16, **settings}
    given, weak = digits(strong_transforms="weak", **two), digits(**two)
    assert given.pipelines["strong"].salt == 2
    batches = [next(iter(datamodule.train_dataloader()))["unlabeled"] for datamodule in (given, weak)]
    assert torch.equal(batches[0]["weak"], batches[1]["weak"])
    assert not torch.equal(batches[0]["strong"], batches[1]["strong"])
    assert type(digits(flip=True).pipelines["weak"].transforms[0]) is A.HorizontalFlip
    assert digits(flip=True).pipelines["none"].transforms == []


@pytest.mark.parametrize(
    ("given", "steps"),
    [(None, -(-1257 // 24)), ("unlabeled", -(-1257 // 24)), ("labeled", 100 // 8 + 1), (7, 7)],
)
def test_the_length_of_an_epoch(digits, given, steps):
    data = digits(num_labels=100, batch_size=8, unlabeled_batch_size=24, steps_per_epoch=given)
    assert len(data.train_dataloader()) == steps


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("unlabeled", "steps_per_epoch is 'unlabeled', but unlabeled_batch_size is 0. Give it, too."),
        ("label", "steps_per_epoch is 'label'; did you mean 'labeled'?"),
        (0, "steps_per_epoch is 0; it must be an integer of at least 1 or None."),
    ],
)
def test_lengths_of_an_epoch_that_are_none(given, message):
    with pytest.raises(InvalidValueError) as caught:
        DigitsDataModule(steps_per_epoch=given)
    assert message in str(caught.value)
