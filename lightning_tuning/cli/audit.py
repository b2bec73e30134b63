"""``lightning-tuning audit``: every sample of a configuration read once, and a report of what is wrong."""

from __future__ import annotations

from argparse import SUPPRESS
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import seed_everything

from lightning_tuning.cli.pages import COMMANDS
from lightning_tuning.cli.parser import ConfigOrPreset, TuningParser, default_name, raised_by_constructor
from lightning_tuning.data.audit import audit_samples, conclusion, find, save_sheet, set_up, summary, write_report
from lightning_tuning.data.keyed_datamodule import KeyedDataModule
from lightning_tuning.errors import InvalidValueError
from lightning_tuning.runs.config import RunConfig
from lightning_tuning.runs.folder import new_run_folder

COMMAND = "audit"
_OF_OTHER_COMMANDS = (
    *("model", "trainer", "optimizer", "lr_scheduler", "ckpt_path", "weights_only"),
    *("verbose", "return_predictions", "plot", "check"),
)
"""What a configuration file may hold besides, and is not looked at."""


def audit_parser() -> TuningParser:
    """The command's parser. It takes every configuration of ``fit``, and looks at its data alone."""
    parser = TuningParser(prog=f"lightning-tuning {COMMAND}", description=COMMANDS[COMMAND], allow_abbrev=False)
    parser.add_argument("-c", "--config", action=ConfigOrPreset, help="A YAML file. Of several, later ones win.")
    parser.add_argument("--seed_everything", type=bool | int, default=0, help="As for `fit`.")
    parser.add_argument(
        "--out",
        type=str | None,
        default=None,
        help="A new folder for the report. Default: <run.dir>/<run.name>/<time>-audit.",
    )
    parser.add_lightning_class_args(KeyedDataModule, "data", subclass_mode=True, required=True)
    parser.add_class_arguments(RunConfig, "run")
    for name in _OF_OTHER_COMMANDS:
        parser.add_argument(f"--{name}", type=Any, default=None, help=SUPPRESS)
    return parser


def run_audit(args: Sequence[str]) -> int:
    """Read every sample, write the report and print its summary.

    Args:
        args: The arguments behind the command.

    Returns:
        The exit code: 0, or 1 if there are findings that are errors.
    """
    parser = audit_parser()
    config = parser.parse_args(args)
    if config.seed_everything is not False:
        seed = None if config.seed_everything is True else config.seed_everything
        seed_everything(seed, workers=True, verbose=False)
    for unused in _OF_OTHER_COMMANDS:
        config[unused] = None  # or its classes would be made
    try:
        init = parser.instantiate(config)
    except ValueError as error:
        raise raised_by_constructor(error) from None
    name = init.run.name or default_name(config.config, config.data.class_path)
    folder = new_run_folder(init.run.dir, name, f"-{COMMAND}") if config.out is None else _made(Path(config.out))
    try:
        set_up(init.data)
        audit = audit_samples(init.data, progress=True)
        write_report(audit, folder)
        save_sheet(audit, init.data.samples, folder / "contact_sheet.png")
    finally:
        if not any(folder.iterdir()):
            folder.rmdir()
    print("\n".join([*summary(audit), conclusion(audit, folder)]))
    return int(any(finding.severity == "error" for finding in find(audit)))


def _made(folder: Path) -> Path:
    """A new folder of the user's."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise InvalidValueError(
            f"out is {str(folder)!r}, which is there already; nothing is overwritten. Name a new folder."
        ) from None
    return folder
