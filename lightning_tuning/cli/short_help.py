"""Help of the command line that stays readable with hundreds of options and of possible classes."""

from __future__ import annotations

import re
from argparse import Action
from typing import Any

from jsonargparse import DefaultHelpFormatter

_MANY_OPTIONS, _MANY_CLASSES = 30, 20


class ShortHelp(DefaultHelpFormatter):
    """jsonargparse's help with a long usage in one line and, of the classes that can be chosen, short lists only."""

    def _format_usage(self, usage: Any, actions: Any, groups: Any, prefix: str | None) -> str:
        actions = list(actions)
        if usage is None and len(actions) > _MANY_OPTIONS:
            return f"{prefix or 'usage: '}{self._prog.replace(' [options]', '')} [--OPTION VALUE ...]\n\n"
        return super()._format_usage(usage, actions, groups, prefix)

    def _get_help_string(self, action: Action) -> str:
        return re.sub(r", known subclasses: ([^)]*)", _choices, super()._get_help_string(action))


def _choices(known: re.Match[str]) -> str:
    paths = [path for path in known[1].split(", ") if not path.endswith("Mixin")]
    names = dict.fromkeys(path.rpartition(".")[2] for path in paths)
    return f", classes: {', '.join(names)}" if len(names) <= _MANY_CLASSES else ""
