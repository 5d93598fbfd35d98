"""The namespace of fastkd's ops in ``torch.library``.

The kernel for the Hugging Face hub (``hub/build.py``) has another one, so that it and an installed fastkd can
be used in one process.
"""

from __future__ import annotations

from typing import Any

import torch

NAMESPACE = "fastkd"
LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
OPS: Any = getattr(torch.ops, NAMESPACE)
