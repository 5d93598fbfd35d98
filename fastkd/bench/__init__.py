"""The benchmark behind ``fastkd bench``: cases, peers, oracle, timing, floors, memory, table and pictures.

``cases`` defines a case, ``options`` what the user selects, ``suite`` and ``plan`` the cases that a run
measures, in their order, and ``variants`` the other forms of ``kd_loss``. ``routes`` and ``peers`` define the
losses that are compared, and ``plain`` those that users write by hand. ``oracle`` computes the result that
all of them must reproduce. ``device`` measures time and memory on a CPU and on a GPU, and ``floor`` the
lowest time that a case can take there. ``measure`` takes one route on one case, ``jobs`` all routes on all
cases, and ``run`` runs the jobs, in this process or, by ``allocators``, in one process for each allocator
mode. ``results`` keeps the file, ``table`` makes tables of it, which ``render`` writes as text, and ``plot``
draws pictures.

``call`` and ``trainer`` time a small call and a training step; each is run with ``python -m``.
"""
