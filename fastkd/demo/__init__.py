"""``fastkd demo``: a real distillation, from text to table, on the machine at hand."""
