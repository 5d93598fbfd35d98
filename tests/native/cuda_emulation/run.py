"""``python run.py MODULE ARGUMENTS...``: run pytest with MODULE in place of fastkd._C."""

import importlib.util
import sys
from importlib.machinery import ExtensionFileLoader
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[3]))  # import the fastkd of this repository
torch.set_num_threads(1)  # the tensors are small
loader = ExtensionFileLoader("fastkd._C", sys.argv[1])
spec = importlib.util.spec_from_file_location("fastkd._C", sys.argv[1], loader=loader)
assert spec is not None
module = importlib.util.module_from_spec(spec)
loader.exec_module(module)
sys.modules["fastkd._C"] = module
sys.exit(pytest.main(sys.argv[2:]))
