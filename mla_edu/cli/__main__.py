"""``python -m mla_edu.cli``."""

from mla_edu.cli import app

app(prog_name="mla-edu")
