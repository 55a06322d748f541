"""Publish a saved MP-Former on the Hub.

mpformer push outputs/yours you/your-model
mpformer push outputs/yours you/your-model --with-code --private

Users of the model install this package, unless `--with-code` uploads the code with the weights:
`pipeline("image-segmentation", model="you/your-model", trust_remote_code=True)`. A push is one commit; a failed push
leaves the repository unchanged. Log in first with `hf auth login`.
"""

import argparse
from pathlib import Path

from ..hub.publishing import push


def main(argv: list[str] | None = None) -> None:
    """
    Raises:
        ValueError: the folder or the name is invalid, or the Hub refused the push.
    """
    parser = argparse.ArgumentParser(
        "mpformer push", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder of a saved model with its image processor")
    parser.add_argument("repo", help="name on the Hub: you/your-model")
    parser.add_argument("--with-code", action="store_true", help="upload the code with the weights")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", help="branch to push to, created if it does not exist; default: main")
    args = parser.parse_args(argv)
    print(push(args.folder, args.repo, args.with_code, args.private, args.revision))
