"""Image sizes over a run."""

import pytest

from lightning_tuning.data import ImageSizeSchedule
from lightning_tuning.errors import InvalidValueError
from lightning_tuning.timing.moments import PlainClock


@pytest.mark.parametrize(
    ("text", "sizes", "length"),
    [
        ("128 -> 224 over 60%", (128, 160, 192, 224), "0.6dur"),
        ("224->128 over 20ep", (224, 192, 160, 128), "20ep"),
        (" 16 -> 28  over 500 steps by 4 ", (16, 20, 24, 28), "500st"),
        ("32 -> 64 over 1e6smp", (32, 64), "1e+06smp"),
        ("8 -> 32 over 5 epochs by 12", (8, 20, 32), "5ep"),
    ],
)
def test_text(text, sizes, length):
    schedule = ImageSizeSchedule(text)
    assert schedule.sizes == sizes
    assert str(schedule.length) == length


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("128", "write a first and a last size"),
        ("128 -> 224", "write a first and a last size"),
        (128, "image_size is 128; write"),
        ("128 -> 224 over 60", "the time in image_size is '60'; write a number and its unit"),
        ("128 -> 224 over 0ep", "a number above 0 and its unit"),
        ("128 -> 224 over 200%", "the whole run is"),
        ("128 -> 128 over 60%", "they must differ"),
        ("0 -> 128 over 60%", "at least 4"),
        ("16 -> 28 over 60%", "steps of 32 pixels do not lead from 16 to 28.*'16 -> 28 over 60% by 4'"),
        ("28 -> 16 over 60% by 0", "steps of 0 pixels.* by 4'"),
    ],
)
def test_refused(text, message):
    with pytest.raises(InvalidValueError, match=message):
        ImageSizeSchedule(text)


def test_the_suggested_step_is_allowed():
    for first, last in ((16, 28), (8, 31), (40, 104)):
        with pytest.raises(InvalidValueError) as error:
            ImageSizeSchedule(f"{first} -> {last} over 5ep by 1000")
        assert ImageSizeSchedule(str(error.value).split("'")[-2]).sizes[-1] == last


@pytest.mark.parametrize("text", ["128 -> 224 over 60%", "224 -> 128 over 60%"])
def test_sizes_before_the_last_take_equal_parts(text):
    """Of 3000 points up to the end of the length 1000 have each size but the last, which has all after it."""
    schedule = ImageSizeSchedule(text)
    sizes = [schedule.size(done / 3000) for done in range(4000)]
    assert sizes == [size for size in schedule.sizes for _ in range(1000)]


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        ("6ep", [8, 8, 16, 16, 24, 24, 32, 32, 32, 32]),
        ("60%", [8, 8, 16, 16, 24, 24, 32, 32, 32, 32]),
        ("240st", [8, 8, 16, 16, 24, 24, 32, 32, 32, 32]),
        ("3840smp", [8, 8, 16, 16, 24, 24, 32, 32, 32, 32]),
        ("30%", [8, 16, 24, 32, 32, 32, 32, 32, 32, 32]),
        ("20%", [8, 16, 32, 32, 32, 32, 32, 32, 32, 32]),  # more sizes than epochs: one is left out
        ("1dur", [8, 8, 8, 8, 16, 16, 16, 24, 24, 24]),  # the last size is due at the end
        ("5ep", [8, 8, 16, 16, 24, 32, 32, 32, 32, 32]),
    ],
)
def test_an_epoch_has_the_size_due_at_its_first_step(length, expected):
    """Ten epochs of 40 steps of 16 samples."""
    schedule = ImageSizeSchedule(f"8 -> 32 over {length} by 8")
    clock = PlainClock(total_steps=400, steps_per_epoch=40, samples_per_step=16)
    assert [schedule.size_of_epoch(40 * epoch, clock) for epoch in range(10)] == expected


def test_rounding_does_not_delay_a_change():
    """Every whole number of epochs, as a share of the run and as a number of epochs."""
    for epochs in range(3, 120):
        clock = PlainClock(total_steps=7 * epochs, steps_per_epoch=7)
        for done in range(3, epochs, 3):
            schedule = ImageSizeSchedule(f"8 -> 32 over {done / epochs!r}dur by 8")
            changes = [schedule.size_of_epoch(7 * epoch, clock) for epoch in (done // 3 - 1, done // 3, done - 1, done)]
            assert changes == [8, 16, 24, 32]
