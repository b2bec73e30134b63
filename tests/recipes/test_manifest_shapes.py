"""The recipe's table tells what its masks show, and its configurations train on it."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from PIL import Image

from lightning_tuning import ImageTableDataModule

RECIPE = ROOT / "recipes" / "manifest_shapes"
VARIANTS = yaml.safe_load((RECIPE / "variants.yaml").read_text())


@pytest.fixture(scope="module")
def folder(built):
    return built("manifest_shapes")


@pytest.fixture
def segmenter(folder):
    from recipes.manifest_shapes import segmenter

    return segmenter


def test_the_table_tells_what_the_masks_show(folder):
    root = folder / "data" / "manifest_shapes"
    with (root / "shapes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))

    assert len(rows) == 3 * 160
    counts = np.zeros(4)
    for row in rows:
        mask, image = (np.asarray(Image.open(root / row[name])) for name in ("mask", "image"))
        assert (mask.shape, image.shape) == ((32, 32), (32, 32, 3))
        assert [row[name] for name in ("circle", "square", "triangle")] == [str(int(k in mask)) for k in (1, 2, 3)]
        assert float(row["share"]) == pytest.approx((mask != 0).mean(), abs=1e-4)
        counts += np.bincount(mask.ravel(), minlength=4)
    assert (counts / counts.sum() > 0.02).all()
    assert len({(row["scene"], row["part"]) for row in rows}) == 160


def test_frames_of_a_scene_resemble_each_other_and_stay_together(folder):
    given = yaml.safe_load((RECIPE / "config.yaml").read_text())["data"]["init_args"]
    data = ImageTableDataModule(**{**given, "path": str(folder / given["path"])}, seed=0)
    data.setup()

    parts = [{data.groups[i] for i in part} for part in (data.train_indices, data.val_indices, data.test_indices)]
    assert [len(part) for part in parts] == [70, 10, 80]
    assert not parts[0] & parts[1]
    masks = np.stack([data.samples[index][1] for index in range(240)]).reshape(80, 3, 32, 32)
    assert (masks[:, 0] == masks[:, 1]).mean() > 0.95 > (masks[:-1, 0] == masks[1:, 0]).mean()


def test_the_metric_is_the_mean_iou_of_pixels_that_have_a_class(segmenter):
    torch.manual_seed(0)
    model = segmenter.Segmenter(width=2)
    mask = torch.randint(0, 4, (2, 8, 8))
    mask[0, :3] = 255
    x, target = model.unpack_batch((torch.randn(2, 3, 8, 8), mask))
    logits = torch.randn(2, 4, 8, 8)
    model.val_iou.update(logits, target)

    there, predicted = mask != 255, logits.argmax(1)
    ious = [
        float(((predicted == k) & (mask == k)).sum() / (((predicted == k) | (mask == k)) & there).sum())
        for k in range(4)
    ]
    assert float(model.val_iou.compute()) == pytest.approx(np.mean(ious))
    log_p = logits.double().log_softmax(1).movedim(1, -1)[there]
    expected = -log_p[torch.arange(len(log_p)), mask[there]].mean()
    assert model.compute_loss(logits, target).item() == pytest.approx(expected.item(), rel=1e-5)
    assert model(x).shape == (2, 4, 8, 8)


def test_a_run_is_tested_and_drawn(folder, fit):
    metrics, run = fit(folder, "manifest_shapes", "--data.test_size=60")

    assert 0 <= metrics["test/iou"] <= 1
    width, height = Image.open(run / "predictions.png").size
    assert width > 2 * height > 600


@pytest.fixture(scope="module")
def loss(folder, fit):
    """The test loss of a small run with some settings."""
    small = ["--model.width=2", "--data.val_size=3", "--data.test_size=6"]
    return lambda *settings: fit(folder, "manifest_shapes", *small, *settings)[0]["test/loss"]


@pytest.fixture(scope="module")
def bare(loss):
    return loss()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "SAM" else pytest.mark.slow) for name in VARIANTS]
)
def test_each_variant_changes_the_run(loss, bare, name):
    assert loss(*(f"--{key}={value}" for key, value in VARIANTS[name].items())) != bare


@pytest.mark.parametrize(
    ("configs", "metric"), [(["labels.yaml"], "test/map"), (["labels.yaml", "share.yaml"], "test/rmse")]
)
def test_the_same_table_gives_labels_and_values(folder, fit, configs, metric):
    assert fit(folder, "manifest_shapes", configs=configs)[0][metric] > 0
