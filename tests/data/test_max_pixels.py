"""The largest image that is decoded, as an argument of every datamodule of encoded images."""

import sys

import pytest

from lightning_tuning import (
    HuggingFaceDataModule,
    ImageFolderDataModule,
    ImageTableDataModule,
    WebDatasetDataModule,
)
from lightning_tuning.data import BadSampleError
from lightning_tuning.data.decode import MAX_PIXELS
from lightning_tuning.errors import InvalidValueError

from .image_files import GREY, RGB, png
from .tars import tar_bytes
from .test_hugging_face import Library, table

PNG, PIXELS = png(RGB, 2), 16 * 24
SETTINGS = {"image_size": 8, "val_size": 0, "test_size": 0, "num_workers": 0, "mean": [0.0] * 3, "std": [1.0] * 3}


@pytest.fixture
def makers(tmp_path, monkeypatch):
    """Datamodules of pictures of 16 x 24 pixels, by kind."""
    for name in "ab":
        (tmp_path / "folder" / name).mkdir(parents=True)
        (tmp_path / "folder" / name / "1.png").write_bytes(PNG)
        (tmp_path / f"{name}.png").write_bytes(PNG)
        (tmp_path / f"{name}-mask.png").write_bytes(png(GREY // 255, 0))
    (tmp_path / "t.csv").write_text("image,label,mask\na.png,x,a-mask.png\nb.png,y,b-mask.png\n")
    (tmp_path / "t.tar").write_bytes(tar_bytes([("1.png", PNG), ("1.cls", b"0"), ("2.png", PNG), ("2.cls", b"1")]))
    library = Library()
    library.held["pets"] = {"train": table(range(3), image=[{"bytes": PNG, "path": None}] * 3)}
    monkeypatch.setitem(sys.modules, "datasets", library)
    return {
        "folder": lambda **given: ImageFolderDataModule(str(tmp_path / "folder"), **given),
        "table": lambda **given: ImageTableDataModule(str(tmp_path / "t.csv"), **given),
        "mask": lambda **given: ImageTableDataModule(
            str(tmp_path / "t.csv"), mask="mask", classes=["one", "two"], **given
        ),
        "tar": lambda **given: WebDatasetDataModule(str(tmp_path / "t.tar"), **given),
        "library": lambda **given: HuggingFaceDataModule("pets", **given),
    }


@pytest.mark.parametrize("kind", ["folder", "table", "mask", "tar", "library"])
@pytest.mark.parametrize("cache", [None, "ram"])
def test_it_is_the_limit_of_every_source(makers, kind, cache):
    data = makers[kind](max_pixels=PIXELS, cache=cache, **SETTINGS)
    data.setup()
    sample = data.samples[0]
    assert (sample[0] if kind == "mask" else sample).shape == (16, 24, 3)
    data = makers[kind](max_pixels=PIXELS - 1, cache=cache, **SETTINGS)
    data.setup()
    with pytest.raises(BadSampleError, match="it has 24 x 16 pixels, more than max_pixels = 383"):
        data.samples[0]


def test_its_default_and_its_range(makers):
    assert makers["folder"]().max_pixels == MAX_PIXELS == 64_000_000
    with pytest.raises(InvalidValueError, match="max_pixels is 0; it must be an integer of at least 1"):
        makers["folder"](max_pixels=0)


def test_statistics_are_of_the_images_that_are_allowed(makers, tmp_path):
    """Those of a run that left images out are not taken from where they are kept."""
    (tmp_path / "folder" / "a" / "2.png").write_bytes(png(255 - RGB[:8], 2))
    settings = {name: value for name, value in SETTINGS.items() if name not in ("mean", "std")}
    few, all_ = (makers["folder"](max_pixels=limit, on_bad_sample="skip", **settings) for limit in (200, PIXELS))
    few.setup()
    all_.setup()
    assert few.normalize.mean != all_.normalize.mean
