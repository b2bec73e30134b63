"""Images from tar files as a datamodule: parts, targets, groups, workers, mistakes."""

import json
import re

import numpy as np
import pytest
import torch

from lightning_tuning import WebDatasetDataModule
from lightning_tuning.errors import InvalidValueError

from .image_files import png
from .tars import tar_bytes

SIZE = 16
ARGUMENTS = {"image_size": SIZE, "resize": "squash", "mean": [0.0] * 3, "std": [1.0] * 3, "num_workers": 0}


def image(number):
    """One of a single colour, that tells its number."""
    return np.full((SIZE, SIZE, 3), number, dtype=np.uint8)


def samples(numbers, **changes):
    """Members of samples: class ``number % 3``, and more in the json."""
    members = []
    for number in numbers:
        entries = {"kind": ["ant", "bee", "cat"][number % 3], "herd": number // 4, "odd": number % 2, "age": number / 2}
        parts = {"png": png(image(number), 2), "cls": f"{number % 3}\n".encode(), "json": json.dumps(entries).encode()}
        parts |= changes.get("parts", {})
        members += [(f"{number:04d}.{ending}", data) for ending, data in parts.items() if data is not None]
    return members


@pytest.fixture
def write(tmp_path):
    def written(name, members):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(tar_bytes(members))
        return str(path)

    return written


@pytest.fixture
def shards(write):
    """60 samples in three tar files, and 12 others in a fourth."""
    for shard in range(3):
        write(f"train-{shard:03d}.tar", samples(range(20 * shard, 20 * shard + 20)))
    return write("other/test-0.tar", samples(range(60, 72)))


@pytest.fixture
def make(tmp_path, shards):
    def made(path="train-{000..002}.tar", **kwargs):
        datamodule = WebDatasetDataModule(str(tmp_path / path), **{**ARGUMENTS, **kwargs})
        datamodule.setup()
        return datamodule

    return made


def numbers_of(x):
    return (x[:, 0, SIZE // 2, SIZE // 2] * 255).round().long()  # a shift makes the border black


def test_samples_keys_and_parts(make):
    data = make(val_size=12, test_size=12)
    assert data.keys[0] == "train-000.tar/0000.png"
    assert data.keys[59] == "train-002.tar/0059.png"
    assert len(data.keys) == 60
    assert data.class_names == ("0", "1", "2")
    assert data.labels.tolist() == [number % 3 for number in range(60)]
    assert [len(part) for part in (data.train_indices, data.val_indices, data.test_indices)] == [36, 12, 12]
    for loader, indices in ((data.val_dataloader(), data.val_indices), (data.test_dataloader(), data.test_indices)):
        (x, y), *rest = loader
        assert not rest
        assert numbers_of(x).tolist() == indices.tolist()
        assert y.tolist() == (indices % 3).tolist()


def test_parts_with_tar_files_of_their_own(make, shards, tmp_path):
    data = make("train-*.tar", test_path=shards, val_size=10)
    assert data.test_indices.tolist() == [*range(60, 72)]
    assert data.keys[60] == "other/test-0.tar/0060.png"
    assert len(data.val_indices) == 10
    data = make("train-*0.tar", val_path=str(tmp_path / "train-001.tar"), test_path=shards)
    parts = [data.train_indices, data.val_indices, data.test_indices]
    assert [part.tolist() for part in parts] == [[*range(20)], [*range(20, 40)], [*range(40, 52)]]
    (x, _), *_ = data.test_dataloader()
    assert numbers_of(x).tolist() == [*range(60, 72)]


def test_unlabeled_tar_files(make, write, shards, tmp_path):
    for shard in range(2):
        numbers = range(80 + 10 * shard, 90 + 10 * shard)
        write(f"more-{shard}.tar", samples(numbers, parts={"cls": None}))
    more = {"unlabeled_path": str(tmp_path / "more-{0..1}.tar"), "group": "json.herd"}
    data = make(test_path=shards, val_size=12, unlabeled_batch_size=20, batch_size=4, **more)
    assert data.labels[:72].tolist() == [number % 3 for number in [*range(60), *range(60, 72)]]
    assert data.labels[72:].tolist() == [-1] * 20
    assert data.keys[72] == "more-0.tar/0080.png"
    assert data.groups[72] == "20"
    assert data.test_indices.tolist() == [*range(60, 72)]
    assert {*data.train_indices.tolist()} >= {*range(72, 92)}
    seen = set()
    for batch in data.train_dataloader():
        (x, y), unlabeled = batch["labeled"], batch["unlabeled"]
        assert (numbers_of(x) % 3).tolist() == y.tolist()
        assert (numbers_of(x) < 60).all()
        seen |= {*numbers_of(unlabeled["weak"]).tolist()}
    assert seen >= {*range(80, 100)}
    with pytest.raises(InvalidValueError, match=re.escape("unlabeled_path is for task='multiclass', but task is 'reg")):
        make(task="regression", target="json.age", **more)
    with pytest.raises(InvalidValueError, match="is in two of path, val_path, test_path and unlabeled_path"):
        make(unlabeled_path=str(tmp_path / "train-000.tar"))
    write("none.tar", [])
    with pytest.raises(InvalidValueError, match=r"none\.tar holds no sample"):
        make(unlabeled_path=str(tmp_path / "none.tar"))


def test_weights_decide_how_often_a_sample_is_drawn(make, tmp_path, write):
    write("more.tar", samples(range(80, 90), parts={"cls": None}))
    data = make(
        "train-000.tar", unlabeled_path=str(tmp_path / "more.tar"), unlabeled_batch_size=1, weight="json.odd",
        val_size=0, test_size=0, batch_size=10, steps_per_epoch=4,
    )  # fmt: skip
    drawn = torch.cat([numbers_of(batch["labeled"][0]) for batch in data.train_dataloader()])
    assert sorted(drawn.tolist()) == sorted([*range(1, 20, 2)] * 4)
    with pytest.raises(InvalidValueError, match=r"'json\.kind' is 'ant'; it must be a finite number"):
        make(weight="json.kind")


def test_targets_of_the_json(make):
    data = make(target="json.kind", group="json.herd", val_size=12, test_size=12)
    assert data.class_names == ("ant", "bee", "cat")
    assert data.labels[:4].tolist() == [0, 1, 2, 0]
    parts = [{*(part // 4).tolist()} for part in (data.train_indices, data.val_indices, data.test_indices)]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    data = make(target=["json.odd", "json.age"], task="regression", val_size=8, test_size=8)
    _, y = next(iter(data.val_dataloader()))
    assert y.dtype == torch.float32
    assert y.tolist() == [[index % 2, index / 2] for index in data.val_indices]
    data = make(target=["json.odd"], task="multilabel", val_size=8, test_size=8)
    assert data.class_names == ("json.odd",)
    assert data.groups is None


def test_batches_do_not_depend_on_workers(make, digest):
    seen = []
    for workers in (0, 2):
        loader = make(batch_size=8, augment="strong", unlabeled_batch_size=8, num_workers=workers).train_dataloader()
        loader.sampler.set_epoch(3)
        seen.append([digest(batch) for batch in loader])
    assert seen[0] == seen[1]
    assert len({*seen[0]}) == len(seen[0]) > 3


def test_bad_samples_are_named_or_skipped(make, write):
    path = write("bad.tar", [*samples(range(150)), *samples([150], parts={"png": b"<html>"}), *samples([151, 152])])
    with pytest.raises(InvalidValueError, match=re.escape(f"{path}/0150.png: it is no image but text")):
        list(make("bad.tar", val_size=0, test_size=150, split_seed=1).test_dataloader())
    data = make("bad.tar", val_size=0, test_size=150, on_bad_sample="skip", split_seed=1)
    assert 150 in data.test_indices
    seen = torch.cat([numbers_of(x) for x, _ in data.test_dataloader()])
    assert seen.tolist() == [index for index in data.test_indices.tolist() if index != 150]
    assert data.bad_samples.count == 1


def test_statistics_are_kept_until_the_tar_file_changes(make, write, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = make(mean=None, std=None)
    kept = list((tmp_path / "cache").rglob("*.json"))
    assert len(kept) == 1
    assert first.normalize.mean[0] == pytest.approx(first.train_indices.mean() / 255, abs=1e-6)
    make(mean=None, std=None)
    assert list((tmp_path / "cache").rglob("*.json")) == kept
    write("train-001.tar", [*samples(range(20, 40)), ("note", b"x")])
    make(mean=None, std=None)
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 2


def test_a_second_set_up_reads_only_what_has_changed(make, write, monkeypatch):
    data = make()
    labels = data.labels
    with monkeypatch.context() as patch:
        patch.setattr("lightning_tuning.data.web_dataset.read_tars", None)
        data.setup("test")
    assert data.labels.tolist() == labels.tolist()
    write("train-001.tar", samples(range(20, 30)))
    data.setup("test")
    assert len(data.labels) == 50


def test_decoded_images_can_be_cached(make):
    data = make(cache="ram", val_size=0, test_size=12)
    for _ in range(2):
        assert numbers_of(next(iter(data.test_dataloader()))[0]).tolist() == data.test_indices.tolist()
    assert data.samples.report().startswith("cached 12 of 60 images")


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"path": "no.tar"}, "There is no file {here}/no.tar"),
        ({"test_path": "s3://a.tar"}, "path is 's3://a.tar'; only local files are read"),
        (
            {"test_path": "{here}/train-001.tar"},
            "{here}/train-001.tar is in two of path, val_path, test_path and unlabeled_path.",
        ),
        ({"val_path": "{here}/empty.tar"}, "{here}/empty.tar holds no sample, such as 0001.jpg and 0001.cls."),
        ({"target": "label"}, "{here}/train-000.tar: '0000' has no .label, only .png, .cls, .json."),
        ({"image": "jpg"}, "{here}/train-000.tar: '0000' has no image (jpg), only .png, .cls, .json."),
        ({"target": []}, "target is empty"),
        ({"target": ["cls", "json.kind"]}, "target names 2 columns, but with task='multiclass' it must be one."),
        ({"task": "detection"}, "task is 'detection'"),
        ({"path": "cut.tar"}, "{here}/cut.tar is truncated: 0001.cls goes beyond its end."),
    ],
)
def test_mistakes(kwargs, text, make, write, tmp_path):
    write("empty.tar", [("README", b"x")])
    (tmp_path / "cut.tar").write_bytes(tar_bytes(samples([1]))[:2000])
    kwargs = {name: value.format(here=tmp_path) if name.endswith("path") else value for name, value in kwargs.items()}
    with pytest.raises(InvalidValueError, match=re.escape(text.format(here=tmp_path))):
        make(**kwargs)
