"""One file per library, each of which a user could have written: a module with ``adapters``."""
