"""What the scripts in this folder share."""

# The oldest glibc that each kind of wheel works with. CUDA 13 supports no Linux whose glibc is older than 2.28,
# which torch's own wheels need, too.
GLIBC = {"cpu": "2.17", "cuda": "2.28"}


class Failure(Exception):
    """A step failed; the message states which one, and why."""
