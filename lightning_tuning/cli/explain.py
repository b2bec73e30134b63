"""What jsonargparse reports of a mistake, in one line and with the nearest right spelling."""

from __future__ import annotations

import re
import sys
from difflib import get_close_matches

from jsonargparse import ArgumentParser

from lightning_tuning.cli.nearest import (
    PLACES,
    nearest_class,
    nearest_config,
    nearest_module,
    nearest_option,
    wrong_kind,
)
from lightning_tuning.errors import CompositionError, did_you_mean
from lightning_tuning.mixins.composition import check_not_pytorch_lightning
from lightning_tuning.modules.lean import Lean, not_offered

_NOISE = re.compile(
    r"^\s*(- )?(Expected a <class 'NoneType'>|Expected a path but .* not accessible or invalid"
    r"|Does not validate against any of the Union subtypes|Subtypes: .*|Errors:|Given value type: .*|Given value: .*)$"
)

_WORDS = (
    (r'Parser key "([\w.]+)":?', r"\1:"),
    (r"Problem with given class_path '(?:\w+\.)*(\w+)'", r"\1"),
    (r"Expected a <class '([\w.]+)'>", r"expected \1"),
    (r"Expected a typing\.Literal\[(.*?)\]", r"expected one of \1"),
    (r"\. Got value:", "; got"),
)


def explain(message: str, parser: ArgumentParser) -> str:
    """An error of jsonargparse without its inner workings, and with the nearest right name if one was misspelt.

    Args:
        message: What jsonargparse reports.
        parser: The parser of the subcommand in question.
    """
    text = _first_alternative(message)
    place = re.match(r'Parser key "([\w.]+)"', message)
    key = f"{place[1]}: " if place else ""
    if (config := getattr(parser, "config_in_use", None)) and "File does not exist: " in text:
        return f"there is no such file{nearest_config(str(config))}"
    if config and "Path is not a file" in text:
        return f"it is a folder{nearest_config(str(config))}"
    if config and text.startswith("Unexpected config:"):
        return "it must hold keys with their values, e.g. trainer: {max_epochs: 3}"
    if unknown := re.search(r"class_path '([\w.]+)':\s+Option '([\w.]+)' is not accepted", text):
        # Where no class is found, jsonargparse reports on the base class.
        of_base = unknown[1].rpartition(".")[2] in {place.__name__ for place in PLACES}
        if of_base or get_close_matches(unknown[2].partition(".")[0], ("class_path", "init_args"), cutoff=0.8):
            return f"{key}write class_path: CLASS and below init_args its arguments, and nothing beside them"
        if left_out := _left_out(unknown[1], unknown[2]):
            return f"{key}{left_out}"
        hint = did_you_mean(unknown[2], _arguments(unknown[1]))
        return f"{key}{unknown[1].rpartition('.')[2]} has no argument {unknown[2]!r}{hint}"
    if literal := re.search(
        r"Expected a typing\.Literal\[([^\]]*)\]\n[^\n]*import path.*?Given value: (\w+)$", message, re.S | re.M
    ):
        names = re.findall(r"'([^']*)'", literal[1])
        where = ".".join(re.findall(r'Parser key "([\w.]+)"', message[: literal.start()]))
        hint = did_you_mean(literal[2], names)
        return f"{where} is {literal[2]!r}{hint} It must be one of {', '.join(names)}, or the class path of another."
    if unknown := re.search(r"does not accept option '([\w.]+)'|unrecognized arguments: -*([\w.]+)", message):
        return nearest_option(unknown[1] or unknown[2], parser)
    if unknown := re.search(r"No module named '([\w.]+)'\n?.*?Given value: ([\w.]+)$", message, re.S | re.M):
        if unknown[2].startswith(f"{unknown[1]}."):
            return f"{key}there is no module {unknown[1]!r}, of {unknown[2]!r}{nearest_module(unknown[1])}"
        return f"{key}{unknown[2]} cannot be imported: there is no module {unknown[1]!r}."
    broken = re.search(
        r"Expected a path but ([^\W\d]\w*(?:\.\w+)+) .*?Errors:\n\s*- ([^\n]*)\n.*Given value: \1$", message, re.S
    )
    if broken and (module := broken[1].rpartition(".")[0]) not in sys.modules:
        return f"{key}{broken[1]} cannot be imported: {broken[2]}; `python -c 'import {module}'` shows where"
    if unknown := re.search(r"Expected a dot import path string: (\S+)|module '\S+' has no attribute '(\w+)'", text):
        name = unknown[1] or unknown[2]
        if kind := wrong_kind(name, place[1] if place else None):
            return f"{key}{kind}"
        hint = nearest_class(name, place[1] if place else None)
        return f"{key}there is no class {name!r}{hint} A class of yours is written with its module: my_module.{name}"
    if foreign := re.search(
        r"Import path does not correspond to a subclass.*?Given value: ([\w.]+)$", message, re.S | re.M
    ):
        module, _, name = foreign[1].rpartition(".")
        try:
            check_not_pytorch_lightning(getattr(sys.modules.get(module), name, object))
        except CompositionError as error:
            return f"{key}{error}"
    if missing := re.search(r"arguments are required: \w+\.(.*)", message):
        return f"Missing: {missing[1]}. Give a configuration (--config=FILE) or write it, e.g. --model=ImageClassifier"
    for pattern, replacement in _WORDS:
        text = re.sub(pattern, replacement, text)
    given = re.findall(r"^\s*Given value: (?!Namespace\(|NestedArg\()([^{\[].*)$", message, re.MULTILINE)[-1:]
    told = "got " in text or not given
    if told:
        return text
    return f"{text}; got {given[0]}" + (", which is written null here" if given[0] == "None" else "")


def _first_alternative(message: str) -> str:
    """The report in one line. Of several types that were tried, a class given by name can only fit the first."""
    lines = [line for line in message.splitlines() if line.strip() and not _NOISE.match(line)]
    first = next((number for number, line in enumerate(lines) if line.lstrip().startswith("- ")), None)
    if first is not None and "class_path" in lines[first]:
        # The class's own argument may have several types too, further to the right.
        bullet = lines[first][: lines[first].index("- ") + 2]
        others = (number for number, line in enumerate(lines) if number > first and line.startswith(bullet))
        lines = lines[: next(others, len(lines))]
    return " ".join(line.strip() for line in lines).replace(": - ", ": ").replace(" - ", " or ")


def _arguments(class_path: str) -> list[str]:
    """The arguments of a class that can be set on the command line."""
    module, _, name = class_path.rpartition(".")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(getattr(sys.modules[module], name), fail_untyped=False)
    return list(parser.get_defaults().keys(branches=True))


def _left_out(class_path: str, argument: str) -> CompositionError | None:
    """The error for the argument of a technique that a ready host does not offer."""
    module, _, name = class_path.rpartition(".")
    cls = getattr(sys.modules[module], name)
    return not_offered(cls, argument) if isinstance(cls, Lean) else None
