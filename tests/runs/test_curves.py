import math

import pytest

from lightning_tuning.runs import JournalLogger, draw_curves, save_curves
from lightning_tuning.runs.curves import panel_of


def records():
    for step in range(20):
        yield {"step": step, "lr-SGD": 0.1}
        yield {"step": step, "grad_norm/total": 100.0 * 0.5**step}
        yield {"step": step, "epoch": step // 10, "train/loss_step": 1 / (step + 1), "train/rdrop": 0.3}
        if step % 10 == 9:
            yield {"step": step, "epoch": step // 10, "val/loss": 0.4, "val/accuracy": 0.9, "val/f1": 0.8}
            yield {"step": step, "epoch": step // 10, "train/loss_epoch": 0.5, "train/rdrop_epoch": 0.3}
    yield {"step": 20, "epoch": 2, "test/accuracy": 0.95, "test/only": 1.0}


def lines_of(figure, title):
    (axes,) = [a for a in figure.axes if a.get_title() == title]
    return {line.get_label(): line for line in axes.get_lines()}


def test_one_panel_for_each_metric():
    figure = draw_curves(records(), "digits")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["loss", "accuracy", "learning rate", "gradient norm", "f1", "rdrop"]
    assert figure.get_suptitle() == "digits"


def test_metrics_of_raw_weights_are_drawn_beside_those_of_the_average():
    figure = draw_curves([{"step": step, "val/loss": 0.4, "val/loss_raw": 0.5} for step in (3, 7)])
    lines = lines_of(figure, "loss")
    assert list(lines["val/loss_raw"].get_ydata()) == [0.5, 0.5]
    assert lines["val/loss_raw"].get_color() != lines["val/loss"].get_color()


def test_a_panel_holds_the_logged_values():
    lines = lines_of(draw_curves(records()), "loss")
    assert set(lines) == {"train/loss_step", "train/loss_epoch", "val/loss"}
    assert list(lines["train/loss_step"].get_ydata()) == [1 / (step + 1) for step in range(20)]
    assert list(lines["val/loss"].get_xdata()) == [9, 19]
    assert lines["train/loss_step"].get_color() == lines["train/loss_epoch"].get_color()
    assert lines["train/loss_step"].get_alpha() < lines["train/loss_epoch"].get_alpha() == 1
    assert lines["val/loss"].get_color() != lines["train/loss_epoch"].get_color()


def test_axes():
    axes = {a.get_title(): a for a in draw_curves(records()).axes}
    assert axes["gradient norm"].get_yscale() == "log"
    assert axes["loss"].get_yscale() == "linear"
    assert [a.get_xlabel() for a in axes.values()] == [""] * 3 + ["optimizer step"] * 3


def test_values_that_cannot_be_drawn_are_left_out():
    rows = [{"step": s, "train/loss": v} for s, v in enumerate([1.0, math.nan, math.inf, 2.0])]
    line = lines_of(draw_curves(rows), "loss")["train/loss"]
    assert list(line.get_xdata()) == [0, 3]
    assert draw_curves([{"step": 0, "epoch": 0, "train/loss": math.nan}]) is None


@pytest.mark.parametrize(
    ("key", "panel"),
    [
        ("train_loss", "loss"),
        ("val/acc", "accuracy"),
        ("train/fixmatch_epoch", "fixmatch"),
        ("grad_norm/head", "gradient norm"),
        ("lr-AdamW/pg1", "learning rate"),
        ("throughput", "throughput"),
        ("test/loss", None),
    ],
)
def test_panel_of(key, panel):
    assert panel_of(key) == panel


def test_saved_from_the_journal(tmp_path):
    logger = JournalLogger(tmp_path)
    assert save_curves(tmp_path) is None
    for record in records():
        logger.log_metrics(record, step=record["step"])
    path = save_curves(tmp_path)
    assert path == tmp_path / "curves.png"
    assert path.read_bytes().startswith(b"\x89PNG")


def test_many_parameter_groups_have_no_legend():
    rows = [{"step": 0, **{f"lr-SGD/pg{i}": 0.1 for i in range(1, 10)}}]
    (axes,) = draw_curves(rows).axes
    assert len(axes.get_lines()) == 9
    assert axes.get_legend() is None


def test_steps_are_whole_numbers():
    figure = draw_curves([{"step": step, "loss": 1.0} for step in range(3)])
    figure.canvas.draw()
    assert all(tick == int(tick) for tick in figure.axes[0].get_xticks())
