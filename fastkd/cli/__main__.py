"""``python -m fastkd.cli``, which is also how ``torchrun -m fastkd.cli`` starts it."""

import sys

from fastkd.cli import main

sys.exit(main())
