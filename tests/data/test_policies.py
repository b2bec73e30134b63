"""RandAugment, TrivialAugment and AugMix: operations against Pillow, draws against their distributions."""

import random
from collections import Counter

import albumentations as A
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from lightning_tuning.data import AugMix, Deterministic, SeededPipeline, named_transforms
from lightning_tuning.data.operations import Sharpness, between, either, enhancers, movements, tones
from lightning_tuning.data.pipeline import leaves
from lightning_tuning.errors import InvalidValueError

SIZE = 33
CENTRE = SIZE // 2


def picture(channels, size=SIZE, seed=0):
    """Smooth noise in every channel: each operation does something else to it."""
    noise = np.random.default_rng(seed).normal(size=(size, size, channels)).cumsum(0).cumsum(1)
    low, high = noise.min((0, 1)), noise.max((0, 1))
    return (20 + 200 * (noise - low) / (high - low)).astype(np.uint8)


def pillow(image):
    return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def difference(image, reference):
    return np.abs(image.astype(int) - np.asarray(reference).reshape(image.shape).astype(int))


def fixed(operations):
    """Each operation with one strength, as (its number in the list, transform)."""
    return [
        (number, leaf)
        for number, operation in enumerate(operations)
        for leaf in (operation.transforms if isinstance(operation, A.OneOf) else [operation])
    ]


def dot(row, column):
    image = np.zeros((SIZE, SIZE, 1), np.uint8)
    image[row, column] = 255
    return image


def position(image):
    weights = image[..., 0] / image.sum()
    rows, columns = np.mgrid[:SIZE, :SIZE]
    return (weights * rows).sum(), (weights * columns).sum()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("factor", [0.01, 0.4, 1.0, 1.9])
def test_enhancers_are_those_of_pillow(channels, factor):
    image = picture(channels)
    names = ["Brightness", "Contrast", *(["Color"] if channels == 3 else []), "Sharpness"]
    operations = enhancers(between, factor, factor, channels)
    assert len(operations) == len(names)
    for name, operation in zip(names, operations, strict=True):
        result = operation(image=image)["image"]
        reference = getattr(ImageEnhance, name)(pillow(image)).enhance(factor)
        assert result.shape == image.shape
        # Pillow leaves the outermost pixels unsharpened.
        assert difference(result, reference)[1:-1, 1:-1].max() <= 2
        assert (factor == 1.0) == (difference(result, image).max() == 0)


@pytest.mark.parametrize("channels", [1, 3])
def test_tones_are_those_of_pillow(channels):
    image = picture(channels, size=128)
    contrast, equalize, posterize, solarize = (
        operation(image=image)["image"] for operation in tones((3, 3), (0.4, 0.4))
    )
    assert difference(contrast, ImageOps.autocontrast(pillow(image))).max() <= 1
    assert difference(posterize, ImageOps.posterize(pillow(image), 3)).max() == 0
    assert difference(solarize, ImageOps.solarize(pillow(image), 102)).max() == 0
    # OpenCV maps the darkest value to 0, Pillow counts half of a step from 0.
    assert difference(equalize, ImageOps.equalize(pillow(image))).mean() < 4


def test_equalize_keeps_a_black_background():
    image = np.zeros((28, 28, 1), np.uint8)
    image[10:18, 10:18] = np.arange(64).reshape(8, 8, 1) + 100
    equalize = tones((8, 8), (1.0, 1.0))[1](image=image)["image"]
    assert (equalize[image == 0] == 0).all()
    assert equalize.max() == 255


def test_movements_are_those_of_the_table():
    """A dot 10 pixels below and 6 to the right of the centre goes where the formulas say, in both directions."""
    row, column, turn = 10.0, 6.0, np.deg2rad(30)
    shears_x, shears_y, shifts_x, shifts_y, turns = (
        [position(leaf(image=dot(CENTRE + 10, CENTRE + 6))["image"]) for leaf in operation.transforms]
        for operation in movements(either, shear=0.5, translate=4, rotate=30)
    )

    def near(found, *expected):
        moved = sorted((r - CENTRE, c - CENTRE) for r, c in found)
        assert np.allclose(moved, sorted(expected), atol=0.15)

    near(shears_x, (row, column - 0.5 * row), (row, column + 0.5 * row))
    near(shears_y, (row - 0.5 * column, column), (row + 0.5 * column, column))
    near(shifts_x, (row, column - 4), (row, column + 4))
    near(shifts_y, (row - 4, column), (row + 4, column))
    sine, cosine = np.sin(turn), np.cos(turn)
    near(
        turns,
        (row * cosine - column * sine, column * cosine + row * sine),
        (row * cosine + column * sine, column * cosine - row * sine),
    )


@pytest.mark.parametrize(("channels", "count"), [(1, 13), (3, 14)])
def test_randaugment_draws_all_operations_and_both_signs_equally_often(channels, count):
    """Each view is that of exactly one operation; the counts are those of independent uniform draws."""
    image = picture(channels)
    transforms = named_transforms("randaugment(n=1, m=7)", SIZE, channels, flip=True)[1:]
    operations = transforms[0].transforms
    number_of, ways = {}, Counter()
    for number, leaf in fixed(operations):
        number_of[leaf(image=image)["image"].tobytes()] = number
        ways[number] += 1
    assert len(number_of) == sum(ways.values())  # all different
    assert sorted(ways.values()) == [1] * 5 + [2] * (count - 5)
    pipeline = SeededPipeline(transforms)
    views = Counter(pipeline(image, seed).tobytes() for seed in range(1000))
    assert views.keys() == number_of.keys()
    expected = {view: 1000 / count / ways[number] for view, number in number_of.items()}
    chi_square = sum((views[view] - mean) ** 2 / mean for view, mean in expected.items())
    freedom = len(expected) - 1
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5


def test_randaugment_applies_n_operations_in_any_order_and_twice_the_same():
    image = picture(1)
    transforms = named_transforms("randaugment(2, 5)", SIZE)
    leaves_of = fixed(transforms[0].transforms)
    pairs = {}
    for first, one in leaves_of:
        once = one(image=image)["image"]
        for second, other in leaves_of:
            pairs.setdefault(other(image=once)["image"].tobytes(), set()).add((first, second))
    pipeline = SeededPipeline(transforms)
    found = [pairs[pipeline(image, seed).tobytes()] for seed in range(500)]  # a KeyError: not two operations
    certain = {next(iter(pair)) for pair in found if len(pair) == 1}
    assert any((second, first) in certain for first, second in certain if first != second)
    assert any(first == second for first, second in certain)


@pytest.mark.parametrize(("m", "share"), [(3, 0.3), (10, 1.0), (25, 2.5)])
def test_magnitudes_of_randaugment(m, share):
    """Ranges of AutoAugment's table 6, proportional to m and cut where nothing stronger exists."""
    operations = named_transforms(f"randaugment(m={m})", 100, channels=3, flip=True)[1].transforms
    affine = [leaf for leaf in leaves(operations) if isinstance(leaf, A.Affine)]
    assert np.tan(np.deg2rad(affine[1].shear["x"][0])) == pytest.approx(0.3 * share)
    assert np.tan(np.deg2rad(affine[2].shear["y"][0])) == pytest.approx(-0.3 * share)
    assert affine[1].shear["y"] == affine[2].shear["x"] == (0, 0)
    assert affine[5].translate_px["x"][0] == round(45.3172 * share)
    assert affine[9].rotate[0] == pytest.approx(30 * share)
    jitter = [leaf for leaf in leaves(operations) if isinstance(leaf, A.ColorJitter)]
    low, high = max(0, 1 - 0.9 * share), 1 + 0.9 * share
    for what, pair in zip(("brightness", "contrast", "saturation"), (jitter[:2], jitter[2:4], jitter[4:]), strict=True):
        assert [getattr(leaf, what)[0] for leaf in pair] == pytest.approx([low, high])
    sharpness = [leaf for leaf in leaves(operations) if isinstance(leaf, Sharpness)]
    assert [leaf.factor[0] for leaf in sharpness] == pytest.approx([low, high])
    (posterize,) = (leaf for leaf in operations if isinstance(leaf, A.Posterize))
    assert posterize.num_bits[0] == {3: 7, 10: 4, 25: 1}[m]
    (solarize,) = (leaf for leaf in operations if isinstance(leaf, A.Solarize))
    assert solarize.threshold_range[0] == pytest.approx(max(0, 1 - share))


@pytest.mark.parametrize("name", ["randaugment(m=25)", "trivialaugment", "augmix(severity=10)"])
def test_a_digit_is_not_turned_over(name):
    (transform,) = named_transforms(name, 28)
    inside = transform.operations if isinstance(transform, AugMix) else transform.transforms
    turns = [leaf.rotate for leaf in leaves(inside) if isinstance(leaf, A.Affine)]
    assert max(abs(end) for turn in turns for end in turn) == 30


@pytest.mark.parametrize(("size", "shift"), [(224, 32), (32, 32), (28, 28)])
def test_ranges_of_trivialaugment(size, shift):
    flip, choice = named_transforms("trivialaugment", size, channels=3, flip=True)
    assert isinstance(flip, A.HorizontalFlip)
    _, shear, _, move, _, turn, _, _, posterize, solarize, *enhance, sharpness = choice.transforms
    assert np.tan(np.deg2rad(shear.shear["x"])) == pytest.approx([-0.99, 0.99])
    assert move.translate_px["x"] == (-shift, shift)
    assert turn.rotate == (-135, 135)
    assert posterize.num_bits == (2, 8)
    assert solarize.threshold_range == (0, 1)
    assert [enhance[0].brightness, enhance[1].contrast, enhance[2].saturation] == [(0.01, 2)] * 3
    assert sharpness.factor == (0.01, 2)


def test_trivialaugment_draws_one_operation_of_continuous_strength():
    """Brightness alone scales a grey image's values: the factors that come up are spread over 0.01 to 2."""
    image = np.full((8, 8, 1), 100, np.uint8)
    pipeline = SeededPipeline(named_transforms("trivialaugment", 8))
    factors = [view[4, 4, 0] / 100 for view in (pipeline(image, seed) for seed in range(1500)) if np.ptp(view) == 0]
    counts = np.histogram([f for f in factors if f not in (0, 1, 1.55)], bins=4, range=(0, 2))[0]
    assert counts.min() > 12


class Darken(Deterministic):
    """Takes an eighth of the brightness and counts how often."""

    def __init__(self):
        super().__init__(lambda image: image - image // 8)
        self.count = 0

    def __call__(self, *, image, mask=None):
        self.count += 1
        return super().__call__(image=image, mask=mask)


@pytest.mark.parametrize(("width", "alpha"), [(3, 1.0), (1, 0.3), (5, 4.0)])
def test_augmix_is_algorithm_1(width, alpha):
    """The same draws, mixed in float64 by the formula of the paper."""
    image = picture(3)
    operations = [Darken(), Deterministic(np.flipud), Deterministic(lambda image: 255 - image)]
    pipeline = SeededPipeline([AugMix(operations, width, alpha)], salt=7)
    for seed in range(20):
        numbers = np.random.Generator(np.random.Philox(key=np.array([seed, 7], np.uint64)))
        python = random.Random(7 << 64 | seed)
        shares, mixed = numbers.dirichlet(np.full(width, alpha)), numbers.beta(alpha, alpha)
        sum_of_chains = np.zeros(image.shape)
        for share in shares:
            chain = image
            for _ in range(python.randint(1, 3)):
                chain = python.choice(operations).function(chain)
            sum_of_chains += share * chain.astype(float)
        expected = (1 - mixed) * image + mixed * sum_of_chains
        assert np.abs(pipeline(image, seed) - expected).max() <= 0.5 + 1e-9


def test_augmix_has_three_chains_of_one_to_three_operations():
    darken = Darken()
    pipeline = SeededPipeline([AugMix([darken])])
    counts = []
    for seed in range(600):
        darken.count = 0
        pipeline(np.full((1, 1, 1), 200, np.uint8), seed)
        counts.append(darken.count)
    assert min(counts) == 3
    assert max(counts) == 9
    assert np.mean(counts) == pytest.approx(6, abs=4 * (3 * 2 / 3 / 600) ** 0.5)


def test_augmix_mixes_half_of_the_image_in_on_average():
    """Chains that are black: what is left is the image's share, Beta(1, 1), so uniform."""
    pipeline = SeededPipeline([AugMix([Deterministic(np.zeros_like)])])
    shares = [pipeline(np.full((1, 1, 1), 255, np.uint8), seed)[0, 0, 0] / 255 for seed in range(1500)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.03)
    assert np.var(shares) == pytest.approx(1 / 12, abs=0.006)


def test_operations_of_augmix():
    (mix,) = named_transforms("augmix(severity=3, width=2, alpha=0.5)", 30, channels=3)
    assert (mix.width, mix.alpha) == (2, 0.5)
    shear, _, shift, _, turn, contrast, equalize, posterize, solarize = mix.operations
    assert np.tan(np.deg2rad(shear.shear["x"])) == pytest.approx([-0.09, 0.09])
    assert shift.translate_px["x"] == (-3, 3)
    assert turn.rotate == pytest.approx((-9, 9))
    assert (type(contrast), type(equalize)) == (A.AutoContrast, A.Equalize)
    assert posterize.num_bits == (3, 4)
    assert solarize.threshold_range == pytest.approx((0.7, 1))


def test_augmix_refuses_masks():
    with pytest.raises(InvalidValueError, match="no mask fits the sum"):
        SeededPipeline(named_transforms("augmix", 16))(picture(1, 16), 0, mask=np.zeros((16, 16), np.uint8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"operations": []}, "no operations"),
        ({"operations": [A.NoOp()], "width": 0}, "width is 0; it must be an integer of at least 1"),
        ({"operations": [A.NoOp()], "alpha": 0.0}, r"alpha is 0.0; it must be a number in \(0, inf\)"),
    ],
)
def test_augmix_refuses(arguments, message):
    with pytest.raises(InvalidValueError, match=message):
        AugMix(**arguments)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["randaugment(3, 30)", "trivialaugment", "augmix(10)"])
def test_images_are_not_written_to(name, channels):
    image = picture(channels)
    image.setflags(write=False)
    pipeline = SeededPipeline(named_transforms(name, SIZE, channels))
    for seed in range(100):
        pipeline(image, seed)
