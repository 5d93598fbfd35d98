"""``python -m bench.tasks EXAMPLES --out DOCS``: writes the page of results from the runs' own reports.

Every folder of EXAMPLES with an ``example.yaml`` is a task. That file names the task's runs and the
directories of their ``report.json``; :mod:`bench.tasks.description` lists its fields. The page has a table
and a picture for each task, and says of a run without a report that it is missing. Equal reports give an
equal page, byte for byte.
"""
