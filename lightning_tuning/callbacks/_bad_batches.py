"""Which batches a guard refused: their samples, and a line for each in ``bad_batches.jsonl``."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from torch import Tensor, distributed
from torch.utils.data import DistributedSampler, SequentialSampler

from ._pictures import run_folder

if TYPE_CHECKING:
    from ._step_gate import SeenBatch, StepValues

FILE = "bad_batches.jsonl"
_NAMED = 8
"""Most batches, and samples of a batch, that a message names."""


def find_index(batch: Any) -> Any:
    """The ids of a batch's samples: ``batch["index"]`` or integers ``[N]`` as the third item; of a batch of several
    streams a dict of them. None if it has none."""
    if isinstance(batch, Mapping):
        if isinstance(batch.get("index"), Tensor):
            return batch["index"]
        streams = {name: find_index(part) for name, part in batch.items() if not isinstance(part, Tensor)}
        return {name: index for name, index in streams.items() if index is not None} or None
    if isinstance(batch, (tuple, list)) and len(batch) > 2:
        index = batch[2]
        if isinstance(index, Tensor) and index.ndim == 1 and not index.is_floating_point():
            return index
    return None


def note_bad_batches(
    trainer: Trainer, guard: str, batches: Sequence[SeenBatch], values: StepValues, reason: str
) -> list[dict[str, Any]]:
    """Write a line for each micro-batch that may be to blame. Every rank has to call it.

    Those whose own loss is not finite; if there are none, all of the window on all ranks.

    Args:
        trainer: The Trainer of the run.
        guard: Who refused them.
        batches: The window's, on this rank.
        values: What the step was judged by.
        reason: What was wrong.

    Returns:
        The lines, of all ranks.
    """
    own = [_row(trainer, guard, batch, values, reason) for batch in batches]
    ranks: list[Any] = [own]
    if trainer.world_size > 1:
        ranks = [None] * trainer.world_size
        distributed.all_gather_object(ranks, own)
    rows = [row for rank in ranks for row in rank]
    rows = [row for row in rows if row["loss"] is not None and not math.isfinite(row["loss"])] or rows
    folder = run_folder(trainer)
    if trainer.is_global_zero:
        lines = [json.dumps({key: _strict(value) for key, value in row.items()}, allow_nan=False) for row in rows]
        with contextlib.suppress(OSError):  # on a full disk the warning has to do
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / FILE, "a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)
    return rows


def blame(rows: Sequence[Mapping[str, Any]]) -> str:
    """One sentence that names the batches of these lines."""
    more = [f"{len(rows) - _NAMED} more"] if len(rows) > _NAMED else []
    return f"It was {'; '.join([*map(_named, rows[:_NAMED]), *more])}; see {FILE}."


def _named(row: Mapping[str, Any]) -> str:
    samples = row["samples"] if isinstance(row["samples"], Mapping) else {"": row["samples"]}
    parts = [f"batch {row['batch']} on rank {row['rank']}"]
    for stream, ids in samples.items():
        if ids is not None:
            some = [*map(str, ids[:_NAMED]), *(["..."] if len(ids) > _NAMED else [])]
            parts.append(f"{stream} samples {', '.join(some)}".strip())
    return ", ".join(parts)


def _row(trainer: Trainer, guard: str, batch: SeenBatch, values: StepValues, reason: str) -> dict[str, Any]:
    loss = None if batch.loss is None else float(batch.loss) * trainer.accumulate_grad_batches
    return {
        "guard": guard,
        "step": trainer.global_step,
        "epoch": trainer.current_epoch,
        "batch": batch.batch_idx,
        "rank": trainer.global_rank,
        "reason": reason,
        "loss": loss,
        "gradient_norm": values.norm,
        "samples": _samples(trainer, batch),
    }


def _strict(value: Any) -> Any:
    """Strict JSON has no numbers that are not finite; they become text as in the run's journal."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _samples(trainer: Trainer, batch: SeenBatch) -> Any:
    """The samples of a batch: positions in the dataset where the sampler can be asked again, else the batch's ids."""
    loaders: Any = trainer.train_dataloader
    loaders = loaders if isinstance(loaders, Mapping) else {"": loaders}
    drawn = {name: _drawn(loader, batch.batch_idx) for name, loader in loaders.items()}
    if any(samples is not None for samples in drawn.values()):
        return drawn.get("", drawn)
    if isinstance(batch.index, Mapping):
        return {name: index.tolist() for name, index in batch.index.items()}
    return None if batch.index is None else batch.index.tolist()


def _drawn(loader: Any, step: int) -> Any:
    sampler: Any = getattr(loader, "sampler", None)
    batches = getattr(loader, "batch_sampler", None)
    if hasattr(sampler, "indices_at"):
        drawn = sampler.indices_at(step % len(sampler))
        return drawn if len(drawn) > 1 else next(iter(drawn.values()))
    # Others draw from a random generator that has gone on since.
    if batches is not None and isinstance(sampler, (DistributedSampler, SequentialSampler)):
        return [*next(itertools.islice(iter(batches), step % len(batches), None))]
    return None
