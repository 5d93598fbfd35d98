"""``fastkd demo``: a real distillation, from text to table, on this machine."""
