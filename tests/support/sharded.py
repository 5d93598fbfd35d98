"""A trainer that shards its student with FSDP2 on a CPU."""

from __future__ import annotations

from accelerate import DistributedType, FullyShardedDataParallelPlugin, PartialState

from fastkd.trainer import DistillationTrainer


class Sharded(DistillationTrainer):
    """Shards as on GPUs. `accelerate` shards on a CPU only if its state is set to FSDP explicitly."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
            state_dict_type="FULL_STATE_DICT",
            reshard_after_forward=True,
        )
        self.accelerator.state.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.accelerator.state.fsdp_plugin = plugin
        self.is_fsdp_enabled = True
