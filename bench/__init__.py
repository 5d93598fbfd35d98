"""Entry points of pytest-benchmark for the suite of ``fastkd bench``, its results, and the notes on them."""
