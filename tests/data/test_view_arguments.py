"""What is said of augmentations that cannot be meant as they are written."""

import warnings

import albumentations as A
import pytest

from lightning_tuning import DigitsDataModule
from lightning_tuning.errors import InvalidValueError

from .pictures import Watcher, trainer

INVERT = A.InvertImg(p=1.0)


def fit(given, folder):
    """One step."""
    settings = {"val_size": 8, "test_size": 8, "batch_size": 4, "num_workers": 0}
    trainer(folder, max_steps=1, limit_val_batches=0).fit(Watcher(), DigitsDataModule(**settings, **given))


@pytest.mark.parametrize("augment", [None, [INVERT], INVERT, True])
def test_augment_is_a_name(augment):
    with pytest.raises(InvalidValueError) as raised:
        DigitsDataModule(augment=augment)
    assert str(raised.value) == (
        f"augment is {augment!r}; it must be a name, such as 'none' or 'weak'. Write a list of transforms as "
        "weak_transforms, which augment='weak' uses."
    )


@pytest.mark.parametrize("argument", ["weak_transforms", "strong_transforms"])
@pytest.mark.parametrize("given", [INVERT, 3, {"InvertImg": {}}])
def test_transforms_are_a_name_or_a_list(argument, given):
    with pytest.raises(InvalidValueError) as raised:
        DigitsDataModule(**{argument: given})
    assert str(raised.value) == f"{argument} is {given!r}; it must be a name or a list of transforms: write [...]."


def test_a_composition_is_a_list():
    assert len(DigitsDataModule(weak_transforms=A.Compose([INVERT, INVERT]))._transforms["weak"]) == 2


@pytest.mark.parametrize(
    ("given", "unused"),
    [
        ({"strong_transforms": [INVERT]}, "strong"),
        ({"weak_transforms": [INVERT], "augment": "strong"}, "weak"),
        ({"weak_transforms": "none", "augment": "randaugment"}, "weak"),
        ({"strong_transforms": [INVERT], "unlabeled_batch_size": 8, "unlabeled_views": "weak weak_2"}, "strong"),
    ],
)
def test_transforms_that_nothing_uses(given, unused, tmp_path):
    """They would be believed to act."""
    with pytest.warns(UserWarning, match="nothing uses") as told:
        fit(given, tmp_path)
    (message,) = {str(warning.message) for warning in told if "nothing uses" in str(warning.message)}
    assert message == (
        f"{unused}_transforms is given, but nothing uses it: augment is {given.get('augment', 'weak')!r}, and there is "
        f"no unlabelled view {unused!r}. Write augment={unused!r} for the labelled images."
    )


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"weak_transforms": [INVERT]},
        {"strong_transforms": "none", "augment": "strong"},
        {"strong_transforms": [INVERT], "unlabeled_batch_size": 8},
        {"weak_transforms": [], "augment": "none", "unlabeled_batch_size": 8, "unlabeled_views": "weak_2"},
    ],
)
def test_transforms_that_are_used(given, tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*nothing uses")
        fit(given, tmp_path)
