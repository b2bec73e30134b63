"""Datamodules with weak and strong views whose randomness is a function of seed, epoch and position."""

import os

# Without it, importing albumentations asks the network for the newest version.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

from lightning_tuning.data.arrays import ArrayDataModule
from lightning_tuning.data.augmix import AugMix
from lightning_tuning.data.bad_samples import BadSampleError, BadSamples
from lightning_tuning.data.contact_sheet import save_views
from lightning_tuning.data.decode import decode_image, decode_size, image_size, read_image, read_mask
from lightning_tuning.data.device_augment import DeviceAugment
from lightning_tuning.data.digits import DigitsDataModule
from lightning_tuning.data.encoded_images import EncodedImageDataModule
from lightning_tuning.data.folds import fold_numbers, fold_of, parse_fold
from lightning_tuning.data.hugging_face import HuggingFaceDataModule
from lightning_tuning.data.image_datamodule import ImageDataModule
from lightning_tuning.data.image_files import ImageFiles, MaskedImages
from lightning_tuning.data.image_folder import ImageFolderDataModule
from lightning_tuning.data.image_table import ImageTableDataModule
from lightning_tuning.data.keyed_datamodule import KeyedDataModule
from lightning_tuning.data.label_selection import choose_labeled
from lightning_tuning.data.loader import KeyedLoader
from lightning_tuning.data.pipeline import Deterministic, SeededPipeline, Transform
from lightning_tuning.data.pixel_cache import PixelCache
from lightning_tuning.data.progressive import ImageSizeSchedule
from lightning_tuning.data.sampler import EvalSampler, FixedSampler, KeyedSampler, Keys, Stream
from lightning_tuning.data.split_manifest import Split, find_duplicates, load_split, save_split
from lightning_tuning.data.splits import stratified_split
from lightning_tuning.data.synonyms import read_synonyms
from lightning_tuning.data.table import TableDataModule
from lightning_tuning.data.text_datamodule import TextDataModule
from lightning_tuning.data.text_pipeline import TEXT_PIPELINES, TextPipeline, named_text_transforms
from lightning_tuning.data.text_table import read_table
from lightning_tuning.data.text_transforms import (
    OneOf,
    RandomDeletion,
    RandomInsertion,
    RandomSwap,
    SentenceShuffle,
    SynonymReplacement,
    TextTransform,
    TokenDropout,
)
from lightning_tuning.data.transform_checks import check_transforms
from lightning_tuning.data.transforms import NAMED_TRANSFORMS, evaluation_transforms, named_transforms
from lightning_tuning.data.vocabulary import Vocabulary
from lightning_tuning.data.web_dataset import WebDatasetDataModule
from lightning_tuning.data.weighted_order import balanced_weights

__all__ = [
    "NAMED_TRANSFORMS",
    "TEXT_PIPELINES",
    "ArrayDataModule",
    "AugMix",
    "BadSampleError",
    "BadSamples",
    "Deterministic",
    "DeviceAugment",
    "DigitsDataModule",
    "EncodedImageDataModule",
    "EvalSampler",
    "FixedSampler",
    "HuggingFaceDataModule",
    "ImageDataModule",
    "ImageFiles",
    "ImageFolderDataModule",
    "ImageSizeSchedule",
    "ImageTableDataModule",
    "KeyedDataModule",
    "KeyedLoader",
    "KeyedSampler",
    "Keys",
    "MaskedImages",
    "OneOf",
    "PixelCache",
    "RandomDeletion",
    "RandomInsertion",
    "RandomSwap",
    "SeededPipeline",
    "SentenceShuffle",
    "Split",
    "Stream",
    "SynonymReplacement",
    "TableDataModule",
    "TextDataModule",
    "TextPipeline",
    "TextTransform",
    "TokenDropout",
    "Transform",
    "Vocabulary",
    "WebDatasetDataModule",
    "balanced_weights",
    "check_transforms",
    "choose_labeled",
    "decode_image",
    "decode_size",
    "evaluation_transforms",
    "find_duplicates",
    "fold_numbers",
    "fold_of",
    "image_size",
    "load_split",
    "named_text_transforms",
    "named_transforms",
    "parse_fold",
    "read_image",
    "read_mask",
    "read_synonyms",
    "read_table",
    "save_split",
    "save_views",
    "stratified_split",
]
