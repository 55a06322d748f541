"""Publish a saved MP-Former on the Hub.

mpformer push outputs/yours you/your-model
mpformer push outputs/yours you/your-model --with_code --private

Users of the model install this package, unless `--with_code` uploads the code with the weights:
`pipeline("image-segmentation", model="you/your-model", trust_remote_code=True)`. A push is one commit; a failed push
leaves the repository unchanged. Log in first with `hf auth login`.
"""

from ..hub.arguments import PublicationArguments
from ..utils.arguments import parse


def main(argv: list[str]) -> None:
    """
    Raises:
        ValueError: an argument is invalid, or the command fails.
    """
    (args,) = parse([PublicationArguments], argv, __doc__, "mpformer push")
    from ..hub.publishing import push

    print(push(args.folder, args.repo, args.with_code, args.private, args.revision))
