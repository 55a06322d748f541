"""`accelerate launch -m mpformer_hf.training`: see `finetune`."""

from ..utils.command import run_command
from .finetune import main

if __name__ == "__main__":
    run_command(main)
