"""RandAugment, TrivialAugment and AugMix as lists of transforms.

What the operations do is in :mod:`lightning_tuning.data.operations`. Against the papers' Pillow operations: images are
interpolated bilinearly and sheared about their centre, shifts are whole pixels, what comes in from outside is black,
`Equalize` is OpenCV's, `AutoContrast`, `Contrast` and `Color` differ by up to two grey levels, `Sharpness` filters the
outermost pixels too, and strengths drawn at random are continuous instead of one of 31 levels.
"""

from __future__ import annotations

import albumentations as A

from lightning_tuning.data.augmix import AugMix
from lightning_tuning.data.operations import between, either, enhancers, movements, tones
from lightning_tuning.data.pipeline import Transform
from lightning_tuning.errors import check_count, check_range

_UPRIGHT = 30.0
"""How many degrees an image is turned at most whose mirror image shows something else: a 6 must not become a 9."""


def randaugment(image_size: int, channels: int = 1, flip: bool = False, n: int = 2, m: float = 9.0) -> list[Transform]:
    """RandAugment: ``n`` operations of magnitude ``m``, drawn with replacement.

    At m = 10, each in the direction that chance decides: shear by 0.3, shift by 150/331 of the image, rotation by 30
    degrees, factors 1 - 0.9 and 1 + 0.9 of brightness, contrast, saturation (of 3 channels) and sharpness; posterising
    to 4 bits and solarising from 0 on; strengths are proportional to m. Beside them identity, automatic contrast and
    equalised histogram.

    Args:
        image_size: Height and width in pixels.
        channels: Of the images.
        flip: Whether a mirrored image shows the same. If not, rotations end at 30 degrees.
        n: Number of operations, at least 1.
        m: Magnitude on the paper's scale, above 0; 10 is the maximum of the table, 30 the largest allowed. (Packages
            that count 31 levels up to that maximum call it 30: divide by 3.)

    Source:
        Cubuk et al., 2020, "RandAugment"; ranges of the table of operations in Cubuk et al., 2019, "AutoAugment". That
        a larger m is stronger in all operations is as in torchvision; in the authors' code it is weaker in posterising
        and solarising.
    """
    check_count("randaugment's n", n, 1)
    check_range("randaugment's m", m, 0, 30, open_low=True)
    share = m / 10
    bits = max(1, 8 - round(4 * share))
    threshold = max(0.0, 1 - share)
    rotate = 30 * share if flip else min(30 * share, _UPRIGHT)
    operations = [
        A.NoOp(p=1.0),
        *movements(either, 0.3 * share, round(150 / 331 * image_size * share), rotate),
        *tones((bits, bits), (threshold, threshold)),
        *enhancers(either, max(0.0, 1 - 0.9 * share), 1 + 0.9 * share, channels),
    ]
    return [A.RandomOrder(operations, n=n, replace=True)]


def trivialaugment(image_size: int, channels: int = 1, flip: bool = False) -> list[Transform]:
    """TrivialAugment (wide): one operation of a strength drawn uniformly.

    Shear by up to 0.99, shift by up to 32 pixels (and no more than the image has), rotation by up to 135 degrees, each
    in both directions; factors 0.01 to 2 of brightness, contrast, saturation (of 3 channels) and sharpness;
    posterising to 2 to 8 bits, solarising from 0 to 255 on. Beside them identity, automatic contrast and equalised
    histogram. Of images of 32 pixels and less some are shifted out of sight altogether.

    Args:
        image_size: Height and width in pixels.
        channels: Of the images.
        flip: Whether a mirrored image shows the same. If not, rotations end at 30 degrees.

    Source:
        Müller & Hutter, 2021, "TrivialAugment", the wide ranges of the table of augmentation spaces.
    """
    operations = [
        A.NoOp(p=1.0),
        *movements(between, 0.99, min(32, image_size), 135.0 if flip else _UPRIGHT),
        *tones((2, 8), (0.0, 1.0)),
        *enhancers(between, 0.01, 2.0, channels),
    ]
    return [A.OneOf(operations, p=1.0)]


def augmix(
    image_size: int, channels: int = 1, flip: bool = False, severity: float = 3.0, width: int = 3, alpha: float = 1.0
) -> list[Transform]:
    """AugMix: chains of operations, mixed with each other and with the image.

    Strengths are drawn uniformly up to ``severity / 10`` of: shear by 0.3, shift by a third of the image, rotation by
    30 degrees, in both directions; posterising to 4 bits and fewer, solarising from 255 down to 0 on. Beside them
    automatic contrast and equalised histogram. No operation changes colours, brightness or sharpness, which the
    corruptions of ImageNet-C do.

    Args:
        image_size: Height and width in pixels.
        channels: Of the images; all operations take any that ``Equalize`` takes, 1 or 3.
        flip: Has no effect: nothing turns far.
        severity: Above 0, up to 10.
        width: Number of chains, at least 1.
        alpha: Of the mixing distributions, above 0.

    Source:
        Hendrycks et al., 2020, "AugMix"; the ranges are those of the authors' code.
    """
    check_range("augmix's severity", severity, 0, 10, open_low=True)
    share = severity / 10
    operations = [
        *movements(between, 0.3 * share, round(image_size / 3 * share), 30 * share),
        *tones((max(1, 4 - int(4 * share)), 4), (1 - share, 1.0)),
    ]
    return [AugMix(operations, width=width, alpha=alpha)]
