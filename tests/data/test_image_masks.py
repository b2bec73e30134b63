"""Images with masks: moved alike by everything, padded with no class, turned by EXIF, refused where ids are strange."""

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion

from lightning_tuning import ImageTableDataModule
from lightning_tuning.data import BadSampleError
from lightning_tuning.errors import InvalidValueError

from .image_files import exif, png, saved
from .pictures import Watcher, tensors, trainer

REGIONS = np.zeros((40, 56), np.uint8)
REGIONS[:13] = 1
REGIONS[20:, 30:] = 2
REGIONS[25:35, 5:20] = 1
COLOURS = np.array([[90, 140, 60], [200, 70, 120], [40, 220, 210]], np.uint8)
CLASSES = ["ground", "sky", "house"]


@pytest.fixture
def table(tmp_path):
    """Writes pairs of an image and a mask, as bytes or arrays; gives the datamodule's maker."""

    def make(pairs):
        for n, (image, mask) in enumerate(pairs):
            (tmp_path / f"i{n}.png").write_bytes(image if isinstance(image, bytes) else png(image, 2))
            (tmp_path / f"m{n}.png").write_bytes(mask if isinstance(mask, bytes) else png(mask, 0))
        rows = [f"i{n}.png,m{n}.png" for n in range(len(pairs))]
        (tmp_path / "t.csv").write_text("\n".join(["image,mask", *rows]))

        def data(setup=True, **kwargs):
            defaults = {"image_size": 32, "mean": [0.0] * 3, "std": [1.0] * 3, "val_size": 0, "test_size": 0}
            defaults |= {"mask": "mask", "classes": CLASSES, "batch_size": 2, "num_workers": 0}
            made = ImageTableDataModule(str(tmp_path / "t.csv"), **{**defaults, **kwargs})
            if setup:
                made.setup()
            return made

        return data

    return make


def pixels(x):
    """A batch normalised with 0 and 1, as uint8 [N, H, W, C]."""
    return (x * 255).round().permute(0, 2, 3, 1).numpy().astype(np.uint8)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("resize", ["crop", "pad"])
@pytest.mark.parametrize(
    "augment",
    [
        "none",
        "weak",
        "strong",
        "randaugment",
        "randaugment(n=3, m=20)",
        "trivialaugment",
        "resized_crop",
        "weak + strong",
    ],
)
def test_masks_move_with_their_images(table, augment, resize, flip):
    """Within what the mask calls one class, or none, the image is of one colour, whatever became of that colour.

    Where several operations come one after the other, what one of them pads may be recoloured by the next.
    """
    several = any(sign in augment for sign in ("strong", "randaugment"))
    data = table([(COLOURS[REGIONS], REGIONS)])(
        augment=augment, resize=resize, flip=flip, batch_size=40, steps_per_epoch=1
    )
    (x, y), *_ = data.train_dataloader()
    assert (y.dtype, y.shape) == (torch.int64, (40, 32, 32))
    assert {*y.unique().tolist()} <= {0, 1, 2, 255}
    compared = np.zeros(256, int)
    for image, mask in zip(pixels(x).astype(int), y.numpy(), strict=True):
        for label in np.unique(mask):
            # Pixels at a border are mixed, and so may be those at the edge of the image.
            depth = 3 if "n=3" in augment else 2
            inside = binary_erosion(mask == label, np.ones((3, 3)), iterations=depth, border_value=int(label == 255))
            if "strong" in augment and label != 255:
                inside &= image.any(-1)  # a dark rectangle hides what is there still
                inside = binary_erosion(inside, np.ones((3, 3)), border_value=1)
            compared[label] += inside.sum()
            if inside.any() and not (several and label == 255):
                spread = image[inside].max(0) - image[inside].min(0)
                assert spread.max() <= 4, (label, spread)
    assert compared[:3].sum() > 300
    padded = resize == "pad" and augment != "resized_crop"
    assert (compared[255] > 0) == (padded or augment not in ("none", "resized_crop"))
    assert (len({mask.tobytes() for mask in y.numpy()}) > 12) == (augment != "none")


ROWS, COLUMNS = np.mgrid[:24, :24]
COORDINATES = np.stack([ROWS, COLUMNS, np.full_like(ROWS, 99)], axis=-1).astype(np.uint8)
CODED = ((ROWS * 7 + COLUMNS * 3) % 100).astype(np.uint8)


@pytest.mark.parametrize("flip", [False, True])
def test_pixel_by_pixel(table, flip):
    """Where nothing is interpolated: each pixel has the class of the place that it says it comes from."""
    kwargs = {"image_size": 24, "classes": [str(n) for n in range(100)], "resize": "squash", "batch_size": 20}
    data = table([(COORDINATES, CODED)])(**kwargs, augment="weak", flip=flip, steps_per_epoch=2)
    mirrored = 0
    for x, y in data.train_dataloader():
        for image, mask in zip(pixels(x).astype(int), y.numpy(), strict=True):
            inside = image[..., 2] == 99
            assert (image[~inside] == 0).all()
            assert (mask[~inside] == 255).all()
            rows, columns = image[inside][:, 0], image[inside][:, 1]
            assert (mask[inside] == (rows * 7 + columns * 3) % 100).all()
            mirrored += int(columns[0] > columns[1])
    assert (5 < mirrored < 35) if flip else mirrored == 0


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
def test_evaluation(table, resize):
    """A mask is shrunk to the classes that the image's colours show, give or take a pixel at a border."""
    data = table([(COLOURS[REGIONS], REGIONS)] * 4)(resize=resize, val_size=2)
    (x, y), *_ = data.val_dataloader()
    image, mask = pixels(x).astype(int)[0], y[0].numpy()
    padding = (image == 0).all(-1)
    assert (padding == (mask == 255)).all()
    assert padding.any() == (resize == "pad")
    nearest = np.abs(image[..., None, :] - COLOURS.astype(int)).sum(-1).argmin(-1)
    assert (nearest == mask)[~padding].mean() > 0.95
    for label in range(3):
        inside = binary_erosion(mask == label, np.ones((3, 3)), border_value=1)
        assert (image[inside] == COLOURS[label]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_both(table, orientation):
    """The image is stored as it says; its mask as it is shown, as it is stored, or with a note of its own."""
    stored = np.stack([REGIONS * 20 + 5] * 3, axis=-1)
    note = [(b"eXIf", exif(orientation))]
    noted, plain = png(REGIONS, 0, before=note), png(REGIONS, 0)
    seen = {1: REGIONS, 2: REGIONS[:, ::-1], 3: REGIONS[::-1, ::-1], 4: REGIONS[::-1], 5: REGIONS.T}
    seen |= {6: REGIONS[::-1].T, 7: REGIONS[::-1, ::-1].T, 8: REGIONS[:, ::-1].T}
    shown = png(np.ascontiguousarray(seen[orientation]), 0)
    image = png(stored, 2, before=note)
    for mask, drawn_on in ((noted, "auto"), (plain, "stored"), (shown, "shown")):
        data = table([(image, mask)])(drawn_on=drawn_on, resize="squash", augment="none")
        pixels_read, mask_read = data.samples[0]
        assert (mask_read == seen[orientation]).all()
        assert (pixels_read == (seen[orientation] * 20 + 5)[..., None]).all()


def test_strange_class_ids_are_refused(table, tmp_path):
    strange = REGIONS.copy()
    strange[0, :8] = [3, 9, 254, 255, 17, 18, 19, 20]
    with pytest.raises(BadSampleError) as raised:
        [*table([(COLOURS[REGIONS], strange)])().train_dataloader()]
    assert str(raised.value) == (
        f"{tmp_path}/m0.png: it holds the class ids 3, 9, 17, 18, 19, ..., but there are 3 classes, from 0, and 255 "
        "for pixels without one. Correct the mask, or name all classes."
    )
    strange[:] = 3
    with pytest.raises(BadSampleError, match="it holds the class ids 3, but there are 3 classes"):
        [*table([(COLOURS[REGIONS], strange)])().train_dataloader()]
    strange[:] = 255
    strange[0] = 2
    (_, y), *_ = table([(COLOURS[REGIONS], strange)])(resize="squash", augment="none").train_dataloader()
    assert {*y.unique().tolist()} <= {2, 255}


BAD = {
    "NaN": (saved(np.full(REGIONS.shape, np.nan, np.float32), "TIFF"), "it is a TIFF file, which may hold fractions"),
    "colours": (png(COLOURS[REGIONS], 2), "it has 3 channels; which colour is which class is not known"),
    "another size": (png(REGIONS[:-1], 0), "it is 56 x 39 pixels, its image {root}/i7.png 56 x 40"),
    "empty": (b"", "it is empty"),
    "cut": (png(REGIONS, 0)[:-20], "it is truncated"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_masks(table, tmp_path, name):
    bad, reason = BAD[name]
    good = (COLOURS[REGIONS], REGIONS)
    data = table([(COLOURS[REGIONS], bad) if n == 7 else good for n in range(120)])
    with pytest.raises(BadSampleError) as raised:
        [*data().train_dataloader()]
    assert str(raised.value).startswith(f"{tmp_path}/m7.png: {reason.format(root=tmp_path)}")
    skipping = data(on_bad_sample="skip")
    assert sum(len(y) for _, y in skipping.train_dataloader()) == 120
    assert sum(len(y) for _, y in skipping.plain_train_dataloader()) == 119
    assert [row[0] for row in skipping.bad_samples.rows()] == [7]


def test_augmix_is_refused_at_set_up(table):
    with pytest.raises(InvalidValueError, match=r"AugMix adds up differently moved images, so no mask fits the sum"):
        table([(COLOURS[REGIONS], REGIONS)])(augment="augmix")


def test_a_trainer_gets_them(table, tmp_path):
    def note(batch):
        return [(tensor.dtype, *tensor.shape) for tensor in tensors(batch)]

    data = table([(COLOURS[REGIONS], REGIONS)] * 8)(setup=False, val_size=2, eval_batch_size=2)
    model = Watcher(note)
    runs = trainer(tmp_path, max_epochs=1, num_sanity_val_steps=0)
    runs.fit(model, data)
    expected = [(torch.float32, 2, 3, 32, 32), (torch.int64, 2, 32, 32)]
    assert [seen for *_, seen in model.seen] == [expected] * 3
    assert [seen for *_, seen in model.evaluated] == [expected]
    assert (data.targets, data.num_classes, data.task) == (None, 3, "segmentation")
