"""Fine-tune MP-Former with Accelerate: `mpformer train`, from a clone.

accelerate launch -m training.finetune your_dataset --config own_dataset --task instance --output_dir outputs/yours
"""

from mpformer_hf.cli.train import main
from mpformer_hf.utils.command import run_command

if __name__ == "__main__":
    run_command(main)
