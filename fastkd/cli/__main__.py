"""Runs ``python -m fastkd.cli``; ``torchrun -m fastkd.cli`` starts this module too."""

import sys

from fastkd.cli import main

sys.exit(main())
