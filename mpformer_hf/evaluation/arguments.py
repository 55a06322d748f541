"""What is scored, and where results are written."""

from dataclasses import dataclass

from ..inference.arguments import FORMATS, LoadingArguments
from ..utils.arguments import CheckedArguments, argument, option

MOST_FREQUENT = "most_frequent_class"  # instead of a model


@dataclass
class ScoredModel(LoadingArguments):
    """A saved model, or a constant prediction."""

    model: str = argument("model", f"saved model: folder or Hub name; or {MOST_FREQUENT}: a constant prediction")


@dataclass
class EvaluationArguments(CheckedArguments):
    """What is scored, and where results are written."""

    _argument_group_name = "evaluation"

    batch_size: int = option(1, "Images of equal size per forward pass.", within="[1, inf)")
    output_file: str = option("", "New JSON file for the scores.")
    pictures: str = option("", "New folder for overlays.")
    num_pictures: int = option(8, "Number of overlays.", within="[0, inf)")
    diagnostics: str = option("", "New picture (png, svg) of mask consistency and query utilisation by layer.")
    report: str = option("", "New HTML page: scores by class, missed and false objects, worst and best images, ...")
    max_detections: int = option(100, "Best-scored instances of an image that are counted for AP.", within="[1, inf)")
    all_scores: bool = option(
        True, "Also score boundaries of instances and segments, and in panoptic segmentation the AP of things."
    )
    save_predictions: list[str] = option([], "Formats to write.", choices=FORMATS)
    predictions_dir: str = option("", "save_predictions: new folder.")

    def __post_init__(self):
        super().__post_init__()
        if bool(self.save_predictions) != bool(self.predictions_dir):
            raise ValueError("save_predictions and predictions_dir must be given together.")


@dataclass
class ComparedModels(CheckedArguments):
    """What is compared."""

    _argument_group_name = "comparison"

    models: list[str] = argument("models", "saved models, folders of runs or exported files; first: reference")
    no_labels: bool = option(False, "DATA is a folder of photos, or one photo, without labels.")
    device: str | None = option(None, "Of saved models: cpu, cuda:1, ...; default: an accelerator if there is one.")
    page: str = option("", "New HTML page: scores, curves of the runs, images where the models differ most.")
    num_pictures: int = option(8, "page: number of images.", within="[1, 1000]")
    output_file: str = option("", "New JSON file for the table.")
