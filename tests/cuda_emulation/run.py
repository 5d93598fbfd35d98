"""``python run.py MODULE ARGUMENTS...``: pytest, with MODULE in the place of fastkd._C."""

import importlib.util
import sys
from importlib.machinery import ExtensionFileLoader

import pytest

loader = ExtensionFileLoader("fastkd._C", sys.argv[1])
spec = importlib.util.spec_from_file_location("fastkd._C", sys.argv[1], loader=loader)
assert spec is not None
module = importlib.util.module_from_spec(spec)
loader.exec_module(module)
sys.modules["fastkd._C"] = module
sys.exit(pytest.main(sys.argv[2:]))
