"""Transforms that do not fit the images are refused at set-up; which of Albumentations' do is found out here anew."""

import inspect
import warnings

import albumentations as A
import numpy as np
import pytest
from albumentations.pytorch import ToTensorV2

from lightning_tuning.data import NAMED_TRANSFORMS, Deterministic, check_transforms, evaluation_transforms
from lightning_tuning.data import named_transforms as named
from lightning_tuning.errors import InvalidValueError

SIZE = 24
ARGUMENTS = {
    "CenterCrop": {"height": SIZE, "width": SIZE},
    "Crop": {"x_max": SIZE, "y_max": SIZE},
    "CropAndPad": {"px": 0},
    "LongestMaxSize": {"max_size": SIZE},
    "Pad": {"padding": 0},
    "PadIfNeeded": {"min_height": SIZE, "min_width": SIZE},
    "RandomCrop": {"height": SIZE, "width": SIZE},
    "RandomResizedCrop": {"size": (SIZE, SIZE)},
    "RandomSizedCrop": {"min_max_height": (8, SIZE), "size": (SIZE, SIZE)},
    "Resize": {"height": SIZE, "width": SIZE},
    "SmallestMaxSize": {"max_size": SIZE},
    "Superpixels": {"n_segments": (2, 2)},  # its defaults take ten times as long as all the others
}


def albumentations_transforms():
    """One of each class of the package that can be made from its defaults and ``ARGUMENTS``."""
    bases = {A.BasicTransform, A.DualTransform, A.ImageOnlyTransform, A.Transform3D}
    for name, kind in sorted(vars(A).items()):
        if inspect.isclass(kind) and issubclass(kind, A.BasicTransform) and kind not in bases:
            try:
                yield name, kind(**ARGUMENTS.get(name, {}), p=1.0)
            except (ValueError, TypeError):  # needs reference images, a volume's size or the like
                continue


def image_of(channels):
    return np.random.default_rng(5).integers(30, 226, (SIZE, SIZE, channels)).astype(np.uint8)


def trial(transform, channels):
    """What a transform does to uint8 images by Albumentations' own means: a verdict, and whether it does anything."""
    image, changes = image_of(channels), False
    for seed in range(6):
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                transform.set_random_seed(seed)
                result = transform(image=image.copy())["image"]
            except Exception:
                return "fails", True
        if not isinstance(result, np.ndarray) or result.dtype != np.uint8:
            return "type", True
        if result.shape != image.shape:
            return "size", True
        changes = changes or not np.array_equal(result, image)
    return ("warns" if warned else "fine"), changes


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    TRANSFORMS = dict(albumentations_transforms())


@pytest.mark.parametrize("channels", [1, 3])
def test_all_of_albumentations(channels):
    """The verdict of the check is that of a trial of each transform, and names it."""
    refused = set()
    for name, transform in TRANSFORMS.items():
        verdict, changes = trial(transform, channels)
        colored_verdict, changes_color = trial(transform, 3)
        rgb_only = channels == 1 and (
            (verdict == "warns" and colored_verdict == "fine") or (changes_color and not changes)
        )
        if verdict in ("fails", "type", "size") or rgb_only:
            refused.add(name)
            with pytest.raises(InvalidValueError, match=f"{type(transform).__name__} |cannot be applied") as error:
                check_transforms([transform], channels, SIZE)
            if verdict == "fails" and colored_verdict in ("fine", "warns"):
                assert "Leave it out: it is for images of 3 channels." in str(error.value)
        else:
            check_transforms([transform], channels, SIZE)
    some = {"Normalize", "ToFloat", "RandomScale"} | (
        {"ToSepia", "ChannelDropout", "RandomFog"} if channels == 1 else set()
    )
    assert some <= refused
    assert len(TRANSFORMS) - len(refused) > 60


@pytest.mark.parametrize(("channels", "flip"), [(1, False), (3, True)])
@pytest.mark.parametrize("name", [*NAMED_TRANSFORMS, "weak + randaugment(3, 30)", "resized_crop + augmix(10)"])
def test_named_lists_pass(name, channels, flip):
    masks = "augmix" not in name
    check_transforms(named(name, 20, channels, flip), channels, 20, masks=masks)
    if "resized_crop" in name:
        check_transforms(named(name, 20, channels, flip), channels, 20, source_size=(31, 47), masks=masks)


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
def test_evaluation_lists_pass(resize):
    for size in ((20, 33), (61, 47), (10, 12)):
        check_transforms(evaluation_transforms(20, resize), 3, 20, source_size=size, masks=True)


WRITES = Deterministic(lambda image: np.add(image, 1, out=image))
GLOBAL = Deterministic(lambda image: (image + np.random.default_rng().integers(0, 100, image.shape)).astype(np.uint8))
FAILS = Deterministic(lambda image: image[:, :, 2:])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("transforms", "channels", "message"),
    [
        (
            [A.Normalize(p=0.1)],
            1,
            "Normalize turns uint8 images into float32. Leave it out: images are normalised after",
        ),
        ([A.ToFloat(p=0.1)], 3, "ToFloat turns uint8 images into float32. Leave it out"),
        ([ToTensorV2()], 3, "ToTensorV2 gives no NumPy array but a Tensor. Leave it out: tensors are made after"),
        (
            [A.OneOf([A.NoOp(), A.RandomFog(p=0.01)], p=0.1)],
            1,
            "RandomFog fails on images of .24, 24, 1.: .*3 channels",
        ),
        ([A.Compose([A.ToSepia(p=0.1)], p=0.1)], 1, "ToSepia has no effect on images of 1 channel. Leave it out"),
        ([A.HueSaturationValue(p=0.1)], 1, "HueSaturationValue warns about images of 1 channel: .*gr.yscale"),
        ([A.ToRGB()], 1, r"ToRGB turns images of \[24, 24, 1\] into \[24, 24, 3\]"),
        ([A.RandomCrop(16, 16)], 1, r"turn images of \[24, 24, 1\] into \[16, 16, 1\].*RandomCrop is the last.* to 24"),
        ([A.RandomCrop(32, 32)], 1, "RandomCrop fails on images of"),
        ([A.Sequential([A.Pad(4), A.RandomCrop(30, 30)]), A.NoOp()], 3, "RandomCrop is the last that changes the size"),
        ([A.Sharpen(method="gaussian")], 1, "Sharpen turns images of .24, 24, 1. into .24, 24, 24."),
        ([A.Equalize()], 4, "Equalize fails on images of .24, 24, 4.: .*it is for images of 3 channels"),
        ([WRITES], 3, "Deterministic writes into the image that it is given"),
        ([GLOBAL], 3, "Deterministic gives two results with the same random numbers"),
        ([FAILS], 3, r"Deterministic turns images of \[24, 24, 3\] into \[24, 24, 1\]"),
        ([np.flipud], 3, "The transform flipud cannot be used"),
    ],
)
def test_refused(transforms, channels, message):
    with pytest.raises(InvalidValueError, match=message):
        check_transforms(transforms, channels, SIZE, argument="strong_transforms")


def test_the_argument_is_named():
    with pytest.raises(InvalidValueError, match=r"^strong_transforms: Normalize"):
        check_transforms([A.Normalize()], 3, SIZE, argument="strong_transforms")


def test_two_channels():
    check_transforms([A.RandomBrightnessContrast(), A.RandomCrop(SIZE, SIZE)], 2, SIZE)


class Loses(Deterministic):
    def __call__(self, *, image, mask=None):
        return {"image": image}


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (A.Rotate(mask_interpolation=1), "Rotate interpolates between class ids. Give it mask_interpolation=0"),
        (Loses(np.flipud), "Loses makes of a mask uint8 .24, 24. NoneType, where the image is .24, 24."),
        (Deterministic(np.flipud, lambda mask: mask[1:]), "Deterministic makes of a mask .* uint8 .23, 24., where"),
        (named("augmix", SIZE)[0], "AugMix fails on images of .*no mask fits the sum"),
    ],
)
def test_refused_with_masks_alone(transform, message):
    check_transforms([transform], 1, SIZE)
    with pytest.raises(InvalidValueError, match=message):
        check_transforms([transform], 1, SIZE, masks=True)


def test_transforms_that_need_the_mask_get_it():
    with pytest.raises(InvalidValueError, match="MaskDropout fails"):
        check_transforms([A.MaskDropout()], 1, SIZE)
    check_transforms([A.MaskDropout()], 1, SIZE, masks=True)


def test_a_size_that_depends_on_chance_is_refused():
    with pytest.raises(InvalidValueError, match="RandomScale is the last that changes the size"):
        check_transforms([A.RandomScale(p=1.0)], 1, SIZE)
