"""A W&B run whose methods report their errors instead of raising them."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import Any

Report = Callable[[str, Exception], None]

_METHODS = (
    *("log", "alert", "define_metric", "display", "finish", "mark_preempting", "save", "watch", "unwatch"),
    *("log_artifact", "log_code", "log_model", "link_artifact", "link_model", "use_artifact", "use_model"),
)
_SERVICE_ENDED = ("AlreadyJoinedError", "HandleAbandonedError", "MailboxClosedError")


def guard_run(run: Any, report: Report) -> None:
    """Make a run's methods call ``report(method, error)`` and return None where they would raise.

    The hooks of ``run.watch``, the run's config and its summary hand over their values below these methods, so the
    place where all of them leave the process is guarded too.

    Args:
        run: A ``wandb.Run``; it is changed in place.
        report: Called with the method's name and the error.
    """
    for name in _METHODS:
        if hasattr(run, name):
            setattr(run, name, guarded(getattr(run, name), name, report))
    interface: Any = getattr(run, "_interface", None)
    if hasattr(interface, "_publish"):
        interface._publish = guarded(interface._publish, "log", report)


def guarded(method: Callable[..., Any], name: str, report: Report) -> Callable[..., Any]:
    """``method`` that calls ``report`` where it would raise."""

    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except Exception as error:
            report(name, error)
            return None

    return call


def service_ended(error: Exception) -> bool:
    """Whether an error says that W&B's service process, which all runs of a process share, is no longer there."""
    return isinstance(error, ConnectionError) or type(error).__name__ in _SERVICE_ENDED


def has_key() -> bool:
    """Whether ``wandb.init`` will find credentials without asking for them at the terminal."""
    import wandb
    from requests.utils import get_netrc_auth

    settings = wandb.setup().settings
    from_environment = os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE")
    return bool(from_environment or settings.api_key or get_netrc_auth(settings.base_url))


class NoRun:
    """Takes everything that a run takes and does nothing: what an experiment is if no run could be started."""

    def __getattr__(self, name: str) -> NoRun:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __setattr__(self, name: str, value: object) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> NoRun:
        return self

    def __getitem__(self, key: object) -> NoRun:
        return self

    def __setitem__(self, key: object, value: object) -> None:
        pass
