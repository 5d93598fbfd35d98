"""Benchmarks: the time of the losses beside the floor and beside the losses of other libraries."""
