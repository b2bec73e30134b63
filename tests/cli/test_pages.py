"""What is answered without torch: the texts agree with the parser, and nothing heavy is loaded."""

import re
import subprocess
import sys

import pytest

import lightning_tuning
from lightning_tuning.cli.pages import ALL_OPTIONS, COMMANDS, LISTING, answer, page_of, start_page
from lightning_tuning.cli.tuning_cli import TuningCLI, main

from .test_process import ROOT

LIKE_FIT = ["fit", "validate", "test", "predict", "plan", "plot-schedule", "check-resume"]
HEAVY = ["torch", "lightning", "numpy", "yaml", "jsonargparse", "argparse", "lightning_tuning.mixins"]
NAMES = "fit, validate, test, predict, plan, plot-schedule, check-resume, export, audit, list"
NO_COMMAND = "lightning-tuning: The command comes first"


def python(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True
    )


@pytest.mark.parametrize(
    ("args", "code", "out", "err"),
    [
        (["--help"], 0, start_page(), ""),
        (["-h"], 0, start_page(), ""),
        (["--version"], 0, f"lightning-tuning {lightning_tuning.__version__}\n", ""),
        (["list"], 0, LISTING.read_text(encoding="utf-8"), ""),
        (["list", "--help"], 0, f"usage: lightning-tuning list\n\n{COMMANDS['list']}\n", ""),
        (["list", "callbacks"], 2, "", "lightning-tuning list: it takes no arguments; got callbacks\n"),
        (["fit", "--config=a.yaml", "--help"], 0, page_of("fit"), ""),
        (["--debug", "test", "-h"], 0, page_of("test"), ""),
        ([], 2, "", f"{NO_COMMAND}. It is one of {NAMES}.\nHelp: lightning-tuning --help\n"),
        (["-c=a"], 2, "", f"{NO_COMMAND}, before '-c'. It is one of {NAMES}.\nHelp: lightning-tuning --help\n"),
        (
            ["fti"],
            2,
            "",
            "lightning-tuning: There is no command 'fti'; did you mean 'fit'? It is one of "
            f"{NAMES}.\nHelp: lightning-tuning --help\n",
        ),
        (
            ["train"],
            2,
            "",
            f"lightning-tuning: There is no command 'train'. It is one of {NAMES}.\nHelp: lightning-tuning --help\n",
        ),
    ],
)
def test_answers(args, code, out, err, capsys):
    assert answer(args) == main(args) == code
    assert capsys.readouterr() == (2 * out, 2 * err)


@pytest.mark.parametrize("args", [["fit"], ["fit", ALL_OPTIONS], ["export", "--help"], ["audit"], ["test", "--hlp"]])
def test_the_rest_is_left_to_the_parser(args, capsys):
    assert answer(args) is None
    assert capsys.readouterr() == ("", "")


def test_pages_show_every_command_and_fit_a_terminal():
    shown = re.findall(r"^  ([\w-]+) {2,}(.*)$", start_page(), re.M)
    assert shown == [*COMMANDS.items()]
    assert max(len(line) for page in (start_page(), *map(page_of, COMMANDS)) for line in page.splitlines()) <= 120


@pytest.mark.parametrize("command", LIKE_FIT)
def test_the_options_of_a_page_are_those_of_the_parser(command, capsys):
    """All that the page names are there, with the command's own text; those of other commands are not named."""
    assert main([command, "--help"]) == 0
    page = capsys.readouterr().out
    assert main([command, ALL_OPTIONS]) == 0
    whole = capsys.readouterr().out
    known = {*re.findall(r"(?:^  |^  -c CONFIG, |, )(--[\w.]+\+?)", whole, re.M)}
    named = {*re.findall(r"--[\w.]+\+?", page)} - {"--OPTION", "--help", "--trainer.KEY"}
    unknown = {name for name in named - known if not name.startswith(("--model.", "--data."))}
    assert named > {"--config", "--resume", "--ckpt_path", "--run.monitor", "--trainer.callbacks+"}
    assert not unknown
    assert COMMANDS[command] in page
    assert COMMANDS[command] in re.sub(r"\s+", " ", whole)
    for group in ("plot", "check"):
        own = {name.rstrip("+") for name in known if name.startswith(f"--{group}.")}
        assert {name for name in named if name.startswith(f"--{group}.")} == own


def test_the_commands_of_the_parser_are_those_that_are_named(config, monkeypatch):
    found = []
    monkeypatch.setattr(TuningCLI, "parse_arguments", lambda self, parser, args: found.append(parser) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        TuningCLI(["fit", "-c", config])
    assert [*found[0]._subcommands_action.choices] == LIKE_FIT
    assert [*COMMANDS] == [*LIKE_FIT, "export", "audit", "list"]


def test_importing_the_package_loads_nothing_heavy():
    code = f"import lightning_tuning, sys; print([name for name in {HEAVY} if name in sys.modules])"
    assert python(code).stdout == "[]\n"


@pytest.mark.parametrize("args", [[], ["--help"], ["--version"], ["list"], ["fti"], ["fit", "--help"]])
def test_what_is_answered_at_once_loads_nothing_heavy(args):
    code = f"""
import sys
from lightning_tuning.__main__ import main
sys.argv = ["lightning-tuning", *{args}]
main()
print([name for name in {HEAVY} if name in sys.modules])
"""
    assert python(code).stdout.endswith("[]\n")


def test_the_first_use_loads_lightning_and_this_package_alone():
    code = """
import sys
import lightning
before = {*sys.modules}
import lightning_tuning
lightning_tuning.MixupMixin
print(sorted({name.partition(".")[0] for name in {*sys.modules} - before}))
print([name for name in ("callbacks", "data", "modules", "runs", "cli") if "lightning_tuning." + name in sys.modules])
"""
    assert python(code).stdout == "['lightning_tuning']\n[]\n"
