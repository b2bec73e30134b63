"""Images that grow in the course of a run, through a Trainer."""

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from lightning_tuning import DigitsDataModule, ImageTableDataModule
from lightning_tuning.errors import InvalidValueError

from .image_files import png
from .pictures import Watcher, digest, tensors, trainer

GROWS = "8 -> 16 over 50% by 4"


def digits(**kwargs):
    defaults = {"image_size": 16, "steps_per_epoch": 4, "batch_size": 4, "val_size": 20, "num_workers": 0}
    return DigitsDataModule(**{**defaults, "progressive": GROWS, **kwargs})


def sides(batch):
    """Height and width of all images and masks of a batch."""
    return {tuple(tensor.shape[-2:]) for tensor in tensors(batch) if tensor.ndim > 1}


def fit(data, folder, note=sides, ckpt_path=None, callbacks=(), **kwargs):
    model = Watcher(note)
    runs = trainer(folder, callbacks, **{"max_epochs": 8, **kwargs})
    runs.fit(model, data, ckpt_path=ckpt_path)
    return model


def by_epoch(model):
    sizes = {}
    for epoch, _, seen in model.seen:
        ((height, width),) = seen
        assert height == width
        sizes.setdefault(epoch, set()).add(height)
    assert all(len(each) == 1 for each in sizes.values())
    return [size for (size,) in sizes.values()]


@pytest.mark.parametrize(
    ("data", "run", "expected"),
    [
        ({}, {}, [8, 8, 12, 12, 16, 16, 16, 16]),
        ({"unlabeled_batch_size": 6, "unlabeled_views": "weak strong strong_2"}, {}, [8, 8, 12, 12, 16, 16, 16, 16]),
        ({}, {"accumulate_grad_batches": 3}, [8, 8, 12, 12, 16, 16, 16, 16]),  # two steps an epoch
        ({}, {"max_steps": 16, "max_epochs": -1}, [8, 12, 16, 16]),
        ({}, {"max_epochs": 3}, [8, 12, 16]),  # 0, 2/3 and 4/3 of the time
        ({}, {"max_epochs": 8, "limit_train_batches": 2}, [8, 8, 12, 12, 16, 16, 16, 16]),
        ({"progressive": "8 -> 16 over 8 steps by 4"}, {"max_epochs": 4}, [8, 12, 16, 16]),
        (
            {"progressive": "8 -> 16 over 4 steps by 4"},
            {"max_epochs": 4, "accumulate_grad_batches": 2},
            [8, 12, 16, 16],
        ),
        ({"progressive": "4 -> 16 over 3ep by 4"}, {"max_epochs": 4}, [4, 8, 12, 16]),
        ({"progressive": "24 -> 16 over 2 epochs by 4"}, {"max_epochs": 3}, [24, 20, 16]),
    ],
    ids=str,
)
def test_the_sizes_of_the_epochs(tmp_path, data, run, expected):
    model = fit(digits(**data), tmp_path, **run)
    assert by_epoch(model) == expected
    assert {len(seen) for *_, seen in model.seen} == {1}


def test_evaluation_has_the_full_size(tmp_path):
    """Before the first epoch, within epochs and after them; and the small size goes on behind it."""
    sizes = []

    class Checked(Watcher):
        def validation_step(self, batch, batch_idx):
            sizes.append((self.trainer.sanity_checking, *sides(batch)))

    model = Checked(sides)
    data = digits(eval_batch_size=20)
    runs = trainer(tmp_path, max_epochs=8, val_check_interval=0.5)
    runs.fit(model, data)
    assert sizes == [(True, (16, 16)), *[(False, (16, 16))] * 16]
    assert by_epoch(model) == [8, 8, 12, 12, 16, 16, 16, 16]
    runs.test(model, data, verbose=False)
    assert [seen for *_, seen in model.evaluated] == [{(16, 16)}] * 18
    assert sides(next(iter(data.train_dataloader()))) == {(16, 16)}  # read by hand


def test_pixels(tmp_path):
    """Against Pillow's bilinear filter, which averages where it shrinks."""
    whole = fit(digits(progressive=None, augment="none"), tmp_path, note=lambda batch: batch, max_epochs=4)
    small = fit(digits(augment="none"), tmp_path, note=lambda batch: batch, max_epochs=4)
    for (epoch, _, (x, y)), (_, _, (x_small, y_small)) in zip(whole.seen, small.seen, strict=True):
        size = [8, 12, 16, 16][epoch]
        assert torch.equal(y, y_small)
        assert x_small.dtype == torch.float32
        for image, other in zip(x[:, 0].numpy(), x_small[:, 0].numpy(), strict=True):
            expected = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
            np.testing.assert_allclose(other, expected, atol=1e-5)


def test_masks_shrink_alike(tmp_path):
    draws = np.random.default_rng(0)
    for n in range(16):
        mask = draws.integers(0, 3, (16, 16))
        mask[:, -4:] = 255
        (tmp_path / f"i{n}.png").write_bytes(png(np.stack([mask] * 3, axis=-1), 2))
        (tmp_path / f"m{n}.png").write_bytes(png(mask, 0))
    (tmp_path / "t.csv").write_text("\n".join(["image,mask", *(f"i{n}.png,m{n}.png" for n in range(16))]))
    kwargs = {"mask": "mask", "classes": ["a", "b", "c"], "image_size": 16, "resize": "squash", "augment": "none"}
    kwargs |= {"mean": [0.0] * 3, "std": [1.0] * 3, "val_size": 4, "test_size": 0, "batch_size": 4, "num_workers": 0}
    data = ImageTableDataModule(str(tmp_path / "t.csv"), **kwargs, progressive=GROWS)
    whole = fit(ImageTableDataModule(str(tmp_path / "t.csv"), **kwargs), tmp_path, lambda batch: batch, max_epochs=4)
    model = fit(data, tmp_path, lambda batch: batch, max_epochs=4)
    for (epoch, _, (_, full)), (_, _, (x, y)) in zip(whole.seen, model.seen, strict=True):
        size = [8, 12, 16, 16][epoch]
        assert (x.shape, y.shape, y.dtype) == ((4, 3, size, size), (4, size, size), torch.int64)
        places = ((np.arange(size) + 0.5) * 16 / size).astype(int)  # the pixel under each one's middle
        assert (y.numpy() == full.numpy()[:, places][:, :, places]).all()
    assert {tensor.shape[-1] for *_, (x, y) in model.evaluated for tensor in (x, y)} == {16}


@pytest.mark.parametrize(("step", "num_workers"), [(4, 0), (6, 0), (9, 0), (18, 0), (9, 2)])
def test_a_resumed_run_sees_the_same(tmp_path, step, num_workers):
    """At the end of an epoch, within one of the first size, of the second and of the last."""
    kwargs = {"num_workers": num_workers, "unlabeled_batch_size": 4}
    straight = fit(digits(**kwargs), tmp_path / "straight", digest)
    saving = ModelCheckpoint(tmp_path / "kept", filename="{step}", every_n_train_steps=1, save_top_k=-1)

    class Stops(Watcher):
        def on_train_batch_end(self, *args):
            if self.trainer.global_step == step:
                raise KeyboardInterrupt

    first = Stops(digest)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer(tmp_path, [saving], max_epochs=8).fit(first, digits(**kwargs))
    assert len(first.seen) == step
    kept = tmp_path / "kept" / f"step={step}.ckpt"
    if not kept.exists():  # the callback comes behind the model's hook
        kept = tmp_path / "kept" / f"step={step - 1}.ckpt"
        first.seen.pop()
    second = fit(digits(**kwargs), tmp_path, digest, kept)
    assert first.seen + second.seen == straight.seen
    assert torch.equal(second.weight, straight.weight)
    assert len(straight.seen) == 32


@pytest.mark.parametrize(
    ("progressive", "message"),
    [
        (
            "8 -> 24 over 50% by 4",
            "progressive is '8 -> 24 over 50% by 4', but image_size is 16; it must end with that",
        ),
        ("8 -> 16 over 50% by 3", "progressive is '8 -> 16 over 50% by 3', but steps of 3 pixels do not lead from 8"),
        ("8 -> 16 over 50%", "progressive is '8 -> 16 over 50%', but steps of 32 pixels do not lead from 8 to 16."),
        ("8 to 16", "progressive is '8 to 16'; write a first and a last size in pixels"),
    ],
)
def test_schedules_that_do_not_fit(progressive, message):
    with pytest.raises(InvalidValueError) as raised:
        digits(progressive=progressive).setup()
    assert str(raised.value).startswith(message)
