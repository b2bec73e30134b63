"""Folders and tables of image files with what goes wrong in them."""

import numpy as np
import pytest

from lightning_tuning.data import ImageFolderDataModule, ImageTableDataModule
from lightning_tuning.data.audit import audit_samples, save_sheet, set_up
from tests.data.audit.fakes import noise
from tests.data.image_files import jpeg, png

HTML = b"<!DOCTYPE html><html><body>404</body></html>"


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@pytest.fixture
def folder(tmp_path):
    """Cats and dogs in given parts, some broken, one of them in two parts in two formats."""
    root = tmp_path / "photos"
    for number in range(12):
        part, kind = ("train", "train", "test")[number % 3], ("cats", "dogs")[number // 3 % 2]
        put(root / part / kind / f"{number}.png", png(noise(number, 20, 30), 2))
    put(root / "train/cats/cut.jpg", jpeg()[:200])
    put(root / "train/dogs/empty.png", b"")
    put(root / "test/dogs/page.jpg", HTML)
    put(root / "test/cats/again.ppm", b"P6 30 20 255\n" + noise(0, 20, 30).tobytes())
    put(root / "unlabeled/white.png", png(np.full((9, 9), 255, np.uint8), 0))
    put(root / "unlabeled/as_a_dog.png", png(noise(3, 20, 30), 2))
    return root


def audited(datamodule):
    set_up(datamodule)
    audit = audit_samples(datamodule)
    found = {
        audit.keys[index]: [(fault.kind, fault.reason) for fault in faults] for index, faults in audit.faults.items()
    }
    return audit, found


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_a_folder_of_images(folder, policy, tmp_path):
    datamodule = ImageFolderDataModule(str(folder), on_bad_sample=policy, image_size=16)
    audit, found = audited(datamodule)
    assert {key: [kind for kind, _ in faults] for key, faults in found.items()} == {
        "train/cats/cut.jpg": ["unreadable"],
        "train/dogs/empty.png": ["unreadable"],
        "test/dogs/page.jpg": ["unreadable"],
        "test/cats/again.ppm": ["leak"],
        "train/cats/0.png": ["leak"],
        "unlabeled/white.png": ["one_colour"],
        "unlabeled/as_a_dog.png": ["copy"],
        "train/dogs/3.png": ["copy"],
    }
    assert found["train/dogs/empty.png"][0][1].startswith("it is empty. ")
    assert found["train/cats/0.png"][0][1] == "it is also in another part: test/cats/again.ppm"
    assert save_sheet(audit, datamodule.samples, tmp_path / "sheet.png")


def test_a_table_with_masks_and_missing_files(tmp_path):
    lines = ["image,mask"]
    for number in range(20):
        put(tmp_path / f"{number}.png", png(noise(number, 16, 16), 2))
        mask = np.zeros((16, 16), np.uint8)
        mask[:, :4] = 255
        mask[0, 15] = number % 10 == 3
        put(tmp_path / f"mask_{number}.png", png(mask, 0))
        lines.append(f"{number}.png,mask_{number}.png")
    put(tmp_path / "mask_4.png", png(np.full((16, 16), 9, np.uint8), 0))
    (tmp_path / "6.png").unlink()
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    datamodule = ImageTableDataModule(
        str(tmp_path / "table.csv"), mask="mask", classes=["ground", "dot"], image_size=16, val_size=0, test_size=0
    )
    audit, found = audited(datamodule)
    assert {key: [kind for kind, _ in faults] for key, faults in found.items()} == {
        "4.png": ["unreadable"],
        "6.png": ["unreadable"],
    }
    assert found["4.png"][0][1].startswith(f"{tmp_path / 'mask_4.png'}: it holds the class ids 9, but")
    assert audit.counts()[0].tolist() == [18 * 12 * 16 - 2, 2]
    assert save_sheet(audit, datamodule.samples, tmp_path / "sheet.png")
