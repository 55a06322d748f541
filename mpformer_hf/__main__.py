"""`python -m mpformer_hf COMMAND`, and `accelerate launch -m mpformer_hf COMMAND`."""

from .cli.main import main

if __name__ == "__main__":
    main()
