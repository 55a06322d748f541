"""Serve a model over HTTP, as an example of a deployment.

mpformer serve outputs/yours --port 8000
curl --data-binary @photo.jpg http://127.0.0.1:8000/predict

One process and one model; requests that wait are predicted together. Requests and images that are too large are
refused, and so are requests beyond the queue. There is no authentication: put it behind a server that has it. Needs
`pip install "mpformer-hf[serve]"`.
"""

import argparse

from ..inference.predictor import InferenceOptions, Predictor
from ..model.image_processing_mpformer import TASKS


def main(argv: list[str] | None = None) -> None:
    """
    Raises:
        ValueError: an argument or the model is invalid, or packages are missing.
    """
    parser = argparse.ArgumentParser(
        "mpformer serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="saved MP-Former or Mask2Former: folder or Hub name")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 for all")
    parser.add_argument("--port", type=int, default=8000, help="port")
    parser.add_argument("--device", help="device of the model, such as cpu; default: an accelerator if there is one")
    parser.add_argument("--task", choices=TASKS, help="default: the processor's")
    parser.add_argument("--threshold", type=float, help="smallest score; default: the processor's")
    parser.add_argument("--batch_size", type=int, default=4, help="waiting images of equal size predicted together")
    parser.add_argument("--max_waiting", type=int, default=64, help="requests that may wait; more get status 503")
    parser.add_argument("--max_pixels", type=int, default=40_000_000, help="largest image in pixels")
    parser.add_argument("--max_bytes", type=int, default=32 << 20, help="largest request in bytes")
    args = parser.parse_args(argv)
    for name in ("batch_size", "max_waiting", "max_pixels", "max_bytes"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1.")
    try:
        import uvicorn

        from .service import Limits, make_app
    except ImportError as error:
        raise ValueError(f'mpformer serve needs {error.name}: pip install "mpformer-hf[serve]".') from error
    options = InferenceOptions(threshold=args.threshold)
    predictor = Predictor.from_pretrained(args.model, args.task, options, args.device)
    id2label = predictor.model.config.id2label
    limits = Limits(args.max_bytes, args.max_pixels, args.max_waiting, args.batch_size)
    uvicorn.run(make_app(predictor, id2label, limits), host=args.host, port=args.port, log_level="warning")
