import pickle
import time

import albumentations as A
import numpy as np
import pytest

from lightning_tuning.data import NAMED_TRANSFORMS, SeededPipeline, named_transforms
from lightning_tuning.errors import InvalidValueError


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [4, 8, 16, 33])
@pytest.mark.parametrize("name", NAMED_TRANSFORMS)
def test_named_transforms_keep_type_and_size(name, size, channels):
    pipeline = SeededPipeline(named_transforms(name, size))
    image = np.random.default_rng(0).integers(0, 256, (size, size, channels), dtype=np.uint8)
    for seed in range(20):
        view = pipeline(image, seed)
        assert view.shape == image.shape
        assert view.dtype == np.uint8


def test_none_changes_nothing(gradient_image):
    assert (SeededPipeline(named_transforms("none", 16))(gradient_image, 3) == gradient_image).all()


def test_weak_shifts_by_up_to_an_eighth_and_does_nothing_else(gradient_image):
    """Each view equals exactly one of the 25 shifts of the image, padded with black; all 25 come up."""
    padded = np.pad(gradient_image, ((2, 2), (2, 2), (0, 0)))
    shifts = {padded[i : i + 16, j : j + 16].tobytes(): (i, j) for i in range(5) for j in range(5)}
    pipeline = SeededPipeline(named_transforms("weak", 16))
    assert {shifts[pipeline(gradient_image, seed).tobytes()] for seed in range(300)} == set(shifts.values())


def test_strong_moves_scales_brightens_and_cuts_out():
    """On a grey disc: its centre moves, its area and brightness vary, a black hole covers the centre now and then."""
    rows, columns = np.mgrid[:32, :32]
    disc = ((rows - 15.5) ** 2 + (columns - 15.5) ** 2 < 81).astype(np.uint8)[..., None] * 100
    pipeline = SeededPipeline(named_transforms("strong", 32))
    views = np.stack([pipeline(disc, seed)[..., 0] for seed in range(300)]).astype(float)
    peaks = np.median(views[:, 12:20, 12:20], axis=(1, 2))
    holes = views[:, 15, 15] == 0
    inside = views > (peaks[:, None, None] + views[:, :1, :1]) / 2
    areas = inside.sum((1, 2)) / (disc > 0).sum()
    centres = (inside * rows).sum((1, 2)) / inside.sum((1, 2))
    assert 0.01 < holes.mean() < 0.15
    assert 1 < centres[~holes].std() < 3
    assert 0.5 < areas[~holes].min() < 0.8
    assert 1.15 < areas[~holes].max() < 1.6
    assert 10 < peaks[~holes].std() < 40
    assert 30 < peaks[~holes].min() < 60 < 140 < peaks[~holes].max() < 170


def test_no_view_is_mirrored(gradient_image):
    """The mean of many strong views still grows from left to right and from top to bottom."""
    pipeline = SeededPipeline(named_transforms("strong", 16))
    mean = np.mean([pipeline(gradient_image, seed)[4:12, 4:12, 0] for seed in range(300)], axis=0)
    assert (np.diff(mean, axis=0) > 0).all()


def test_unknown_name_is_refused():
    with pytest.raises(
        InvalidValueError, match="'stron'; did you mean 'strong'\\? It must be one of 'none', 'weak', 'strong'"
    ):
        named_transforms("stron", 16)


def test_the_result_depends_on_image_and_seed_alone(gradient_image):
    pipeline = SeededPipeline(named_transforms("strong", 16))
    expected = {seed: pipeline(gradient_image, seed).tobytes() for seed in range(20)}
    assert len(set(expected.values())) == 20
    fresh = SeededPipeline(named_transforms("strong", 16))
    unpickled = pickle.loads(pickle.dumps(pipeline))
    for seed in reversed(range(20)):
        assert fresh(gradient_image, seed).tobytes() == unpickled(gradient_image, seed).tobytes() == expected[seed]


# Albumentations draws from a NumPy generator and from one of Python's; each of these from one of the two.
ONE_SOURCE = pytest.mark.parametrize(
    "transform",
    [A.GaussNoise(std_range=(0.2, 0.2), mean_range=(0, 0), p=1.0), A.RandomCrop(8, 8)],
    ids=["numpy", "python"],
)


@ONE_SOURCE
def test_both_sources_of_random_numbers_are_set_at_each_call(gradient_image, transform):
    pipeline = SeededPipeline([transform])
    first, second, third = (pipeline(gradient_image, seed).tobytes() for seed in (3, 4, 3))
    assert first == third != second


@ONE_SOURCE
def test_salt_gives_other_numbers_from_the_same_seed(gradient_image, transform):
    first, second = (SeededPipeline([transform], salt) for salt in (1, 2))
    same = [np.array_equal(first(gradient_image, seed), second(gradient_image, seed)) for seed in range(50)]
    assert np.mean(same) < 0.2


def test_transforms_of_a_pipeline_draw_different_numbers(gradient_image):
    """With ``set_random_seed`` both crops of a list would choose the same corner, always."""
    crop = [A.RandomCrop(12, 12), A.RandomCrop(8, 8)]
    corners = set()
    for seed in range(200):
        row, column = divmod(int(SeededPipeline(crop)(gradient_image, seed)[0, 0, 0]), 16)
        corners.add((row, column))
    assert any(row % 2 for row, _ in corners)
    assert any(column % 2 for _, column in corners)


def test_nested_transforms_are_seeded_too(gradient_image):
    nested = [A.OneOf([A.RandomCrop(8, 8, p=1), A.Compose([A.SomeOf([A.HorizontalFlip(p=0.5)], n=1)], p=0.5)], p=0.9)]
    twice = [[SeededPipeline(nested)(gradient_image, seed).tobytes() for seed in range(30)] for _ in range(2)]
    assert twice[0] == twice[1]
    assert len(set(twice[0])) > 5


def test_seeding_is_cheaper_than_albumentations(gradient_image):
    """In the same process, one after the other: what is measured is the ratio."""
    transforms = named_transforms("strong", 16)
    compose = A.Compose(transforms)
    pipeline = SeededPipeline([A.NoOp(p=0) for _ in transforms])

    def fastest(function):
        times = []
        for _ in range(7):
            start = time.process_time()
            for seed in range(200):
                function(seed)
            times.append(time.process_time() - start)
        return min(times)

    assert fastest(lambda seed: pipeline(gradient_image, seed)) < 0.8 * fastest(compose.set_random_seed)
