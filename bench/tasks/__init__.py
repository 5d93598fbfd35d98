"""``python -m bench.tasks EXAMPLES --out DOCS``: writes the page of results from the runs' own reports.

Every folder of EXAMPLES with an ``example.yaml`` is a task. That file names the task's runs and the
directories of their ``report.json``; :mod:`bench.tasks.description` lists its fields. The numbers of all
reports are kept as JSON, one file for each task (:mod:`bench.tasks.records`), and the page is written from
these: it has a table, a picture and the claims of each task with the numbers that bear them out or refute
them, and says of a run without a report that it is missing. Equal reports give an equal page, byte for byte.
"""
