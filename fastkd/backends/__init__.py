"""Implementations of the row kernels; :mod:`fastkd.backends.registry` chooses among them."""
