"""Stands for fastkd's compiled module, which this kernel does not have."""

_C = None
IMPORT_ERROR = "the kernel from the hub has no compiled code: `pip install fastkd` and use its functions"
