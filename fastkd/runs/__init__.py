"""One module per command of the trainer, from a configuration to its report: train, cache, generate, ..."""
