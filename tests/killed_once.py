"""A training run whose second process dies at step 4, but not if the file of the first argument exists."""

import os
import sys
from pathlib import Path

from mpformer_hf.training.engine import FineTuner
from mpformer_hf.training.finetune import main

if __name__ == "__main__":
    mark, optimize = Path(sys.argv[1]), FineTuner.optimize

    def dying(tuner, batches):
        if tuner.step == 4 and os.environ["RANK"] == "1" and not mark.exists():
            mark.touch()
            os._exit(9)
        return optimize(tuner, batches)

    FineTuner.optimize = dying
    main(sys.argv[2:])
