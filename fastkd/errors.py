"""The exceptions that fastkd defines."""


class BackendUnavailable(RuntimeError):
    """The named backend cannot run here; the message gives the reason and the remedy."""


class Diverged(RuntimeError):
    """The student's weights are no longer finite numbers, so nothing that they give means anything."""


class Unsupported(ValueError):
    """An adapter in ``fastkd.integrations`` cannot do this; the message says what to do instead."""
