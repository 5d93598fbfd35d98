"""The end of the scripts that torchrun starts once per rank."""

from __future__ import annotations

import torch.distributed


def leave_process_group() -> None:
    """Leave the process group, if there is one: otherwise its threads may abort the process at its end."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
