import warnings

from lightning.pytorch.utilities import rank_zero_info

from lightning_tuning.runs.quiet import quiet

TIP = "💡 Tip: For seamless cloud logging and experiment tracking, try installing [litlogger]"


def test_adverts_go_and_everything_else_stays(told):
    with quiet():
        rank_zero_info(TIP)
        rank_zero_info("Restored all states")
    rank_zero_info("Tip: For seamless")
    assert told.messages == ["Restored all states", "Tip: For seamless"]


def warned(message):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with quiet():
            warnings.warn(message, stacklevel=1)
    return bool(caught)


def test_warnings_by_their_text():
    best = "\"RunCheckpoint{'monitor': 'val/accuracy', 'mode': 'max'}\""
    ckpt = "Be aware that when using `ckpt_path`, callbacks have to be there. Please add the following callbacks: [{}]."
    assert not warned("The 'train_dataloader' does not have many workers which may be a bottleneck.")
    assert not warned("The number of training batches (3) is smaller than the logging interval Trainer(...=50).")
    assert not warned(ckpt.format(best))
    assert not warned(ckpt.format(f"{best}, {best}"))
    assert warned(ckpt.format(f"\"EarlyStopping{{'monitor': 'a'}}\", {best}"))
    assert not warned("Grad strides do not match bucket view strides.\ngrad.sizes() = [16, 1, 3, 3], strides()")
    assert warned("Grad strides do not match bucket view strides.\ngrad.sizes() = [16, 8, 3, 3], strides()")
    dump = "\n    Dump of a value that does not round-trip: a {} is serialized as {} and,\n    since the type\n"
    assert not warned(dump.format("tuple", "list"))
    assert warned(dump.format("set", "list"))
    assert warned("The dirpath has changed")
