"""The benchmark behind ``fastkd bench``: cases, peers, oracle, timing, floors, memory, table and pictures.

``cases`` says what is measured and ``plan`` in which order; ``routes`` and ``peers`` are the losses that are
compared, ``oracle`` is what all of them must equal; ``device`` has the clock and the memory of a CPU and of a
GPU, ``floor`` the least that a case can cost there; ``measure`` puts one number together, ``run`` all of
them; ``results`` is the file, ``table`` and ``plot`` are what is made of it.
"""
