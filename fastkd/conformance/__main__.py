"""The command ``python -m fastkd.conformance``."""

from __future__ import annotations

import sys

from fastkd.conformance.command import main

try:
    sys.exit(main(sys.argv[1:]))
except (ValueError, ImportError) as error:
    sys.exit(f"fastkd.conformance: {error}")
