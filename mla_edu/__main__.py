"""The command ``mla-edu``, and ``python -m mla_edu``; Ctrl-C is one line from the first import on."""

import sys


def _main() -> None:
    """Run the command; its imports take a moment, in which Ctrl-C may come too."""
    try:
        from mla_edu.cli import app

        app(prog_name="mla-edu")
    except KeyboardInterrupt:
        print("mla-edu: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    _main()
