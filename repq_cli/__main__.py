"""``python -m repq_cli``."""

import sys

from repq_cli.cli import main

sys.exit(main())
