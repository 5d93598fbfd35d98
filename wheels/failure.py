"""The error of the scripts in this folder."""


class Failure(Exception):
    """A step failed; the message states which one, and why."""
