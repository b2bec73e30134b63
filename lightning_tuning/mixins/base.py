"""The base of all mixins: the pass-through of each hook they may override, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn

from lightning_tuning.checkpoint_file import load_checked
from lightning_tuning.errors import InvalidValueError
from lightning_tuning.functional import TermWatch, without_graph
from lightning_tuning.timing.durations import Duration
from lightning_tuning.timing.step_hook import after_each_step

from .adjusting import adjustable, check_adjusted, configured, configured_techniques, why_fixed
from .arguments import check_arguments, given_at_load
from .composition import check_composition, check_not_pytorch_lightning, hosts_of, members, own_arguments, techniques_of
from .plan import Cost, check_plan, plan
from .ramps import parse_ramp
from .step_state import StepState
from .teachers import note_class
from .terms import term_log

_SHARDED_STRATEGIES = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")


class TuningMixin(LightningModule):
    """Base of the mixins that add a technique to a LightningModule.

    Write the mixins left of your module: ``class Net(SAMMixin, MixupMixin, MyModule): ...``. The class is checked when
    Python creates it: the mixins' order, what they need of the module, argument names.
    """

    stem: ClassVar[str] = ""
    """The technique's one name: its file, its arguments' prefix, its key ``train/<stem>``, its card."""
    stage: ClassVar[str | None] = None
    """Where it stands among the mixins: one of ``STAGES``, or None for anywhere left of the host."""
    off: ClassVar[Mapping[str, Any]] = {}
    """The argument values at which a training run is bitwise that of the bare host."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Methods that the host must define."""
    sharded: ClassVar[bool | Literal["fsdp2"]] = False
    """Whether it is right when each process holds only a part of every parameter; ``fsdp2``: under FSDP 2 alone."""
    tasks: ClassVar[tuple[str, ...]] = ("multiclass", "multilabel", "regression")
    """The kinds of target it makes sense for."""
    changes: ClassVar[tuple[str, ...]] = ()
    """What it changes: some of ``CHANGES``."""
    conflicts: ClassVar[Mapping[str, str]] = {}
    """The stems of techniques that it cannot be on with, each with what to do instead."""
    couples: ClassVar[bool] = False
    """Whether it makes what the network computes of a sample depend on the rest of the batch."""
    whole_batch: ClassVar[str] = ""
    """Why it must see a batch as a whole: a clause after its name. Empty where the parts of a batch may be passed one
    by one (``MicroBatch``): their losses, weighted by their samples, are the batch's, or those of another draw."""
    needs_streams: ClassVar[bool] = False
    """Whether it can do nothing without unlabelled batches."""
    fixed: ClassVar[tuple[str, ...]] = ()
    """The floating arguments that no step reads anew, so that changing them during a run would change nothing."""
    _is_tuning_mixin: ClassVar[bool] = True

    replaying: bool = False
    """Whether an accumulation window is passed through again (SAM): nothing is logged then, and no state advances."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_not_pytorch_lightning(cls)
        check_composition(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        check_arguments(type(self), kwargs)
        super().__init__(*args, **kwargs)

    @property
    def _host_name(self) -> str:
        return hosts_of(type(self))[0].__name__

    @classmethod
    def is_on(cls, settings: Mapping[str, Any]) -> bool:
        """Whether these settings (arguments by name; a missing one counts as off) switch the technique on."""
        return any(settings.get(name, off) != off for name, off in cls.off.items())

    # Called as `Technique.no_effect(module)`: every technique has its own, and none overrides another's.

    def no_effect(self) -> str | None:
        """Why the technique, though switched on, can change nothing in this model; None if it can."""
        return None

    def asks_teacher(self) -> bool:
        """Whether the technique, as it is set, learns from what a teacher says (:meth:`pseudo_logits`)."""
        return False

    def extra_cost(self) -> Cost:
        """What a step costs beyond the bare host's."""
        return Cost()

    def active_techniques(self) -> list[type[TuningMixin]]:
        """The techniques of this instance that are switched on, left to right."""
        return [t for t in techniques_of(type(self)) if t.is_on({name: getattr(self, name) for name in t.off})]

    def tuning_settings(self) -> dict[str, Any]:
        """The arguments of the techniques that are switched on, by name. They go into the loggers' run config."""
        return {name: configured(self, name) for t in configured_techniques(self) for name in own_arguments(t)}

    def adjustable(self) -> dict[str, float]:
        """What a callback may change between two steps, by assigning to the attribute of that name: the arguments of
        active techniques that are numbers and read at each step. With their configured values."""
        return adjustable(self)

    def why_fixed(self, name: str) -> str | None:
        """Why an argument of a technique is not among the :meth:`adjustable`; None for what is no such argument."""
        return why_fixed(self, name)

    def check_adjusted(self, name: str, value: float) -> None:
        """Raise what the technique would raise if the argument had that value from the start."""
        check_adjusted(self, name, value)

    def class_count(self, technique: str) -> int:
        """The host's ``num_classes``: its attribute or hyper-parameter.

        Args:
            technique: Who asks, for the message.
        """
        count = getattr(self, "num_classes", None) or self.hparams.get("num_classes")
        if count is None:
            raise MisconfigurationException(
                f"{self._host_name} has no attribute num_classes, which {technique} needs: the number of classes that "
                "the target's ids tell apart. Write self.num_classes = ... in its __init__; a target that is no class "
                "ids has to be floating."
            )
        return count

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The parameters that training changes: without frozen ones and without a teacher's."""
        return [p for p in self.parameters() if p.requires_grad]

    def penalized_parameters(self) -> dict[str, nn.Parameter]:
        """What the penalties on weights act on, by name: the trainable parameters with two or more dimensions, so
        neither biases nor the scales of norm layers.

        Looked up at each step: callbacks freeze, unfreeze and add parameters.
        """
        return {name: p for name, p in self.named_parameters() if p.requires_grad and p.ndim >= 2}

    def without_weights(self) -> str | None:
        """What ``no_effect`` answers for a technique that acts on :meth:`penalized_parameters`, if there are none."""
        if self.penalized_parameters():
            return None
        return f"{self._host_name} has no trainable parameter of two or more dimensions. All may be frozen."

    def log_term(self, name: str, value: Tensor, prog_bar: bool = False, count: Tensor | None = None) -> None:
        """Record a scalar of this step as ``train/<name>``: it is logged at the Trainer's logging steps, and its mean
        over the epoch as ``train/<name>_epoch``.

        Args:
            name: The technique's stem, or the stem and what it is.
            value: A scalar tensor; it is detached.
            prog_bar: Whether it is shown on the progress bar.
            count: How many things it is the mean of, where that changes from batch to batch: the epoch's mean is over
                all of them. At 0 the step has no value (NaN).
        """
        if not self.replaying:
            term_log(self).add(f"train/{name}", value, prog_bar, count)

    def add_term(self, name: str, loss: Any, value: Tensor, weight: float = 1.0) -> Any:
        """Add ``weight * value`` to a loss and record ``value`` as ``train/<name>``.

        Args:
            name: The technique's stem.
            loss: What ``compute_loss`` or ``training_step`` returned: a tensor, a dict with ``loss``, or None.
            value: The term without its weight, a scalar.
            weight: Its factor.

        Returns:
            ``loss`` with the term; None (a skipped step) stays None.
        """
        self.log_term(name, value)
        term = weight * value
        watch = self.__dict__.get("_term_watch")
        if watch is not None and not self.replaying:
            watch.see(name, term)
        return add_to_loss(loss, term)

    def ramped(self, weight: float, ramp: str | None) -> float:
        """``weight`` times the ramp's factor now, a function of the optimizer steps done and of nothing else.

        The factor is recorded as ``train/<stem>_ramp``.

        Args:
            weight: The full weight.
            ramp: What :func:`~lightning_tuning.mixins.ramps.check_ramp` let through; None: always the full weight.
        """
        parsed = parse_ramp(ramp) if ramp is not None and self._trainer is not None else None
        if parsed is None:
            return weight
        factor = parsed.factor(self.trainer.global_step, self.steps_in(parsed.length))
        for name in self.__dict__.get("_ramps", ()):
            if getattr(self, name) == ramp:
                self.log_term(name, torch.tensor(factor))
        return weight * factor

    def steps_in(self, duration: Duration) -> float:
        """The length of a duration in optimizer steps of this run."""
        lengths = self.__dict__.setdefault("_lengths", {})
        if duration not in lengths:
            lengths[duration] = duration.steps(self.trainer)
        return lengths[duration]

    def kept_for_replay(self, name: str, make: Callable[[], Any]) -> Any:
        """``make()``, or what it returned for the same micro-batch in the window's first pass (SAM, AWP): for what the
        second pass must find as it was, such as adversarial inputs. The random numbers go on as they did then.

        Args:
            name: The technique's stem.
            make: Computes it. Call this method at most once in a step.
        """
        return make()

    # The host's methods that mixins build on.

    def compute_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """The host's own loss, the end of the mixins' chain."""
        loss = super().compute_loss(logits, target)  # type: ignore[misc]
        if self.training:
            self.__dict__["_saw_compute_loss"] = True
            self._watch_task_loss(loss)
        return loss

    def _watch_task_loss(self, loss: Tensor) -> None:
        watch: TermWatch | None = self.__dict__.get("_term_watch")
        if watch is not None and watch.task is None:
            watch.task = loss

    def pseudo_logits(self, x: Any) -> Tensor:
        """Logits ``[N, C, ...]`` to read pseudo labels from, without gradient: the student's own, or a teacher's."""
        with without_graph():
            return self(x)

    def teacher_module(self) -> nn.Module | None:
        """The network that gives the pseudo labels, where that is not the student; a teacher mixin answers."""
        return None

    def unpack_batch(self, batch: Any) -> tuple[Any, Tensor]:
        """``(x, target)`` of a batch: the host's own method if it has one, else the first two items."""
        host = super()
        if hasattr(host, "unpack_batch"):
            return host.unpack_batch(batch)
        if not isinstance(batch, (tuple, list)) or len(batch) < 2:
            raise InvalidValueError(
                f"The batch is a {type(batch).__name__}, not (x, target, ...). Define "
                f"unpack_batch(batch) -> (x, target) and pack_batch(batch, x, target) -> batch in {self._host_name}."
            )
        return batch[0], batch[1]

    def pack_batch(self, batch: Any, x: Any, target: Tensor) -> Any:
        """``batch`` with its inputs and target exchanged."""
        host = super()
        if hasattr(host, "pack_batch"):
            return host.pack_batch(batch, x, target)
        items = (x, target, *batch[2:])
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)

    # Lightning's hooks.

    def on_fit_start(self) -> None:
        super().on_fit_start()
        term_log(self).clear()
        self.__dict__["_lengths"] = {}
        ramps = [f"{technique.stem}_ramp" for technique in self.active_techniques()]
        self.__dict__["_ramps"] = [ramp for ramp in ramps if getattr(self, ramp, None) is not None]
        self._release_states()
        own = [m for m in self.children() if isinstance(m, StepState)]
        if states := [m for state in own for m in state.modules() if isinstance(m, StepState)]:
            self.__dict__["_states"] = states
            hooks = (hook for state in states for hook in after_each_step(self.trainer.optimizers, state.commit))
            self.__dict__["_state_hooks"] = [*hooks]
            for state in states:  # of what was recorded outside of a fit
                state.forget()
        active = self.active_techniques()
        names = ", ".join(t.__name__ for t in active)
        if active and not self.automatic_optimization:
            raise MisconfigurationException(
                f"{names}: mixins need automatic optimization, but {self._host_name} sets "
                "self.automatic_optimization = False. Remove that line, or the mixins."
            )
        strategy = type(self.trainer.strategy).__name__
        fit = (True, "fsdp2") if strategy == "ModelParallelStrategy" else (True,)
        unfit = ", ".join(t.__name__ for t in active if t.sharded not in fit)
        if unfit and strategy in _SHARDED_STRATEGIES:
            raise MisconfigurationException(
                f"{unfit} cannot train under {strategy}, which splits each parameter over the processes. "
                "Use preset:ddp."
            )
        if active:
            check_plan(self)
            rank_zero_info(plan(self, self.trainer.callbacks).table(short=True))  # type: ignore[attr-defined]
        for logger in self.trainer.loggers:
            logger.log_hyperparams(self.tuning_settings())

    def on_rewind(self) -> None:
        """A guard has put weights, buffers and the optimizer's state back to those of an earlier step. What repeats a
        buffer's value reads it again."""

    def on_fit_end(self) -> None:
        super().on_fit_end()
        self._release_states()

    def _release_states(self) -> None:
        for hook in self.__dict__.pop("_state_hooks", ()):
            hook.remove()
        for state in self.__dict__.pop("_states", ()):
            state.forget()

    @_restricted_classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> Any:
        """As Lightning's. Hyper-parameters of the checkpoint that the host does not take are left out, as they are for
        a module without mixins; Lightning itself hands them all to an ``__init__`` with ``**kwargs``. The file's
        checksums are compared, and only data are unpickled unless a local file comes with ``weights_only=False``."""
        token = given_at_load.set(frozenset(kwargs))
        try:
            return load_checked(super().load_from_checkpoint, *args, **kwargs)
        finally:
            given_at_load.reset(token)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the class, and the techniques' settings: ``load_from_checkpoint`` needs them also where the host saves
        none."""
        super().on_save_checkpoint(checkpoint)
        note_class(self, checkpoint)
        if checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_NAME, "kwargs") == "kwargs":
            saved = checkpoint.setdefault(self.CHECKPOINT_HYPER_PARAMS_KEY, {})
            for technique in techniques_of(type(self)):
                for name in own_arguments(technique):
                    saved.setdefault(name, configured(self, name))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        output = super().training_step(batch, batch_idx)
        if isinstance(output, Mapping) and "loss" not in output:
            raise MisconfigurationException(
                f"{self._host_name}.training_step returned a dict with the keys {sorted(output)}. Give it the key "
                "'loss'."
            )
        if output is not None:
            if not self.__dict__.get("_saw_compute_loss"):
                self._check_loss_is_used()
            self._watch_task_loss(output["loss"] if isinstance(output, Mapping) else output)
        return output

    def _check_loss_is_used(self) -> None:
        """A host whose training_step never calls compute_loss would leave the mixins that change the loss dead."""
        dead = [t.__name__ for t in self.active_techniques() if "compute_loss" in members(t)]
        if dead:
            raise MisconfigurationException(
                f"{self._host_name}.training_step does not call self.compute_loss(logits, target), so "
                f"{', '.join(dead)} would do nothing. Call it there instead of the loss function."
            )
        self.__dict__["_saw_compute_loss"] = True

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        states = self.__dict__.get("_states", ())
        if states and not self.trainer.fit_loop._should_accumulate():
            for state in states:  # what is left had its step skipped
                state.forget()
        term_log(self).hand_over_step(self)

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        term_log(self).hand_over_epoch(self)


def add_to_loss(output: Any, term: Tensor) -> Any:
    """What a ``training_step`` returned, with ``term`` added to its loss; None (a skipped step) stays None."""
    if output is None:
        return None
    if isinstance(output, Mapping):
        return {**output, "loss": output["loss"] + term}
    return output + term
