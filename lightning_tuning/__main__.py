"""The command ``lightning-tuning``, also ``python -m lightning_tuning``."""

import os
import sys

from lightning_tuning.cli_pages import answer


def main() -> int:
    """Answer at once what can be, else load the training code, which takes seconds, and run the command.

    Ctrl-C meanwhile ends it quietly.
    """
    if (code := answer(sys.argv[1:])) is not None:
        return code
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for classes of the user's, my_module.MyModel; ``python -m`` has it already
    try:
        from lightning_tuning.cli import main as run
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
