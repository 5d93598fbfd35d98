"""The benchmark behind ``fastkd bench``: cases, peers, oracle, timing, floors, memory, table and pictures.

``cases`` defines what is measured, and ``plan`` in which order. ``routes`` and ``peers`` define the losses
that are compared, and ``oracle`` computes the result that all of them must reproduce. ``device`` measures
time and memory on a CPU and on a GPU, and ``floor`` the lowest time that a case can take there. ``measure``
takes one route on one case, and ``run`` all of them. ``results`` writes the file, which ``table`` and
``plot`` turn into text and pictures.
"""
