"""The transform protocol, masks, and what cannot be seeded."""

import pickle
import random

import albumentations as A
import numpy as np
import pytest

from lightning_tuning.data import Deterministic, SeededPipeline, named_transforms
from lightning_tuning.errors import InvalidValueError


class AddNumbers:
    """Another library's transform: adds a number of each of the two generators."""

    def set_random_state(self, numpy_random, python_random):
        self.generators = numpy_random, python_random

    def __call__(self, *, image, mask=None):
        numpy_random, python_random = self.generators
        number = int(numpy_random.integers(100)) + 100 * python_random.randrange(100)
        return {"image": image + number, **({} if mask is None else {"mask": mask + number})}


def test_any_object_of_the_protocol_draws_from_the_pipelines_generators():
    """The first numbers of Philox with the key (seed, salt), and of Python's generator with salt * 2**64 + seed."""
    pipeline = SeededPipeline([AddNumbers(), AddNumbers()], salt=3)
    for seed in (0, 5, 2**64 - 1):
        numpy_random = np.random.Generator(np.random.Philox(key=np.array([seed, 3], np.uint64)))
        python_random = random.Random(3 * 2**64 + seed)
        expected = sum(int(numpy_random.integers(100)) + 100 * python_random.randrange(100) for _ in range(2))
        assert pipeline(np.zeros((1, 1, 1), int), seed).item() == expected
        image, mask = pipeline(np.zeros((1, 1, 1), int), seed, np.full((1, 1), 7))
        assert (image.item(), mask.item()) == (expected, expected + 7)


def test_deterministic_functions_are_transforms():
    image = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    mask = image[..., 0]
    pipeline = SeededPipeline([Deterministic(np.flipud, np.flipud), Deterministic(lambda image: image + 1)])
    assert (pipeline(image, 0) == image[::-1] + 1).all()
    view, moved = pipeline(image, 0, mask)
    assert (view == image[::-1] + 1).all()
    assert (moved == mask[::-1]).all()


@pytest.mark.parametrize("transform", [np.flipud, A.HorizontalFlip, 3, lambda image: image])
def test_what_cannot_be_seeded_is_refused(transform):
    name = getattr(transform, "__name__", "int")
    with pytest.raises(InvalidValueError, match=f"The transform {name} cannot .*set_random_state.*Deterministic"):
        SeededPipeline([A.NoOp(), transform])


def test_what_is_inside_is_looked_at_too():
    """Albumentations asks what is put into its compositions for keys and for a probability, but for no random state."""

    class Unseeded:
        available_keys, p = {"image"}, 1.0

        def __call__(self, **data):
            return data

    with pytest.raises(InvalidValueError, match="The transform Unseeded cannot be used"):
        SeededPipeline([A.OneOf([A.NoOp(), A.Compose([Unseeded()])])])


def test_masks_take_the_same_way_as_the_image(gradient_image):
    """Whole pixels: image and mask stay the same array, in every list that moves by whole pixels."""
    pipeline = SeededPipeline([*named_transforms("weak", 16, flip=True), A.RandomRotate90(p=0.5)])
    ways = set()
    for seed in range(60):
        view, mask = pipeline(gradient_image, seed, gradient_image[..., 0])
        assert (view[..., 0] == mask).all()
        assert (view == pipeline(gradient_image, seed)).all()
        ways.add(mask.tobytes())
    assert len(ways) > 40


@pytest.mark.parametrize("name", ["strong", "resized_crop", "randaugment(2, 9)", "trivialaugment"])
def test_class_ids_are_not_interpolated(name):
    """A disc of class 3 in class 1: no other class but that of what comes in, and its centre follows the image's."""
    rows, columns = np.mgrid[:48, :48]
    disc = (rows - 20) ** 2 + (columns - 27) ** 2 < 100
    image, mask = (disc * 160 + 40).astype(np.uint8)[..., None], np.where(disc, 3, 1).astype(np.uint8)
    pipeline = SeededPipeline(named_transforms(name, 48, flip=True, fill_mask=9))
    found, matched = set(), []
    for seed in range(80):
        view, moved = pipeline(image, seed, mask)
        assert moved.shape == (48, 48)
        assert moved.dtype == np.uint8
        found |= set(np.unique(moved))
        if (moved == 3).any() and (moved == 1).any():
            inside = view[..., 0][moved == 3].astype(float)
            outside = view[..., 0][moved == 1].astype(float)
            matched.append(abs(np.median(inside) - np.median(outside)) > 10)
    assert found <= {1, 3, 9}
    assert (9 in found) == (name != "resized_crop")
    assert np.mean(matched) > 0.85


def test_class_ids_from_outside_are_0_unless_said_otherwise():
    image, mask = np.full((16, 16, 1), 200, np.uint8), np.full((16, 16), 5, np.uint8)
    for fill_mask in (0, 255):
        settings = {} if fill_mask == 0 else {"fill_mask": fill_mask}
        pipeline = SeededPipeline(named_transforms("weak", 16, **settings))
        for seed in range(10):
            view, moved = pipeline(image, seed, mask)
            assert (moved == np.where(view[..., 0] == 0, fill_mask, 5)).all()


def test_erased_pixels_keep_their_class():
    """An object that is covered is still there: only movements change the mask."""
    image, mask = np.full((16, 16, 1), 200, np.uint8), np.full((16, 16), 5, np.uint8)
    erase = named_transforms("strong", 16, fill_mask=9)[2]
    view, moved = SeededPipeline([erase, erase, erase])(image, 1, mask)
    assert (view == 0).any()
    assert (moved == 5).all()


def test_a_mask_of_another_size_is_refused(gradient_image):
    with pytest.raises(InvalidValueError, match=r"mask is \[16, 15\]; the image's is \[16, 16\]"):
        SeededPipeline([])(gradient_image, 0, np.zeros((16, 15), np.uint8))


@pytest.mark.parametrize(
    "name", ["randaugment", "trivialaugment", "augmix", "resized_crop", "weak + randaugment(1, 5)"]
)
def test_named_pipelines_are_functions_of_the_seed_also_after_pickling(name, gradient_image):
    image = np.repeat(gradient_image, 3, axis=2)
    pipeline = SeededPipeline(named_transforms(name, 16, channels=3, flip=True), salt=4)
    copy = pickle.loads(pickle.dumps(pipeline))
    seeds = [3, 1, 2, 3, *range(10, 40)]
    views = [pipeline(image, seed).tobytes() for seed in seeds]
    assert views == [copy(image, seed).tobytes() for seed in seeds]
    assert views[0] == views[3]
    assert len(set(views)) > 15
