"""A teacher whose weights are the moving average of the student's."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_tuning.errors import InvalidValueError, NoEffectError, check_choice, check_range
from lightning_tuning.functional import ModuleAverage, ema_decay, half_life_decay, reshard
from lightning_tuning.mixins.base import TuningMixin
from lightning_tuning.mixins.plan import Cost
from lightning_tuning.mixins.step_state import StepState
from lightning_tuning.timing.step_hook import after_each_step

_DECAY = 0.999


class EMATeacherMixin(TuningMixin):
    """Keeps a teacher, the exponential moving average of the weights (Tarvainen & Valpola, 2017).

    The teacher answers whenever the module is in evaluation mode, and gives the pseudo labels of the mixins that stand
    right of it. It is a submodule ``ema_teacher``: saved, resumed, loaded and moved with the module, and never trained.

    Args:
        ema_teacher_decay: Share of the old average that stays at each optimizer step, in ``[0, 1]``: 0.999 averages
            over about 1000 steps, 0 makes the teacher the student. Off: None.
        ema_teacher_half_life: Optimizer steps, > 0, in which the share of a step's weights in the average falls by
            half, in place of the decay, which is then ``0.5 ** (1 / half_life)``: 693 is a decay of 0.999. Leave the
            decay at its default or at None with it. Off: None.
        ema_teacher_warmup: Whether the decay starts as ``1 - 1 / (step + 1)``, so that the first weights are soon
            forgotten.
        ema_teacher_buffers: What happens to floating buffers such as batch norm's running statistics: ``average``
            them like weights or ``copy`` them. Integer buffers are copied. With ``own`` the teacher's batch norm
            normalises the inputs that it labels by their own statistics and keeps running statistics of them, for
            evaluation; other buffers are averaged.
        ema_teacher_evaluates: Whether the teacher answers in evaluation mode (validation, test, prediction).
        ema_teacher_labels: Whether the teacher gives the pseudo labels; otherwise the student does.

    Raises:
        InvalidValueError: The decay is outside ``[0, 1]``, the half-life is not positive, both are given, or the buffer
            policy is unknown.
        NoEffectError: The statistics are to be the teacher's own, and nothing asks it for labels.

    Source: Tarvainen & Valpola, 2017, "Mean teachers are better role models", section 2; warm-up as in the authors'
    code. A step that fp16's gradient scaler skipped changes nothing here either.
    """

    stem = "ema_teacher"
    stage = "teacher"
    off = {"ema_teacher_decay": None, "ema_teacher_half_life": None}
    needs = ("training_step", "forward")
    sharded = "fsdp2"
    changes = ("evaluation",)

    ema_teacher_updates: Tensor

    def __init__(
        self,
        *args: Any,
        ema_teacher_decay: float | None = _DECAY,
        ema_teacher_half_life: float | None = None,
        ema_teacher_warmup: bool = True,
        ema_teacher_buffers: Literal["average", "copy", "own"] = "average",
        ema_teacher_evaluates: bool = True,
        ema_teacher_labels: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if ema_teacher_decay is not None:
            check_range("ema_teacher_decay", ema_teacher_decay, 0.0, 1.0)
        if ema_teacher_half_life is not None:
            check_range("ema_teacher_half_life", ema_teacher_half_life, open_low=True)
            if ema_teacher_decay not in (None, _DECAY):
                raise InvalidValueError(
                    f"ema_teacher_decay is {ema_teacher_decay!r} and ema_teacher_half_life {ema_teacher_half_life!r}, "
                    "but each sets the other. Give one of them."
                )
        check_choice("ema_teacher_buffers", ema_teacher_buffers, ("average", "copy", "own"))
        self.ema_teacher_decay = ema_teacher_decay
        self.ema_teacher_half_life = ema_teacher_half_life
        self.ema_teacher_warmup = ema_teacher_warmup
        self.ema_teacher_buffers = ema_teacher_buffers
        self.ema_teacher_evaluates = ema_teacher_evaluates
        self.ema_teacher_labels = ema_teacher_labels
        self._ema_labelled = False

    @property
    def _ema_decay(self) -> float | None:
        if self.ema_teacher_half_life is not None:
            return half_life_decay(self.ema_teacher_half_life)
        return self.ema_teacher_decay

    def extra_cost(self) -> Cost:
        return Cost(memory="a copy of the module")

    @property
    def _teacher(self) -> nn.Module | None:
        # Past nn.Module.__getattr__, so that a host may call eval() or forward in its __init__.
        return self._modules.get("ema_teacher")

    def configure_model(self) -> None:
        """Copies the student. Not done in ``__init__``: weights loaded later would miss the teacher."""
        if self._device_mesh is None:
            super().configure_model()
            self._make_teacher()
        else:
            self._configure_shards(self._device_mesh)

    def _configure_shards(self, mesh: Any) -> None:
        """What the host shards in this hook cannot be copied: the copy is made before, and sharded by the same hook."""
        self._device_mesh = None
        makes = self._teacher is None
        self._make_teacher()
        self._device_mesh = mesh
        teacher = self._modules.pop("ema_teacher", None)  # so that the host sees no more than its own parameters
        super().configure_model()
        if teacher is not None:
            self.ema_teacher = teacher
            if makes:
                teacher._device_mesh = mesh
                super(EMATeacherMixin, teacher).configure_model()  # type: ignore[misc]
                teacher.requires_grad_(False).eval()

    def _make_teacher(self) -> None:
        if self._ema_decay is None or self._teacher is not None:
            return
        teacher = copy.deepcopy(self)
        for name, child in list(teacher.named_children()):
            if isinstance(child, StepState):  # what a technique of the student keeps
                delattr(teacher, name)
        self.ema_teacher = teacher.requires_grad_(False).eval()
        self.register_buffer("ema_teacher_updates", torch.zeros((), dtype=torch.long))

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """A state with a teacher makes one (ddp_spawn's main process has none yet); one without starts it anew."""
        if "ema_teacher_updates" in state_dict:
            self._make_teacher()
        elif self._teacher is not None:
            own = self._teacher.state_dict().keys()
            teacher = {f"ema_teacher.{name}": value for name, value in state_dict.items() if name in own}
            state_dict = {**state_dict, **teacher, "ema_teacher_updates": torch.zeros((), dtype=torch.long)}
        return super().load_state_dict(state_dict, *args, **kwargs)

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        if self._teacher is not None:
            self._teacher.eval()
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.training and self._teacher is not None and self.ema_teacher_evaluates:
            return self._teacher(*args, **kwargs)
        return super().forward(*args, **kwargs)

    def pseudo_logits(self, x: Any) -> Tensor:
        if self._teacher is None or not self.ema_teacher_labels:
            return super().pseudo_logits(x)
        with torch.no_grad(), self._ema_statistics(self._teacher):
            return self._teacher(x)

    @contextmanager
    def _ema_statistics(self, teacher: nn.Module) -> Iterator[None]:
        """Within it, the teacher's own batch norm trains if the student's does. Running statistics move in the first
        pass of each batch alone, whatever the number of techniques and views that ask."""
        if self.ema_teacher_buffers != "own":
            yield
            return
        students = dict(self.named_modules())
        norms = [(m, m.track_running_stats) for name, m in _batch_norms(teacher) if students[name].training]
        for norm, tracks in norms:
            norm.training, norm.track_running_stats = True, tracks and not (self._ema_labelled or self.replaying)
        try:
            yield
        finally:
            for norm, tracks in norms:
                norm.training, norm.track_running_stats = False, tracks
            self._ema_labelled = True

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.ema_teacher_buffers != "own" or self._teacher is None:
            return super().training_step(batch, batch_idx)
        self._ema_labelled = False
        output = super().training_step(batch, batch_idx)
        if self._ema_is_idle(output):
            raise NoEffectError(
                "ema_teacher_buffers is 'own', but nothing asks the teacher for labels, so its batch norm statistics "
                f"would stay those of the first weights. Give {self._host_name} a technique that learns from the "
                "teacher, such as MeanTeacherMixin, or write ema_teacher_buffers: average."
            )
        return output

    def _ema_is_idle(self, output: Any) -> bool:
        """Whether nothing has asked the teacher for labels before the first optimizer step, though it keeps statistics
        of what it labels."""
        in_first_step = self._trainer is not None and self._ema_updates == 0
        return in_first_step and output is not None and not self._ema_labelled and any(_batch_norms(self))

    def teacher_module(self) -> nn.Module | None:
        return self._teacher if self.ema_teacher_labels else super().teacher_module()

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self._teacher is None:
            return
        if all(m.training for name, m in self.named_modules() if not name.startswith("ema_teacher")):
            # Lightning would warn of the teacher, which belongs in evaluation mode; others' warnings stay.
            warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode at the start of training")
        frozen = {id(p) for p in self._teacher.parameters()}
        self._release_optimizers()
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:  # a host's own self.parameters() includes the teacher's
                group["params"] = [p for p in group["params"] if id(p) not in frozen]

    def on_fit_end(self) -> None:
        super().on_fit_end()
        self._release_optimizers()

    def _release_optimizers(self) -> None:
        for hook in self.__dict__.pop("_ema_hooks", ()):
            hook.remove()
        self.__dict__["_ema_hooks"] = []

    def on_train_start(self) -> None:
        super().on_train_start()
        if self._teacher is None:
            return
        self._ema_reshard()
        keeps = _is_batch_norm if self.ema_teacher_buffers == "own" else None
        self._ema_average = ModuleAverage(self._teacher, self, self.ema_teacher_buffers != "copy", keeps)
        # Read once: the buffer lives on the device, where a look at each step would wait for it.
        self._ema_updates = int(self.ema_teacher_updates)
        if self._ema_updates == 0 and self.trainer.ckpt_path is None:  # weights may have been loaded since the copy
            ModuleAverage(self._teacher, self).update(decay=0.0)
        # Not before: restoring a sharded optimizer steps it.
        self.__dict__["_ema_hooks"] = after_each_step(self.trainer.optimizers, self._follow)

    def on_rewind(self) -> None:
        super().on_rewind()
        if self._teacher is not None:
            self._ema_updates = int(self.ema_teacher_updates)

    def _follow(self) -> None:
        """Move the teacher."""
        self._ema_reshard()
        self._ema_updates += 1
        self.ema_teacher_updates += 1
        self._ema_average.update(ema_decay(self._ema_updates, self._ema_decay or 0.0, self.ema_teacher_warmup))

    def _ema_reshard(self) -> None:
        if self._device_mesh is not None and self._teacher is not None:
            reshard(self._teacher)


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm)


def _batch_norms(module: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    return ((name, m) for name, m in module.named_modules() if isinstance(m, _BatchNorm))
