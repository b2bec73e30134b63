"""Bit for bit what Albumentations does, for images and masks."""

import albumentations as A
import cv2
import numpy as np
import pytest

from lightning_tuning.data import SeededPipeline, named_transforms
from lightning_tuning.data.affine import Affine

KINDS = (Affine, A.Affine)
SETTINGS = {
    "strong": {"translate_percent": (-0.1, 0.1), "scale": (0.8, 1.15), "rotate": (-20, 20), "shear": (-12, 12)},
    "sides apart": {"scale": {"x": (0.5, 1.0), "y": (1.0, 2.0)}, "shear": {"x": (-30.0, 30.0), "y": (0.0, 0.0)}},
    "pixels": {"translate_px": {"x": (-3, 3), "y": (0, 0)}},
    "turn": {"rotate": (-135.0, 135.0), "fill": 7, "fill_mask": 3.0},
    "colour": {"rotate": (10.0, 50.0), "fill": (1.0, 200.0, 30.0, 40.0)},
    "border": {"rotate": (10.0, 50.0), "border_mode": cv2.BORDER_REFLECT_101, "interpolation": cv2.INTER_CUBIC},
    "ratio": {"scale": (0.5, 1.5), "keep_ratio": True, "balanced_scale": True},
    "all of it": {"rotate": (10.0, 50.0), "fit_output": True},
    "nothing": {"shear": (0.0, 0.0)},
    "nothing, cubic": {"shear": (0.0, 0.0), "interpolation": cv2.INTER_CUBIC},
    "nothing, Lanczos": {"shear": (0.0, 0.0), "interpolation": cv2.INTER_LANCZOS4},
    "nothing, nearest": {"shear": (0.0, 0.0), "interpolation": cv2.INTER_NEAREST},
    "hardly": {"rotate": (-1e-8, 1e-8), "shear": (0.0, 0.0)},
    "a little": {"rotate": (0.005, 0.006), "shear": (0.0, 0.0)},
}


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("name", SETTINGS)
def test_it_is_albumentations(name, channels):
    if name == "colour" and channels > 4:
        channels = 4
    rng = np.random.default_rng(0)
    ours, theirs = (SeededPipeline([kind(**SETTINGS[name], p=1.0)], 5) for kind in KINDS)
    for height, width in [(8, 8), (32, 32), (33, 20)]:
        image = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
        mask = rng.integers(0, 5, (height, width), dtype=np.uint8)
        for seed in range(15):
            np.testing.assert_array_equal(ours(image, seed), theirs(image, seed))
            for mine, their in zip(ours(image, seed, mask), theirs(image, seed, mask), strict=True):
                np.testing.assert_array_equal(mine, their)


@pytest.mark.parametrize("name", ["strong", "randaugment", "trivialaugment", "augmix"])
def test_the_named_lists_use_it(name):
    transforms = named_transforms(name, 32, 3)
    kinds = {type(leaf) for leaf in leaves_of(transforms) if isinstance(leaf, A.Affine)}
    assert kinds == {Affine}


def leaves_of(transforms):
    for transform in transforms:
        inside = getattr(transform, "transforms", None) or getattr(transform, "operations", None)
        if inside:
            yield from leaves_of(inside)
        else:
            yield transform


def test_numbers_drawn_after_it_are_the_same():
    after = {"rotate": (-20.0, 20.0), "p": 0.5}
    ours = SeededPipeline([Affine(**after), A.RandomCrop(5, 5)])
    theirs = SeededPipeline([A.Affine(**after), A.RandomCrop(5, 5)])
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert all((ours(image, seed) == theirs(image, seed)).all() for seed in range(100))


def test_images_without_channels():
    image = np.random.default_rng(0).integers(0, 256, (16, 12), dtype=np.uint8)
    ours, theirs = (SeededPipeline([kind(rotate=(30.0, 60.0), p=1.0)])(image, 3) for kind in KINDS)
    np.testing.assert_array_equal(ours, theirs)
