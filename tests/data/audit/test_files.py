"""Folders and tables of image files with what goes wrong in them."""

import sys
from unittest.mock import ANY

import numpy as np
import pytest

from lightning_tuning.data import (
    HuggingFaceDataModule,
    ImageFolderDataModule,
    ImageTableDataModule,
    WebDatasetDataModule,
)
from lightning_tuning.data.audit import audit_samples, collect, save_sheet, set_up
from lightning_tuning.data.audit.look import look_at
from tests.data.audit.fakes import noise
from tests.data.image_files import jpeg, png
from tests.data.tars import tar_bytes
from tests.data.test_hugging_face import Library, table

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


@pytest.mark.parametrize("num_workers", [0, 2])
def test_processes_find_the_same(folder, num_workers, monkeypatch):
    """In the order of the samples, each read once."""
    data = ImageFolderDataModule(str(folder), num_workers=num_workers)
    read = []
    monkeypatch.setattr(collect, "look_at", lambda *args: read.append(1) or look_at(*args))
    audit, found = audited(data)
    assert bool(read) == (num_workers == 0)
    alone, expected = audited(ImageFolderDataModule(str(folder), num_workers=0))
    assert found == expected
    assert audit.sizes.tolist() == alone.sizes.tolist()
    assert [20, 30] in audit.sizes.tolist()
    assert found["train/cats/cut.jpg"][0][0] == "unreadable"
    assert found["unlabeled/white.png"] == [("one_colour", ANY)]


def test_processes_by_itself(folder, monkeypatch):
    """For many images in files alone; a few, or what lies in memory, are read faster than processes start."""
    data = ImageFolderDataModule(str(folder))
    monkeypatch.setattr("lightning_tuning.data.workers._cores", lambda: 4)
    set_up(data)
    assert collect.processes(data) == 0
    monkeypatch.setattr(collect, "FEW", 10)
    assert collect.processes(data) == 3
    data.in_memory = True
    assert collect.processes(data) == 0
    data.num_workers = 2
    assert collect.processes(data) == 2


def test_tar_files(tmp_path):
    """Bad members are found, each by its key."""
    images = [png(noise(number, 9, 9), 2) for number in range(12)]
    images[4], images[7], images[9] = images[4][:60], images[3], HTML
    members = [
        (f"{n:02d}.{end}", data) for n in range(12) for end, data in (("png", images[n]), ("cls", b"01"[n % 2 :][:1]))
    ]
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    data = WebDatasetDataModule(str(tmp_path / "a.tar"), val_size=0, test_size=0)
    audit, found = audited(data)
    assert {key: {kind for kind, _ in faults} for key, faults in found.items()} == {
        "a.tar/04.png": {"unreadable"},
        "a.tar/09.png": {"unreadable"},
        "a.tar/03.png": {"copy"},
        "a.tar/07.png": {"copy"},
    }
    save_sheet(audit, data.samples, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_datasets_of_hugging_face(monkeypatch):
    library = Library()
    monkeypatch.setitem(sys.modules, "datasets", library)
    stored = [{"bytes": png(noise(n, 9, 9), 2), "path": None} for n in range(9)]
    stored[2], stored[5] = None, {"bytes": HTML, "path": None}
    library.held["pets"] = {
        "train": table(range(9), image=stored),
        "test": table([21, 24, 25], image=stored[:1] + stored[6:8]),
    }
    _, found = audited(HuggingFaceDataModule("pets", test_split="test", val_size=0))
    assert {key: {kind for kind, _ in faults} for key, faults in found.items()} == {
        "train/2": {"unreadable"},
        "train/5": {"unreadable"},
        **{key: {"leak"} for key in ("train/0", "train/6", "train/7", "test/0", "test/1", "test/2")},
    }
