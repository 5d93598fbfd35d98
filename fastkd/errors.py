"""The exceptions that fastkd defines."""


class BackendUnavailable(RuntimeError):
    """The named backend cannot run here; the message gives the reason and the remedy."""
