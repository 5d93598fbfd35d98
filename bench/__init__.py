"""Benchmarks: what the losses cost beside the floor and beside what people use today."""
