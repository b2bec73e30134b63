"""The checkpoint that a command starts from: found, and its model's arguments put under the user's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from lightning_tuning.checkpoint_file import read_checkpoint
from lightning_tuning.cli.parser import default_name
from lightning_tuning.errors import InvalidValueError
from lightning_tuning.runs.changed_arguments import changed_arguments, check_seed
from lightning_tuning.runs.find_checkpoint import find_checkpoint, model_of_checkpoint

CKPT_PATH, RESUME = "--ckpt_path", "--resume"


def add_resume(parser: LightningArgumentParser) -> None:
    """Let ``--resume`` be another spelling of ``--ckpt_path``."""
    action = parser._option_string_actions[CKPT_PATH]
    action.option_strings = [*action.option_strings, RESUME]
    parser._option_string_actions[RESUME] = action


def parse_with_checkpoint(
    parser: LightningArgumentParser, args: Sequence[str], default_seed: Any
) -> tuple[Any, dict[str, tuple[Any, Any]]]:
    """Parse the arguments; those of the checkpoint's model come before configuration files and flags, which win.

    Args:
        parser: The command line's.
        args: The arguments.
        default_seed: ``seed_everything`` where the user writes none.

    Returns:
        The configuration, and the model's arguments that are not those of the checkpoint: theirs and ours.
    """
    if all(any(arg.partition("=")[0] == name for arg in map(str, args)) for name in (CKPT_PATH, RESUME)):
        raise InvalidValueError(f"{RESUME} is another spelling of {CKPT_PATH}: write one of them.")
    config = parser.parse_args(args)
    settings = config[config.subcommand]
    settings.run.name = settings.run.name or default_name(settings.config, settings.model.class_path)
    path = find_checkpoint(settings.ckpt_path, settings.run)
    changed: dict[str, tuple[Any, Any]] = {}
    if path is None:
        settings.ckpt_path = None if settings.ckpt_path == "auto" else settings.ckpt_path
        return config, changed
    if not Path(path).is_dir():
        content = read_checkpoint(path, weights_only=settings.weights_only)
        if config.subcommand == "fit" and "optimizer_states" not in content:
            raise InvalidValueError(
                f"ckpt_path is {str(path)!r}, which has weights alone: no training can go on from it. Load it in "
                "Python with load_from_checkpoint to begin a new one with its weights."
            )
        if config.subcommand == "fit" and (seed := _seed_given(settings, args, default_seed)) is not None:
            check_seed(seed, content.get("exact_resume"))
        if model := model_of_checkpoint(path, content, getattr(settings.model, "class_path", None)):
            name = settings.run.name
            config = parser.parse_args([args[0], f"--config={json.dumps({'model': model})}", *args[1:]])
            settings = config[config.subcommand]
            settings.run.name = name
            changed = changed_arguments(model["init_args"], settings.model.init_args.as_dict())
    settings.ckpt_path = str(path)
    return config, changed


def _seed_given(settings: Any, args: Sequence[str], default: Any) -> int | bool | None:
    """``seed_everything`` if the user wrote it, as far as can be told from its value."""
    written = any(str(arg).startswith("--seed_everything") for arg in args)
    return settings.seed_everything if written or settings.seed_everything != default else None
