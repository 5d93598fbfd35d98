"""What the scripts in this folder share."""

# The oldest glibc that each kind of wheel works with. The CUDA sources destroy a variable of each thread,
# which takes glibc 2.18, and the next version that auditwheel knows is 2.24.
GLIBC = {"cpu": "2.17", "cuda": "2.24"}


class Failure(Exception):
    """A step failed; the message states which one, and why."""
