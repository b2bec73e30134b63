"""Datamodules with weak and strong views whose randomness is a function of seed, epoch and position."""

import os

# Without it, importing albumentations asks the network for the newest version.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

from lightning_tuning.data.arrays import ArrayDataModule
from lightning_tuning.data.augmix import AugMix
from lightning_tuning.data.contact_sheet import save_views
from lightning_tuning.data.digits import DigitsDataModule
from lightning_tuning.data.image_datamodule import ImageDataModule
from lightning_tuning.data.label_selection import choose_labeled
from lightning_tuning.data.loader import KeyedLoader
from lightning_tuning.data.pipeline import Deterministic, SeededPipeline, Transform
from lightning_tuning.data.progressive import ImageSizeSchedule
from lightning_tuning.data.sampler import EvalSampler, FixedSampler, KeyedSampler, Keys, Stream
from lightning_tuning.data.splits import stratified_split
from lightning_tuning.data.transform_checks import check_transforms
from lightning_tuning.data.transforms import NAMED_TRANSFORMS, evaluation_transforms, named_transforms

__all__ = [
    "NAMED_TRANSFORMS",
    "ArrayDataModule",
    "AugMix",
    "Deterministic",
    "DigitsDataModule",
    "EvalSampler",
    "FixedSampler",
    "ImageDataModule",
    "ImageSizeSchedule",
    "KeyedLoader",
    "KeyedSampler",
    "Keys",
    "SeededPipeline",
    "Stream",
    "Transform",
    "check_transforms",
    "choose_labeled",
    "evaluation_transforms",
    "named_transforms",
    "save_views",
    "stratified_split",
]
