"""What all metrics have in common: they take one image at a time, and `evaluate.combine` takes them."""

import tempfile

import datasets
import evaluate
from datasets import Features


class ImageMetric(evaluate.Metric):
    """Keeps little of each image; `compute` sums it over all processes. Subclasses have `reset`, `add_image` and
    `scores`."""

    description: str  # what is computed
    inputs: str  # form of predictions and references
    features: Features = Features({"predictions": {}, "references": {}})

    def __init__(self, *args, cache_dir: str | None = None, **kwargs):
        # `evaluate` makes this folder, though nothing is written to it; the home folder may be read-only.
        super().__init__(*args, cache_dir=cache_dir or tempfile.gettempdir(), **kwargs)
        self.reset()

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.description, citation="", inputs_description=self.inputs, features=type(self).features
        )

    def reset(self) -> None:
        """Forget all images."""
        raise NotImplementedError

    def add_image(self, prediction, reference) -> float | None:
        """Add one image; returns its main score, None if that is not defined.

        Raises:
            ValueError: prediction and reference do not fit.
        """
        raise NotImplementedError

    def scores(self) -> dict:
        """Scores of all images of all processes."""
        raise NotImplementedError

    def add(self, *, prediction=None, reference=None, predictions=None, references=None) -> float | None:
        """Add one image, see `add_image`. `evaluate.combine` gives one image by the names of several."""
        given = (predictions, references) if prediction is None else (prediction, reference)
        return self.add_image(*given)

    def add_batch(self, *, predictions, references) -> None:
        """Add several images, see `add_image`."""
        for prediction, reference in zip(predictions, references, strict=True):
            self.add_image(prediction, reference)

    def compute(self, *, predictions=None, references=None) -> dict:
        """Scores of all images since the last call, with those that are given."""
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references)
        scores = self.scores()
        self.reset()
        return scores


def maps_of_integers() -> datasets.Sequence:
    """Feature of a map of ids, `[H, W]`."""
    return datasets.Sequence(datasets.Sequence(datasets.Value("int64")))
