"""Exceptions that are fastkd's own."""


class BackendUnavailable(RuntimeError):
    """A backend was named that cannot run here; the message says why and what would mend it."""
