"""Fine-tune MP-Former with Accelerate. See `mpformer_hf/training/finetune.py`, which this starts.

accelerate launch -m training.finetune --config training/recipes/own_dataset.yaml --dataset_name you/your-dataset \\
    --task panoptic --output_dir outputs/yours
"""

from mpformer_hf.training.finetune import main
from mpformer_hf.utils.command import run_command

if __name__ == "__main__":
    run_command(main)
