"""``python -m mla_edu.cli``."""

from mla_edu.__main__ import _main

_main()
