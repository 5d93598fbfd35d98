"""Directories of shards with a manifest: a teacher's distributions, or the texts that it wrote.

Shards are written whole and renamed into place, and files are checked before they are read. Nothing here is
ever unpickled, and no file outside the directory is touched.
"""

from fastkd.trainer.store.generated import open_generated
from fastkd.trainer.store.manifest import Manifest
from fastkd.trainer.store.reader import CacheReader
from fastkd.trainer.store.writer import Writer

__all__ = ["CacheReader", "Manifest", "Writer", "open_generated"]
