"""Directories of shards with a manifest: a teacher's distributions, or the texts that it wrote.

Shards are written whole and renamed into place, and files are checked before they are read. Nothing here is
ever unpickled, and no file outside the directory is touched.
"""

from fastkd.corpora.store.generated import generated_manifest, open_generated
from fastkd.corpora.store.manifest import Manifest
from fastkd.corpora.store.reader import CacheReader
from fastkd.corpora.store.writer import Writer

__all__ = ["CacheReader", "Manifest", "Writer", "generated_manifest", "open_generated"]
