"""The command ``lightning-tuning``, also ``python -m lightning_tuning``."""

import os
import sys

from lightning_tuning.cli.pages import answer

_SIGPIPE_CODE = 141


def main() -> int:
    """Answer at once what can be, else load the training code, which takes seconds, and run the command.

    Ctrl-C meanwhile ends it quietly, and so does a reader of the output that has seen enough, such as ``head``.
    """
    try:
        code = _answer_or_run()
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the end
        return _SIGPIPE_CODE
    return code


def _answer_or_run() -> int:
    if (code := answer(sys.argv[1:])) is not None:
        return code
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for classes of the user's, my_module.MyModel; ``python -m`` has it already
    try:
        from lightning_tuning.cli.tuning_cli import main as run
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
