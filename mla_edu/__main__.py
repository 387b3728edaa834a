"""The command ``mla-edu``, and ``python -m mla_edu``; Ctrl-C is one line from the first import on."""

import signal
import sys


def _main() -> None:
    """Run the command; its imports take a moment, in which Ctrl-C may come too."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        from mla_edu.cli import app

        app(prog_name="mla-edu")
    except KeyboardInterrupt:
        print("mla-edu: interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done: what Python does at its end is not interrupted


def _interrupt(*_: object) -> None:
    """What a scheduler sends before it kills does what Ctrl-C does: a training saves, processes are ended."""
    signal.raise_signal(signal.SIGINT)


if __name__ == "__main__":
    _main()
