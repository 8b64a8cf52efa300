"""``python -m crh_tune`` is ``crh-tune``."""

from crh_tune.cli import program

program()
