"""`python -m mpformer_hf` is the command `mpformer`."""

from .cli.main import main

if __name__ == "__main__":
    main()
