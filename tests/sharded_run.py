"""`training/finetune.py` with weights spread over processes without GPUs. Accelerate offers FSDP on GPUs only; what it
then calls works on the CPU too.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from accelerate.state import AcceleratorState, DistributedType, PartialState

from training import finetune


class ShardingState(AcceleratorState):
    """Takes the plugin that the environment asked for, whatever the device."""

    def __init__(self, *args, fsdp_plugin=None, **options):
        first = not self.initialized
        AcceleratorState.__init__(self, *args, fsdp_plugin=fsdp_plugin, **options)
        if first:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin


if __name__ == "__main__":
    import accelerate.accelerator

    accelerate.accelerator.AcceleratorState = ShardingState
    finetune.run(finetune.main)
