"""Draw scenes of circles, squares and triangles, three frames of each, with masks and a table that names them all."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from recipes.building import command

KINDS = ("circle", "square", "triangle")
SIZE = 32
"""Height and width of the images in pixels."""
FRAMES = 3
SCENES = {"train": 80, "test": 80}
PALETTE = (40, 40, 40, 230, 90, 80, 80, 160, 230, 240, 200, 70)
"""Colours in which an image viewer shows the masks; the classes are the indices."""


def fill(folder: Path) -> str:
    """Write ``images/``, ``masks/`` and ``shapes.csv``; they are always the same.

    The table has a row for each frame: ``image`` and ``mask``, the files; ``scene``, the same for its three frames;
    ``part``; ``circle``, ``square`` and ``triangle``, 1 where it has one; ``share``, the shapes' share of the pixels.

    Args:
        folder: An empty folder.

    Returns:
        How many images of how many scenes are in each part.
    """
    random = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir()
    with (folder / "shapes.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "mask", "scene", "part", *KINDS, "share"])
        for part, scenes in SCENES.items():
            for number in range(scenes):
                for frame, (image, mask) in enumerate(draw_scene(random)):
                    names = [f"{kind}/{part}{number:03d}_{frame}.png" for kind in ("images", "masks")]
                    Image.fromarray(image).save(folder / names[0])
                    indexed = Image.fromarray(mask)
                    indexed.putpalette(PALETTE)
                    indexed.save(folder / names[1])
                    shown = [int((mask == kind).any()) for kind in range(1, len(KINDS) + 1)]
                    table.writerow([*names, f"{part}{number:03d}", part, *shown, round((mask > 0).mean(), 4)])
    counts = [f"{part}: {FRAMES * scenes} images of {scenes} scenes" for part, scenes in SCENES.items()]
    return f"shapes.csv, images and masks ({', '.join(counts)})"


class Shape(NamedTuple):
    """A regular polygon of one colour."""

    kind: int
    """Its class; 0 is the background."""
    radius: float
    """How far its corners are from its middle, in pixels."""
    middle: np.ndarray
    """x and y, in pixels."""
    turn: float
    """Angle by which it is turned, in radians."""
    colour: np.ndarray

    def area(self) -> np.ndarray:
        """Where it is, bool ``[H, W]``."""
        corners = {1: 40, 2: 4, 3: 3}[self.kind]
        angles = self.turn + 2 * np.pi * np.arange(corners) / corners
        x, y = self.middle[:, None] + self.radius * np.array([np.cos(angles), np.sin(angles)])
        picture = Image.new("1", (SIZE, SIZE))
        ImageDraw.Draw(picture).polygon(list(zip(x.tolist(), y.tolist(), strict=True)), fill=1)
        return np.asarray(picture)


def draw_scene(random: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """The frames of a scene: images, uint8 ``[H, W, 3]``, and the class of each pixel, uint8 ``[H, W]``.

    A scene has one to four shapes, which do not touch, and a background whose colour runs from one side to the other.
    From frame to frame each shape moves by up to a pixel and turns a little, and the noise is new.
    """
    ground = random.uniform(60, 196, (2, 3))
    slope = np.add.outer(*(np.linspace(0, end, SIZE) for end in random.uniform(0, 0.5, 2)))[..., None]
    background = (1 - slope) * ground[0] + slope * ground[1]
    shapes: list[Shape] = []
    for _ in range(random.integers(1, 5)):
        radius = random.uniform(5, 8)
        middle = random.uniform(radius, SIZE - radius, 2)
        if all(np.hypot(*(middle - other.middle)) > radius + other.radius + 3 for other in shapes):
            colour = ground.mean(0) + random.choice([-1, 1], 3) * random.uniform(25, 80, 3)
            turn = random.uniform(0, 2 * np.pi)
            kind = int(random.integers(1, len(KINDS) + 1))
            shapes.append(Shape(kind, radius, middle, turn, colour))
    frames = []
    for _ in range(FRAMES):
        image, mask = background.copy(), np.zeros((SIZE, SIZE), dtype=np.uint8)
        for shape in shapes:
            middle = shape.middle + random.uniform(-1, 1, 2)
            area = shape._replace(middle=middle, turn=shape.turn + random.normal(0, 0.1)).area()
            image[area] = shape.colour
            mask[area] = shape.kind
        noise = random.normal(0, 15, image.shape)
        frames.append((np.clip(np.round(image + noise), 0, 255).astype(np.uint8), mask))
    return frames


def main(arguments: Sequence[str] | None = None) -> None:
    command(__doc__, "data/manifest_shapes", fill, arguments)


if __name__ == "__main__":
    main()
