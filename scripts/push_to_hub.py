"""Publish a saved MP-Former on the Hub.

python scripts/push_to_hub.py outputs/yours you/your-model
python scripts/push_to_hub.py outputs/yours you/your-model --with-code --private

Plain: whoever loads it installs this package. `--with-code` puts the code beside the weights, so that it runs without
the package: `pipeline("image-segmentation", model="you/your-model", trust_remote_code=True)`. Everything goes up in one
commit: a push that breaks off leaves the repository as it was. Log in first with `hf auth login`.
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":  # as a script: find the package `mpformer_hf`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from mpformer_hf.publishing import push


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of a saved model with its image processor")
    parser.add_argument("repo", help="name on the Hub: you/your-model")
    parser.add_argument("--with-code", action="store_true", help="put the code beside the weights")
    parser.add_argument("--private", action="store_true", help="a new repository is private")
    parser.add_argument("--revision", help="branch to push to, made if it is not there; default: main")
    args = parser.parse_args(argv)
    try:
        print(push(args.folder, args.repo, args.with_code, args.private, args.revision))
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
