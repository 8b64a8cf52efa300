"""``python -m crh_tune`` is ``crh-tune``."""

import sys

from crh_tune.cli import main

sys.exit(main())
