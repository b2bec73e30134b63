"""Write scikit-learn's handwritten digits as image files: a few in a folder for each class, most without a label."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from recipes.building import command

SIZE = 16
"""Height and width of the files in pixels; the digits have 8."""


def fill(folder: Path) -> str:
    """Write ``train/<digit>/<number>.png``, ``test/<digit>/<number>.png`` and ``unlabeled/<number>.png``.

    Each tenth file is a JPEG, ``.jpg``. The number is the image's in scikit-learn. The parts are always the same.

    Args:
        folder: An empty folder.

    Returns:
        How many images are where.
    """
    images, digits = load_digits(return_X_y=True)
    pixels = np.round(images.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    rest, test = train_test_split(np.arange(len(digits)), test_size=360, stratify=digits, random_state=0)
    unlabeled, train = train_test_split(rest, test_size=100, stratify=digits[rest], random_state=0)
    for part, numbers in {"train": train, "test": test, "unlabeled": unlabeled}.items():
        for number in numbers.tolist():
            place = folder / part if part == "unlabeled" else folder / part / str(digits[number])
            place.mkdir(parents=True, exist_ok=True)
            name = f"{number:04d}.jpg" if number % 10 == 0 else f"{number:04d}.png"
            image = Image.fromarray(pixels[number]).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
            image.save(place / name, **({"quality": 95} if number % 10 == 0 else {}))
    return f"train ({len(train)} images), test ({len(test)}) and unlabeled ({len(unlabeled)})"


def main(arguments: Sequence[str] | None = None) -> None:
    command(__doc__, "data/folder_digits", fill, arguments)


if __name__ == "__main__":
    main()
