import pickle
import time

import albumentations as A
import cv2
import numpy as np
import pytest

from lightning_tuning.data import NAMED_TRANSFORMS, SeededPipeline, evaluation_transforms, named_transforms
from lightning_tuning.errors import InvalidValueError


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [4, 8, 16, 33])
@pytest.mark.parametrize("name", NAMED_TRANSFORMS)
def test_named_transforms_keep_type_and_size(name, size, channels):
    pipeline = SeededPipeline(named_transforms(name, size, channels))
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


def test_lists_that_recipes_were_measured_with_are_as_they_were():
    weak = [A.Pad(padding=2, fill=0), A.RandomCrop(16, 16)]
    strong = [
        A.Affine(translate_percent=(-0.1, 0.1), scale=(0.8, 1.15), rotate=(-20, 20), shear=(-12, 12), fill=0, p=1.0),
        A.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.3, p=0.8),
        A.Erasing(scale=(0.02, 0.08), ratio=(0.5, 2.0), fill=0, p=0.5),
    ]
    for name, expected in {"none": [], "weak": weak, "strong": strong}.items():
        for channels in (1, 3):
            assert [repr(t) for t in named_transforms(name, 16, channels)] == [repr(t) for t in expected]


def test_names_are_joined_in_order():
    names = [type(t).__name__ for t in named_transforms(" strong+ none +weak + augmix( width = 2 )", 16)]
    assert names == ["Affine", "RandomBrightnessContrast", "Erasing", "Pad", "RandomCrop", "AugMix"]


def test_settings_by_name_and_by_place():
    by_name = named_transforms("randaugment(m=4.5, n=3)", 16)
    for text in ("randaugment(3, 4.5)", "randaugment(3, m=4.5)"):
        assert repr(named_transforms(text, 16)) == repr(by_name)
    assert by_name[0].n == 3
    assert named_transforms("randaugment", 16)[0].n == named_transforms("randaugment()", 16)[0].n == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("randaugment(k=3)", "augment is 'randaugment\\(k=3\\)', but randaugment has no setting 'k'. It has: n, m."),
        ("augmix(severty=3)", "no setting 'severty'; did you mean 'severity'\\?"),
        ("trivialaugment(3)", "trivialaugment has no setting '3'. It has none."),
        ("randaugment(1, 2, 3)", "no setting '3'. It has: n, m."),
        ("randaugment(1, n=2)", "has 'n' twice."),
        ("randaugment(n=2.5)", "randaugment's n is 2.5; it must be an integer of at least 1"),
        ("randaugment(n=two)", "randaugment's n is 'two'"),
        ("randaugment(m=0)", r"randaugment's m is 0; it must be a number in \(0, 30\]"),
        ("randaugment(m=nan)", "randaugment's m is nan"),
        ("augmix(11)", r"augmix's severity is 11; it must be a number in \(0, 10\]"),
        ("augmix(width=0)", "width is 0"),
        ("resized_crop(2)", r"resized_crop's area is 2; it must be a number in \(0, 1\]"),
        ("weak + stron", "augment is ' stron'; did you mean 'strong'|augment is 'stron'; did you mean 'strong'"),
        ("weak +", "augment is "),
        ("", "augment is ''. It must be one of 'none', 'weak'"),
        (None, "augment is None"),
        ("weak(", "augment is 'weak\\('"),
    ],
)
def test_what_is_no_list_is_refused(text, message):
    with pytest.raises(InvalidValueError, match=message):
        named_transforms(text, 16, argument="augment")


@pytest.mark.parametrize("name", ["weak", "strong", "resized_crop", "randaugment", "trivialaugment", "augmix"])
def test_flip_mirrors_half_of_the_images_first(name):
    plain, flipped = (named_transforms(name, 16, 3, flip) for flip in (False, True))
    assert [type(t) for t in flipped] == [A.HorizontalFlip, *(type(t) for t in plain)]
    image = np.arange(48, dtype=np.uint8).reshape(1, 16, 3)
    pipeline = SeededPipeline(flipped[:1])
    views = [pipeline(image, seed) for seed in range(400)]
    mirrored = [np.array_equal(view, image[:, ::-1]) for view in views]
    assert all(m or np.array_equal(view, image) for m, view in zip(mirrored, views, strict=True))
    assert 160 < sum(mirrored) < 240
    assert named_transforms("none", 16, 3, flip=True) == []


def test_resized_crop_takes_parts_of_all_sizes():
    """A gradient in two channels: the values at the corners tell which part of the image a view shows."""
    rows, columns = np.mgrid[:100, :200]
    image = np.stack([rows * 2, columns, rows], -1).astype(np.uint8)
    pipeline = SeededPipeline(named_transforms("resized_crop(area=0.2)", 50, channels=3))
    views = np.stack([pipeline(image, seed) for seed in range(300)]).astype(float)
    assert views.shape == (300, 50, 50, 3)
    heights = (views[:, -1, 25, 0] - views[:, 0, 25, 0]) / 2 * 50 / 49
    widths = (views[:, 25, -1, 1] - views[:, 25, 0, 1]) * 50 / 49
    areas, ratios = heights * widths / 20000, widths / heights
    # A part of the full height is at most 4/3 as wide, a third short of the full area.
    assert 0.18 < areas.min() < 0.22
    assert 0.55 < areas.max() < 0.7
    assert 0.7 < ratios.min() < 0.8
    assert 1.25 < ratios.max() < 1.4


def test_shrinking_averages():
    """A chessboard of single pixels becomes grey, not a pattern of its own."""
    chessboard = (np.indices((80, 80)).sum(0) % 2 * 255).astype(np.uint8)[..., None]
    pipeline = SeededPipeline(named_transforms("resized_crop(1)", 16))
    assert np.abs(pipeline(chessboard, 0).astype(int) - 127.5).max() < 40
    for resize in ("crop", "squash", "pad"):
        view = SeededPipeline(evaluation_transforms(16, resize))(chessboard, 0)
        assert np.abs(view.astype(int) - 127.5).max() < 40


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(64, 128), (96, 64), (20, 16)])
def test_evaluation_shows_the_middle_all_squashed_or_all_padded(height, width, channels):
    image = np.random.default_rng(0).integers(1, 256, (height, width, channels), dtype=np.uint8)

    def resized(rows, columns):
        method = cv2.INTER_AREA if rows < height else cv2.INTER_LINEAR
        return cv2.resize(image, (columns, rows), interpolation=method).reshape(rows, columns, channels)

    def view(resize):
        pipeline = SeededPipeline(evaluation_transforms(28, resize))
        views = [pipeline(image, seed) for seed in range(3)]
        assert views[0].tobytes() == views[1].tobytes() == views[2].tobytes()
        return views[0]

    rows, columns = (32, round(32 * width / height)) if height < width else (round(32 * height / width), 32)
    top, left = (rows - 28) // 2, (columns - 28) // 2
    assert np.array_equal(view("crop"), resized(rows, columns)[top : top + 28, left : left + 28])
    assert np.array_equal(view("squash"), resized(28, 28))
    rows, columns = (round(28 * height / width), 28) if height < width else (28, round(28 * width / height))
    top, left = (28 - rows) // 2, (28 - columns) // 2
    padded = np.zeros((28, 28, channels), np.uint8)
    padded[top : top + rows, left : left + columns] = resized(rows, columns)
    found = view("pad")
    assert min(np.abs(found - np.roll(padded, shift, (0, 1))).max() for shift in ((0, 0), (1, 0), (0, 1))) == 0


def test_evaluation_refuses_unknown_resizes():
    with pytest.raises(InvalidValueError, match="resize is 'crap'; did you mean 'crop'\\? It must be one of"):
        evaluation_transforms(28, "crap")
    with pytest.raises(InvalidValueError, match="image_size is 3"):
        evaluation_transforms(3)
