"""Weights for use elsewhere: a safetensors file with JSON metadata, which nothing is executed from; or a program."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch import __version__ as lightning_version
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_tuning import __version__
from lightning_tuning.checkpoint_file import read_checkpoint
from lightning_tuning.errors import CheckpointError, InvalidValueError, check_choice
from lightning_tuning.export_program import PROGRAMS, export_program
from lightning_tuning.named_code import may_be_named, names_of_code
from lightning_tuning.whole_file import whole_file

Weights = Literal["stored", "raw", "average", "teacher"]
_KEY = "lightning_tuning"
_TEACHER = "ema_teacher."
Module = TypeVar("Module", bound=LightningModule)


def export(
    ckpt_path: str,
    out: str = "model.safetensors",
    weights: Weights = "stored",
    cls: type[LightningModule] | None = None,
    input_shape: list[int] | None = None,
    input_dtype: Literal["float32", "int64"] = "float32",
    overwrite: bool = False,
) -> Path:
    """Write the weights of a checkpoint, and what the module was made with, as a safetensors file, or a program.

    Args:
        ckpt_path: A checkpoint's path or address.
        out: The file to write. ``.safetensors``: weights and metadata. ``.pt2`` (torch.export) and ``.onnx``: the
            network as a program, which ``cls`` and ``input_shape`` are needed for.
        weights: ``stored``: those that the checkpoint has as the module's. ``raw``: those that were trained on.
            ``average``: those of WeightEMA, WeightSWA or PostHocEMA. ``teacher``: those of the EMA teacher.
        cls: The class of the module. What a checkpoint says of it is not trusted.
        input_shape: The shape of one input of the network without the batch, such as ``[1, 28, 28]``.
        input_dtype: ``float32``, or ``int64`` for token ids.
        overwrite: Whether ``out`` may be a file that is there already.

    Returns:
        The file.

    Raises:
        CheckpointError: The checkpoint is damaged, or has no such weights.
        InvalidValueError: ``out`` ends in something else or is there already, or a program lacks its class or shape or
            cannot be written.
    """
    check_choice("weights", weights, ("stored", "raw", "average", "teacher"))
    suffix = Path(out).suffix
    check_choice("The suffix of out", suffix, (".safetensors", *PROGRAMS))
    if Path(out).exists() and not overwrite:
        raise InvalidValueError(f"{out} is there already. Write another name as --out, or --overwrite=true.")
    if suffix in PROGRAMS:
        if cls is None or input_shape is None:
            raise InvalidValueError(
                f"out is {out!r}, a program, and {'cls' if cls is None else 'input_shape'} is not given. Write "
                "--cls=ImageClassifier --input_shape=[1,28,28], or what the network is and takes."
            )
        with tempfile.TemporaryDirectory() as folder:
            module = load_exported(export(ckpt_path, str(Path(folder, "model.safetensors")), weights), cls)
        shape = (2, *input_shape)
        integers = input_dtype == "int64"
        example = torch.zeros(shape, dtype=torch.int64) if integers else torch.randn(shape, generator=torch.Generator())
        return export_program(module, example, out)
    from safetensors.torch import save

    content = read_checkpoint(ckpt_path)
    state = _state(content, weights, ckpt_path)
    hparams = content.get("hyper_parameters", {})
    taught = any(key.startswith(_TEACHER) for key in content["state_dict"])  # which _state has seen to be there
    if taught and weights != "teacher" and hparams.get("ema_teacher_evaluates", True):
        rank_zero_warn(
            f"The student's weights are written ({weights}). What was validated and tested is the EMA teacher: write "
            "--weights=teacher for it."
        )
    arguments = {key: value for key, value in hparams.items() if not key.startswith("_") and _is_json(value)}
    metadata = {
        "class": hparams.get("_class_path") or content.get("lightning_tuning_class"),
        "arguments": arguments,
        "left_out": sorted(key for key in hparams.keys() - arguments.keys() if not key.startswith("_")),
        "weights": weights,
        "source": str(ckpt_path),
        "epoch": content.get("epoch"),
        "global_step": content.get("global_step"),
        "versions": {"lightning_tuning": __version__, "lightning": lightning_version, "torch": torch.__version__},
    }
    with whole_file(Path(out)) as file:
        file.write(save(state, {_KEY: json.dumps(metadata)}))
    return Path(out)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What :func:`export` wrote beside the weights: class, arguments, weights, source, versions.

    Raises:
        CheckpointError: The file is none of ``export``'s.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = json.loads((file.metadata() or {})[_KEY])
            if not isinstance(metadata["arguments"], dict):
                raise ValueError("its arguments are none")
            return metadata
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is no file of lightning-tuning export: {error}") from error


def load_exported(path: str | Path, cls: type[Module], **arguments: Any) -> Module:
    """A module with exported weights, in evaluation mode.

    The class is the caller's; the file's name of one is not looked at. Of its arguments those are used that are plain
    values.

    Args:
        path: A file of :func:`export`.
        cls: The class to make.
        **arguments: What replaces or joins the arguments in the file.

    Raises:
        CheckpointError: The file is none of ``export``'s, or does not fit the class.
        InvalidValueError: An argument in the file is the name of a class, which only the caller may give.
    """
    from safetensors.torch import load_file

    stored = {key: value for key, value in read_metadata(path)["arguments"].items() if key not in arguments}
    for place, name in names_of_code(stored, "arguments"):
        if place.endswith(".class_path") or not may_be_named(name):
            key = place.split(".")[1]
            raise InvalidValueError(
                f"{path} was made with {key} = {name!r}, and code is not imported by a file's word. Give it: "
                f"load_exported(path, {cls.__name__}, {key}=...)"
            )
    module = cls(**stored, **arguments)
    try:
        module.load_state_dict(load_file(path))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} does not fit {cls.__name__}: {reason}") from error
    return module.eval()


def _state(content: Mapping[str, Any], weights: Weights, source: str) -> dict[str, Tensor]:
    stored = content.get("state_dict")
    if not isinstance(stored, dict):
        raise CheckpointError(f"{source} is no checkpoint of a LightningModule: it has no state_dict.")
    teacher = {key.removeprefix(_TEACHER): value for key, value in stored.items() if key.startswith(_TEACHER)}
    # Without the teacher's count of updates too, by which a module would expect a teacher.
    state = {key: value for key, value in stored.items() if not key.startswith((_TEACHER, "ema_teacher_updates"))}
    states = [part for part in content.get("callbacks", {}).values() if isinstance(part, dict)]
    raw = next((part["raw"] for part in states if isinstance(part.get("raw"), dict)), None)
    if weights == "teacher":
        if not teacher:
            raise CheckpointError(f"{source} has no EMA teacher. Its weights are called stored or raw.")
        state |= {key: value for key, value in teacher.items() if key in state}
    elif weights == "average" and raw is None:
        raise CheckpointError(
            f"{source} has no average beside the trained weights. Write --weights=stored for those that it has."
        )
    elif weights == "raw":
        if "callbacks" not in content:
            raise CheckpointError(
                f"{source} has weights alone and does not say which. Write --weights=stored for those that it has."
            )
        state |= {key: value for key, value in (raw or {}).items() if not key.startswith(_TEACHER)}
    return {key: value.detach().contiguous().clone() for key, value in state.items() if isinstance(value, Tensor)}


def _is_json(value: Any) -> bool:
    try:
        return json.loads(json.dumps(value)) == value
    except (TypeError, ValueError):
        return False
