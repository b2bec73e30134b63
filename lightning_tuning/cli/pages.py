"""What the command line answers at once, without torch and Lightning: help, list, version, a misspelt command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_tuning import __version__
from lightning_tuning.errors import did_you_mean

COMMANDS = {
    "fit": "Train, test the best checkpoint, and keep everything in one folder.",
    "validate": "Evaluate a checkpoint on the validation data.",
    "test": "Evaluate a checkpoint on the test data.",
    "predict": "Save the predictions of a checkpoint.",
    "plan": "Print what the techniques of a configuration will do in each step, without training.",
    "plot-schedule": "Draw the schedules of a configuration, without training.",
    "check-resume": "Train a few steps, stop at several moments, resume: tell whether the runs are equal bit for bit.",
    "export": "Write the weights of a checkpoint as safetensors with JSON metadata, or the network as a program.",
    "audit": "Read every sample of a configuration once and report what is wrong with the data.",
    "list": "Print the techniques, callbacks and presets there are.",
}
"""Every command and what it is for; the parser takes the texts from here too."""

LISTING = Path(__file__).with_name("listing.txt")
"""What ``list`` prints. ``python -m lightning_tuning.cli.listing`` writes it anew."""
ALL_OPTIONS = "--help=all"
_HELP = ("-h", "--help")

_START = """\
usage: lightning-tuning COMMAND [--OPTION VALUE ...]

Train with better generalisation: techniques are keys of the model, hardware is a preset.

commands:
{commands}

for a start:
  lightning-tuning fit --model=ImageClassifier --data=DigitsDataModule --trainer.max_epochs=3
  lightning-tuning fit --config=config.yaml --config=preset:bf16 --model.mixup_alpha=0.2
  lightning-tuning test --config=config.yaml --ckpt_path=best

`lightning-tuning COMMAND --help` tells its options, `--version` the version; `--debug` shows the traceback of an error.
"""

_OF_ONE_COMMAND = """\
usage: lightning-tuning {command} [--config=FILE] [--OPTION VALUE ...]

{purpose}

what to run:
  -c, --config FILE|preset:NAME  a YAML file or a preset; of several, later ones win, and options win over all
  --model CLASS                  ImageClassifier, SemiSupervisedClassifier, my_module.MyModel ...
  --model.KEY VALUE              one of its arguments: --model.mixup_alpha=0.2
  --data CLASS                   DigitsDataModule, ImageFolderDataModule, my_module.MyData ...
  --data.KEY VALUE               one of its arguments: --data.batch_size=64

how to run it:
  --trainer.KEY VALUE            an argument of Lightning's Trainer: --trainer.max_epochs=20
  --trainer.callbacks+ CLASS     one more callback: --trainer.callbacks+=WeightEMA
  --trainer.logger CLASS         beside the journal: ResilientWandbLogger, TensorBoardLogger, CSVLogger
  --seed_everything N            the seed; default: 0
  --resume last|best|auto|FILE   the checkpoint to start from (also --ckpt_path); auto: the last one, if there is one

where it goes:
  --run.name NAME                folder of the runs, below --run.dir; default: the name of the configuration
  --run.monitor METRIC           chooses best.ckpt: --run.monitor=val/accuracy --run.mode=max
{own}
more:
  --model.help CLASS             every argument of a class; likewise --data.help, --trainer.callbacks.help
  --print_config                 all settings as YAML, without running
  --help=all                     every option
  lightning-tuning list          techniques, callbacks and presets
"""

_OWN_OPTIONS = {
    "fit": """\
  --run.test false               leaves out the test at the end
""",
    "plot-schedule": """\
  --plot.path FILE               the picture
  --plot.batches_per_epoch N     the length of an epoch, where the data are not at hand
""",
    "check-resume": """\
  --check.batches N              batches in each of the three epochs
  --check.moments [NAME, ...]    where to stop; default: everywhere
""",
}
_LIKE_FIT = ("fit", "validate", "test", "predict", "plan", "plot-schedule", "check-resume")


def answer(args: Sequence[str]) -> int | None:
    """Print the answer to what needs no training code.

    Args:
        args: The command line's arguments.

    Returns:
        The exit code, or None if the arguments ask for more than this module knows.
    """
    args = [arg for arg in args if arg != "--debug"]
    first = args[0] if args else ""
    if first in _HELP:
        print(start_page(), end="")
    elif first == "--version":
        print(f"lightning-tuning {__version__}")
    elif first in _LIKE_FIT and any(arg in _HELP for arg in args):
        print(page_of(first), end="")
    elif first == "list":
        return _list(args[1:])
    elif first in COMMANDS:
        return None
    else:
        print(f"lightning-tuning: {_no_command(first)} It is one of {', '.join(COMMANDS)}.", file=sys.stderr)
        print("Help: lightning-tuning --help", file=sys.stderr)
        return 2
    return 0


def _no_command(first: str) -> str:
    if first.startswith("-"):
        return f"The command comes first, before {first.partition('=')[0]!r}."
    return f"There is no command {first!r}{did_you_mean(first, COMMANDS)}" if first else "The command comes first."


def _list(args: Sequence[str]) -> int:
    if not args:
        print(LISTING.read_text(encoding="utf-8"), end="")
        return 0
    if any(arg in _HELP for arg in args):
        print(f"usage: lightning-tuning list\n\n{COMMANDS['list']}")
        return 0
    print(f"lightning-tuning list: it takes no arguments; got {' '.join(args)}", file=sys.stderr)
    return 2


def start_page() -> str:
    """What ``lightning-tuning --help`` prints."""
    width = max(map(len, COMMANDS)) + 4
    return _START.format(commands="\n".join(f"{'  ' + name:<{width}}{text}" for name, text in COMMANDS.items()))


def page_of(command: str) -> str:
    """What ``lightning-tuning COMMAND --help`` prints for a command that takes what ``fit`` takes."""
    return _OF_ONE_COMMAND.format(command=command, purpose=COMMANDS[command], own=_OWN_OPTIONS.get(command, ""))
