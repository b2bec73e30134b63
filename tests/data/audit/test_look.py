import numpy as np
import pytest
import torch

from lightning_tuning.data.audit.look import digest, look_at
from tests.data.audit.fakes import noise


def kinds(sample, num_classes=3):
    return [fault.kind for fault in look_at(sample, num_classes).faults]


def test_size_of_an_image():
    assert look_at(noise(0, 5, 9), 2).size == (5, 9)
    assert look_at(np.zeros(4, np.float32), 2).size == look_at("text", 2).size == (0, 0)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_of_one_colour(channels):
    image = np.full((6, 7, channels), np.arange(40, 40 + channels), np.uint8)
    assert kinds(image) == ["one_colour"]
    image[5, 6, channels - 1] += 1
    assert kinds(image) == []


def test_channels_that_are_each_of_one_value_are_one_colour_and_one_channel_is_not_enough():
    image = noise(0)
    image[..., 0] = 9
    assert kinds(image) == []


@pytest.mark.parametrize(("height", "width", "narrow"), [(8, 32, False), (8, 33, True), (33, 8, True), (32, 8, False)])
def test_narrow(height, width, narrow):
    assert kinds(noise(0, height, width)) == ["narrow"] * narrow


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite(value):
    vector = np.ones(5, np.float32)
    assert kinds(vector) == []
    vector[[1, 4]] = value
    (fault,) = look_at(vector, 2).faults
    assert fault == ("not_finite", "2 of its 5 numbers are NaN or infinite")


@pytest.mark.parametrize(("text", "empty"), [("", True), (" \t\n\u3000", True), ("a", False), (" . ", False)])
def test_empty_texts(text, empty):
    assert kinds(text) == ["empty"] * empty


def test_class_ids_of_a_mask():
    mask = np.array([[0, 0, 2], [255, 2, 2]])
    look = look_at((noise(0, 2, 3), mask), 3)
    assert look.pixels.tolist() == [2, 0, 3]
    assert look.faults == []
    mask[0, :2] = 3, -1
    look = look_at((noise(0, 2, 3), mask), 3)
    assert look.pixels.tolist() == [0, 0, 3]
    assert look.faults == [("mask", "its mask holds -1, 3; class ids are 0 to 2, and 255")]


def test_255_is_a_class_where_there_are_so_many():
    assert look_at((noise(0, 1, 2), np.array([[255, 3]])), 256).pixels[[3, 255]].tolist() == [1, 1]


def test_many_class_ids_out_of_range_are_not_all_named():
    mask = np.arange(100, 108).reshape(2, 4)
    (fault,) = look_at((noise(0, 2, 4), mask), 3).faults
    assert fault.reason == "its mask holds 100, 101, 102, 103, 104, ...; class ids are 0 to 2, and 255"


def test_a_mask_of_another_size():
    (fault,) = look_at((noise(0, 4, 6), np.zeros((6, 4), np.int64)), 2).faults
    assert fault == ("mask", "its mask is 4 x 6 pixels, the image 6 x 4")


def test_the_hash_is_of_pixels_shape_and_type():
    image = noise(0, 4, 6)
    different = [
        image,
        image.reshape(6, 4, 3),
        image.view(np.int8),
        image[::-1],
        image + np.uint8(1),
        "text",
        "Text",
        ["te", "xt"],
        {"a": 1},
        {"a": 2},
        torch.zeros(3),
        None,
    ]
    hashes = [digest(each) for each in different]
    assert len(set(hashes)) == len(different)
    assert {len(each) for each in hashes} == {16}
    assert digest(np.asfortranarray(image)) == digest(image.copy()) == hashes[0]
    assert digest({"b": 1, "a": torch.ones(2)}) == digest({"a": np.ones(2, np.float32), "b": 1})


def test_a_mask_is_hashed_apart_from_its_image():
    image, masks = noise(0), [np.zeros((8, 8), np.int64), np.ones((8, 8), np.int64)]
    first, second = (look_at((image, mask), 2) for mask in masks)
    assert first.content == second.content == look_at(image, 2).content
    assert first.mask != second.mask
