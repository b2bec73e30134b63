"""The command line's parser: presets as configuration files, and errors that say what was meant."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ActionConfigFile
from jsonargparse import Path as ConfigPath
from lightning.pytorch.cli import LightningArgumentParser

from lightning_tuning.cli.explain import explain
from lightning_tuning.cli.short_help import ShortHelp
from lightning_tuning.presets import PREFIX, preset_of, preset_path, preset_settings


class ConfigOrPreset(ActionConfigFile):
    """``--config FILE`` or ``--config preset:NAME``."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        parser.config_in_use = values
        parser.configs_read.append(values)
        if isinstance(values, str) and values.startswith(PREFIX):
            name = values.removeprefix(PREFIX)
            path = ConfigPath(str(preset_path(name)))
            super().__call__(parser, cfg, json.dumps({"trainer": preset_settings(name)}), option_string)
            cfg[self.dest][-1] = path  # of what was read, the name is wanted later
        else:
            super().__call__(parser, cfg, values, option_string)
        parser.config_in_use = None


class TuningParser(LightningArgumentParser):
    """A parser whose errors are a few lines and name the nearest right spelling."""

    config_in_use: str | None = None
    """The configuration that is being read."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Also for the parsers that jsonargparse makes for the help of one class.
        super().__init__(*args, **{"prog": "lightning-tuning", "formatter_class": ShortHelp, **kwargs})
        self.configs_read: list[Any] = []

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        program = parser.prog.replace(" [options]", "")
        source = f"{parser.config_in_use}: " if parser.config_in_use else ""
        sys.stderr.write(f"{program}: {source}{explain(message, parser)}\nHelp: {program} --help\n")
        raise SystemExit(2) from ex


def default_name(files: Iterable[Any] | None, class_path: str) -> str:
    """What an experiment is called that has no ``run.name``: as the first configuration that is no preset.

    Args:
        files: The configurations; those given as text are empty.
        class_path: Names the experiment if there is none.
    """
    paths = [Path(os.path.abspath(str(file))) for file in files or [] if file]
    for path in paths:
        if preset_of(path) is None:
            return path.parent.name if path.stem == "config" else path.stem
    return class_path.rpartition(".")[2]


def raised_by_constructor(error: BaseException) -> BaseException:
    """The error that a class raised when it was made: jsonargparse wraps it in a list of the types it tried."""
    while error.__cause__ is not None and str(error).startswith("Does not validate against any of the Union subtypes"):
        error = error.__cause__
    return error
