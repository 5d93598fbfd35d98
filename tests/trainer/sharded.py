"""A trainer that shards its model, for scripts that run in the project's root."""

from tests.support.sharded import Sharded

__all__ = ["Sharded"]
