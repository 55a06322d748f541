"""Serve a model over HTTP, with a page to try it.

mpformer serve outputs/yours --port 8000
curl --data-binary @photo.jpg http://127.0.0.1:8000/predict
curl -F image=@photo.jpg -F 'prompts={"boxes": [[10, 10, 90, 80]]}' http://127.0.0.1:8000/refine

One process and one model; requests that wait are predicted together. Requests and images that are too large are
refused, and so are requests beyond the queue. There is no authentication: put it behind a server that has it. Needs
`pip install "mpformer-hf[serve]"`.
"""

from ..inference.arguments import LoadingArguments, ServiceArguments
from ..utils.arguments import parse


def main(argv: list[str]) -> None:
    """
    Raises:
        ValueError: an argument is invalid, or the command fails.
    """
    loading, args = parse([LoadingArguments, ServiceArguments], argv, __doc__, "mpformer serve")
    try:
        from ..serving.service import serve
    except ImportError as error:
        raise ValueError(f'mpformer serve needs {error.name}: pip install "mpformer-hf[serve]".') from error
    serve(loading, args)
