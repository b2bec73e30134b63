"""What usually causes a difference between a resumed run and the uninterrupted one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_WITHIN_AN_EPOCH = ("mid-epoch", "SIGTERM", "max_steps")
_MOST_HINTS = 5
_CAUSES = {
    "random numbers": (
        "something draws random numbers between ExactResume's seeding and the step: a callback with "
        "on_train_batch_start. Put ExactResume behind it."
    ),
    "data": (
        "the order of samples or an augmentation comes from a random generator, a counter or a cache of its own, in "
        "the dataset, a transform or the sampler, and no checkpoint holds it. Make it a function of the seed, the "
        "epoch and the sample, as the data modules of this package do."
    ),
    "weights": (
        "the weights are changed behind the checkpoint (in the module's on_train_batch_end or on_train_epoch_end, "
        "which come after the callbacks that save), when it is loaded, or in on_train_start."
    ),
    "buffers": (
        "a buffer with persistent=False, which no checkpoint holds, or one that is changed in the module's "
        "on_train_batch_end or on_train_epoch_end, behind the checkpoint."
    ),
    "optimizer": "the optimizer's state_dict leaves something out, or load_state_dict does not put it back.",
    "scheduler": "the scheduler's state_dict leaves something out, or it is stepped by hand.",
    "callback": "the callback's state_dict leaves something out, or its load_state_dict does not put it back.",
    "progress": "the loop goes on at another place: the checkpoint was written outside of the Trainer's usual moments.",
    "logged": (
        "a metric that is gathered outside of what checkpoints hold: a torchmetrics object that is not logged as such "
        "and not persistent (metric.persistent(True)), a list or a sum in Python."
    ),
}
_LATER = (
    "the step depends on something that no checkpoint holds: an attribute of the module that is no buffer (a counter, "
    "a list, a tensor), a random generator of its own, a metric outside of state_dict, or kernels that are not "
    "deterministic. Register it as a buffer, or save it in on_save_checkpoint."
)
NOT_DETERMINISTIC = (
    "two runs from the start, of the same seed, differ already. Without Trainer(deterministic=True) some kernels of a "
    "GPU do; so does what depends on the time, on threads or on a random generator without a seed."
)


def cause_of(group: str, at_once: bool, facts: Mapping[str, Any], hints: Sequence[str]) -> str:
    """One or more sentences.

    Args:
        group: What differs first, e.g. ``data``.
        at_once: Whether it differs right behind the resume, before any step.
        facts: What is known of the run: ``moment``, whether there is ``exact_resume``, which loaders are ``stateless``.
        hints: What is known not to be in any checkpoint and was another thing in the resumed run.
    """
    if facts["moment"] == "start":
        return NOT_DETERMINISTIC
    if group == "random numbers" and not facts["exact_resume"]:
        return "there is no ExactResume() among the Trainer's callbacks, and Lightning restores no random generator."
    if group == "data" and facts["stateless"] and facts["moment"] in _WITHIN_AN_EPOCH:
        return (
            f"the loader ({', '.join(facts['stateless'])}) has no state_dict and load_state_dict, so the epoch's data "
            "begin again. Use a data module of this package or a loader with a state, or save at epoch ends only."
        )
    family = group.split(" ")[0] if group != "random numbers" else group
    at_once = at_once or family in ("data", "random numbers", "logged", "progress")
    cause = _CAUSES.get(family, _LATER) if at_once else _LATER
    if hints:
        more = f" and {len(hints) - _MOST_HINTS} more" if len(hints) > _MOST_HINTS else ""
        cause += f" Not restored: {', '.join(hints[:_MOST_HINTS])}{more}."
    return cause
