"""Every argument can be given on the command line and in YAML."""

from pathlib import Path

import albumentations as A
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser

from lightning_tuning.cli.tuning_cli import main
from lightning_tuning.data import DigitsDataModule

# Its new name does not exist in the oldest release that is supported.
pytestmark = pytest.mark.filterwarnings("ignore:(.|\\n)*instantiate_classes")


@pytest.fixture
def parser():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(DigitsDataModule, "data")
    return parser


def test_defaults(parser):
    data = parser.instantiate_classes(parser.parse_args([])).data
    assert (data.num_labels, data.batch_size, data.unlabeled_batch_size, data.image_size) == (None, 32, 0, 16)
    assert (data.augment, data.steps_per_epoch, data.val_size, data.test_size) == ("weak", None, 180, 360)
    assert (data.seed, data.split_seed, data.num_workers, data.eval_batch_size) == (None, 0, None, 256)
    assert data.unlabeled_views == "weak strong"


def test_arguments(parser):
    arguments = {
        "num_labels": 40,
        "batch_size": 8,
        "unlabeled_batch_size": 56,
        "image_size": 20,
        "augment": "strong",
        "steps_per_epoch": 9,
        "val_size": 100,
        "test_size": 200,
        "seed": 3,
        "split_seed": 4,
        "num_workers": 1,
        "eval_batch_size": 50,
        "unlabeled_views": "weak weak_2 strong_8",
    }
    data = parser.instantiate_classes(parser.parse_args([f"--data.{k}={v}" for k, v in arguments.items()])).data
    assert {name: getattr(data, name) for name in arguments} == arguments
    with pytest.raises(ArgumentError, match="number_of_labels"):
        parser.parse_args(["--data.number_of_labels=40"])


def test_transforms_in_yaml(parser, tmp_path):
    (tmp_path / "config.yaml").write_text("""
data:
  num_labels: 40
  weak_transforms:
    - class_path: albumentations.HorizontalFlip
      init_args: {p: 1.0}
  strong_transforms:
    - class_path: albumentations.OneOf
      init_args:
        transforms:
          - class_path: albumentations.InvertImg
            init_args: {p: 1.0}
        p: 1.0
    - class_path: albumentations.Affine
      init_args: {rotate: [-30, 30], p: 0.0}
""")
    data = parser.instantiate_classes(parser.parse_args([f"--config={tmp_path / 'config.yaml'}"])).data
    data.setup()
    image = data.images[0]
    np.testing.assert_array_equal(data.pipelines["weak"](image, 0), image[:, ::-1])
    np.testing.assert_array_equal(data.pipelines["strong"](image, 0), 255 - image)
    assert isinstance(data.pipelines["strong"].transforms[1], A.Affine)


def test_help_describes_every_argument(parser):
    text = parser.format_help()
    words = " ".join(text.split())
    arguments = [line for line in text.splitlines() if line.strip().startswith("--data.")]
    assert len(arguments) >= 14
    assert "How many training samples keep their label" in text
    assert "Labelled samples for each step and rank" in text
    assert "or a list of Albumentations transforms, in place of the 'weak' ones" in words


TRANSFORMS = """
model: {class_path: ImageClassifier, init_args: {network: mlp}}
data:
  class_path: DigitsDataModule
  init_args:
    num_labels: 40
    weak_transforms:
    - {class_path: albumentations.HorizontalFlip, init_args: {p: 0.5}}
    - {class_path: albumentations.Affine, init_args: {rotate: [-5, 5], p: 1.0}}
trainer: {max_epochs: 1, limit_val_batches: 1, accelerator: cpu, enable_progress_bar: false}
run: {test: false}
"""


def test_transforms_in_a_run_are_no_noise_and_are_saved(tmp_path, monkeypatch, recwarn):
    """Their default values are tuples, which YAML writes as lists; Albumentations takes both."""
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(TRANSFORMS)
    assert main(["fit", "--config=config.yaml", "--run.name=first"]) == 0
    (saved,) = tmp_path.glob("runs/first/*/config.yaml")
    assert main(["fit", f"--config={saved}", "--run.name=second"]) == 0
    (again,) = tmp_path.glob("runs/second/*/checkpoints/last.ckpt")
    files = (saved.parent / "checkpoints" / "last.ckpt", again)
    first, second = (torch.load(file, weights_only=True)["state_dict"] for file in files)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [str(w.message) for w in recwarn if "round-trip" in str(w.message)] == []
