"""The same lines under ``torch.compile``."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastkd.conformance.adapters.plain_torch import adapters as plain, lines, with_rows_selected


def compiled(*arguments: Any) -> Tensor:
    # After a few recompilations torch would run the lines uncompiled.
    torch.compiler.reset()
    return torch.compile(lines, fullgraph=True, dynamic=True)(*arguments)


adapters = (
    replace(
        plain[0],
        name="torch.compile",
        loss=with_rows_selected(compiled),
        function="torch.compile(fullgraph=True, dynamic=True) of the lines of plain torch",
    ),
)
