import cv2
import numpy as np
import pytest
from PIL import Image

from lightning_tuning.data.audit import audit_samples, save_sheet, set_up
from lightning_tuning.data.audit.sheet import choose_rows
from tests.data.audit.fakes import Given, Samples, noise, photographs


def audited(datamodule):
    set_up(datamodule)
    return audit_samples(datamodule)


def rows_of(datamodule):
    return {row.title: row.indices for row in choose_rows(audited(datamodule))}


def test_what_is_shown():
    rows = rows_of(photographs()[0])
    assert rows["equal, in two parts"] == [3, 17]
    assert rows["equal, with other labels"] == rows["equal, in one part"] == [4, 5]
    assert rows["of one colour"] == [6]
    assert rows["narrow"] == [8]
    assert rows["smallest and largest"] == [6, 8, 0, 3, 19, 21, 22, 23]
    assert rows["class cat"] == [0, 4, 6, 8, 10, 12, 14]
    assert rows["class dog"] == [3, 5, 7, 11, 13, 15]


def test_an_image_of_each_part_stands_beside_the_other():
    rows = rows_of(Given([noise(i) for i in (0, 0, 0, 1, 0)], [0] * 5, "tttvs"))
    assert rows["equal, in two parts"] == [0, 4]


def test_few_images_are_not_both_smallest_and_largest():
    rows = rows_of(Given([noise(i, 8 + i) for i in range(5)], [0] * 5, "ttttt"))
    assert rows["smallest and largest"] == [0, 1, 2, 3, 4]


def test_many_classes_have_one_image_each():
    names = [str(k) for k in range(12)]
    rows = rows_of(Given([noise(i) for i in range(24)], np.arange(24) % 12, "t" * 24, names=names))
    assert rows == {"one of each class": [*range(8)], "": [8, 9, 10, 11]}


def test_labels_and_values_that_are_no_classes():
    images = [noise(i) for i in range(4)]
    rows = rows_of(Given(images, np.array([[0, 1], [1, 1], [0, 0], [1, 0]], np.float32), "tttv", "multilabel"))
    assert rows == {"class cat": [1], "class dog": [0, 1]}
    rows = rows_of(Given(images, np.array([[3.0], [-1], [2], [9]]), "tttv", "regression", ["price"]))
    assert rows == {"from the lowest to the highest value": [1, 2, 0]}


@pytest.mark.parametrize(
    "samples", [["a", "b"], [np.zeros(2), np.ones(2)], Samples("ab", {0: OSError(), 1: OSError()})]
)
def test_nothing_is_drawn_of_vectors_and_texts(tmp_path, samples):
    datamodule = Given(samples, [0, 1], "tt")
    assert save_sheet(audited(datamodule), datamodule.samples, tmp_path / "sheet.png") is False
    assert list(tmp_path.iterdir()) == []


COLOURS = np.array([(250, 10, 10), (10, 250, 10), (10, 10, 250), (250, 250, 10), (10, 250, 250)], np.uint8)


def squares(path):
    """The colours of the picture, with how much of it they cover, that are of COLOURS, in the order of reading."""
    sheet = np.asarray(Image.open(path).convert("RGB"))
    found = []
    for number, colour in enumerate(COLOURS):
        is_it = (sheet == colour).all(-1).astype(np.uint8)
        _, _, boxes, _ = cv2.connectedComponentsWithStats(is_it)
        found += [(round(y / 50), int(x), number, int(w), int(h)) for x, y, w, h, area in boxes[1:] if area > 500]
    return [(number, width, height) for _, _, number, width, height in sorted(found)]


def test_the_images_are_where_they_belong_and_keep_their_shape(tmp_path):
    """Pairs, then the classes; the third is wide."""
    images = [np.tile(colour, (8, 8, 1)) for colour in COLOURS]
    images[2] = np.tile(COLOURS[2], (4, 8, 1))
    images.append(images[1].copy())
    datamodule = Given(images, [0, 0, 0, 1, 1, 0], "tttttv")
    assert save_sheet(audited(datamodule), datamodule.samples, tmp_path / "sheet.png")
    found = squares(tmp_path / "sheet.png")
    numbers = [number for number, _, _ in found]
    two_parts, one_colour, sizes, cats, dogs = [1, 1], [0, 1, 2, 3, 4, 1], [2, 0, 1, 3, 4, 1], [0, 1, 2], [3, 4]
    assert sorted(numbers) == sorted(two_parts + one_colour + sizes + cats + dogs)
    assert numbers[:2] == two_parts
    assert numbers[-2:] == dogs
    assert all(abs(width - (2 if number == 2 else 1) * height) < 4 for number, width, height in found)


def test_masks_are_laid_over_their_images(tmp_path):
    image = np.full((8, 8, 1), 100, np.uint8)
    image[0, 0] = 101
    mask = np.zeros((8, 8), np.int64)
    mask[:, 4:] = 255
    datamodule = Given([(image, mask)], [0], "t", "segmentation")
    save_sheet(audited(datamodule), datamodule.samples, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).astype(int)
    grey = (np.abs(sheet - 100) < 3).all(-1)
    coloured = (sheet.max(-1) - sheet.min(-1) > 60) & (sheet[..., 0] > 150)
    assert grey.sum() > 3000
    assert abs(coloured.sum() / grey.sum() - 1) < 0.1
    assert np.nonzero(coloured)[1].mean() < np.nonzero(grey)[1].mean()


def test_names_are_no_formulas(tmp_path):
    datamodule = Given([noise(0), noise(1)], [0, 1], "tt", names=("$\\frac$", "猫"))
    set_up(datamodule)
    datamodule.keys = ["$_.png", "caf\udce9.png"]
    assert save_sheet(audit_samples(datamodule), datamodule.samples, tmp_path / "sheet.png")
