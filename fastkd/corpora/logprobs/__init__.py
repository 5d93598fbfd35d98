"""Log-probabilities that another program has computed: of a server, and of files in several layouts.

- :mod:`~fastkd.corpora.logprobs.position`: the distribution of one token.
- :mod:`~fastkd.corpora.logprobs.vllm`: the JSON of vLLM; files of it are in
  :mod:`~fastkd.corpora.logprobs.vllm_files`.
- :mod:`~fastkd.corpora.logprobs.axolotl`, :mod:`~fastkd.corpora.logprobs.distillkit`: the tables of data sets
  that those projects read.
- :mod:`~fastkd.corpora.logprobs.opened`: tells the layouts apart.
"""

from fastkd.corpora.logprobs.position import (
    RENORMALISED as RENORMALISED,
    Position as Position,
    row_key as row_key,
)
from fastkd.corpora.logprobs.vllm import positions as positions
