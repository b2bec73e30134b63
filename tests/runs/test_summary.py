from lightning_tuning.runs.summary import format_summary


def test_the_table():
    text = format_summary(
        {
            "metrics": {"test/accuracy": 0.97222, "test/loss": 0.1},
            "monitor": "val/accuracy",
            "best_value": 0.98,
            "best_checkpoint": "runs/a/1/checkpoints/best.ckpt",
            "steps": 40,
            "epochs": 2,
            "wall_time_seconds": 3.21,
            "folder": "runs/a/1",
            "curves": None,
        }
    )
    assert text.splitlines() == [
        "test/accuracy      0.9722",
        "test/loss          0.1",
        "best val/accuracy  0.98",
        "steps              40 (2 epochs)",
        "wall time          3.2 s",
        "folder             runs/a/1",
        "best checkpoint    runs/a/1/checkpoints/best.ckpt",
    ]
