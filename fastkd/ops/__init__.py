"""Operators registered with ``torch.library``: schemas, fake implementations, backend dispatch."""
