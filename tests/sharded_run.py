"""A training run with FSDP on the CPU. Accelerate enables FSDP on GPUs only, but what it calls works on the CPU
too."""

from accelerate.state import AcceleratorState, DistributedType, PartialState

from mpformer_hf.training import finetune
from mpformer_hf.utils.command import run_command


class ShardingState(AcceleratorState):
    """Uses the FSDP plugin on every device."""

    def __init__(self, *args, fsdp_plugin=None, **options):
        first = not self.initialized
        AcceleratorState.__init__(self, *args, fsdp_plugin=fsdp_plugin, **options)
        if first:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin


if __name__ == "__main__":
    import accelerate.accelerator

    accelerate.accelerator.AcceleratorState = ShardingState
    run_command(finetune.main)
