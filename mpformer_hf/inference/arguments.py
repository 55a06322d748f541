"""Which model runs, where, and how images are predicted: the same in all commands and in Python."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..data.arguments import Task
from ..utils.arguments import CheckedArguments, argument, option

logger = logging.getLogger(__name__)
Dtype = Literal["float32", "bfloat16", "float16"]
PICTURES = ("overlays", "maps")  # folders of `mpformer predict`
FORMATS = (
    "coco",
    "coco_panoptic",
    "cityscapes",
    "ade20k",
    "yolo",
    "cvat",
    "labelme",
    "label_studio",
)  # see `data/writers`
TOOLS = ("cvat", "labelme", "label_studio", "yolo")  # those of annotation tools
POLYGONS = "cvat, label_studio: polygons instead of masks, at most this many pixels from the outlines."


def check_polygons(polygons: float | None, formats: list[str] | None) -> None:
    """
    Raises:
        ValueError: no format has polygons.
    """
    if polygons is not None and not {"cvat", "label_studio"} & set(formats or ()):
        raise ValueError("polygons is for the formats cvat and label_studio: give one of them to --formats.")


@dataclass
class LoadingArguments(CheckedArguments):
    """Which model runs, and where."""

    _argument_group_name = "model"

    model: str = argument("model", "saved MP-Former or Mask2Former: folder, Hub name or exported file")
    revision: str | None = option(None, "Branch, tag or commit of a Hub name.")
    device: str | None = option(None, "cpu, cuda:1, mps, ...; default: an accelerator if there is one.")
    dtype: Dtype = option("float32", "Precision of weights and activations.")
    compile: bool = option(False, "Compile the layers of the model: slower first batches, faster ones after them.")


@dataclass
class InferenceOptions(CheckedArguments):
    """Test-time augmentation, sliding windows, score threshold and cleaning.

    Attributes:
        flip: also predict the mirrored image.
        scales: image sizes relative to the processor's; the first one is the reference.
        window: side of square windows in pixels of the image; None = the full image at once.
        overlap: overlap of neighbouring windows as a share of their side, in [0, 1).
        threshold: smallest score; None = the processor's.
        nms: instances with at least this IoU with a better one of their class are left out, see `find_duplicates`.
        min_pixels: parts of segments below this size are removed and holes are filled, see `clean_mask`.

    Raises:
        ValueError: an option is out of range.
    """

    _argument_group_name = "large images and cleaning"

    flip: bool = option(False, "Also predict the mirrored image.")
    scales: list[float] = option([1.0], "Relative image sizes to predict.", within="(0, 16]")
    window: int | None = option(None, "Side of sliding windows in pixels; default: no windows.", within="[32, inf)")
    overlap: float = option(0.25, "Overlap of neighbouring windows, as a share of their side.", within="[0, 1)")
    threshold: float | None = option(None, "Smallest score; default: the processor's.", within="[0, 1]")
    nms: float | None = option(
        None,
        "Instance: remove an instance whose mask has at least this IoU with a better one of its class.",
        within="(0, 1]",
    )
    min_pixels: int = option(0, "Remove parts and fill holes of fewer pixels; 0: neither.", within="[0, inf)")

    def __post_init__(self):
        super().__post_init__()
        if not self.scales:
            raise ValueError("scales is empty; [1.0] is the processor's size.")
        if self.window is not None and self.overlap == 0:
            logger.warning("Windows do not overlap, so objects are cut at their borders; overlap 0.25 joins them.")

    @property
    def uses_tta(self) -> bool:
        return self.flip or tuple(self.scales) != (1.0,)


@dataclass
class PredictionArguments(CheckedArguments):
    """Which images are segmented, and what is written."""

    _argument_group_name = "prediction"

    source: str = argument("source", "folder, image, glob, video, or dataset (Hub name, or folder of parquet files)")
    output: Path = argument("output", "new folder, or the folder of a run to resume")
    task: Task | None = option(None, "Default: the processor's.")
    write: list[str] = option(
        list(PICTURES),
        "Pictures to write; video: overlays of a video as overlays.mp4.",
        choices=(*PICTURES, "video", "none"),
    )
    formats: list[str] | None = option(
        None, "Files for official and annotation tools; default: COCO's.", choices=(*FORMATS, "none")
    )
    polygons: float | None = option(None, POLYGONS, within="[0, inf)")
    image_ids: Path | None = option(None, "COCO JSON whose images give the ids by file name.")
    batch_size: int = option(4, "Images of equal size per forward pass.", within="[1, inf)")
    every: int = option(1, "Use every n-th image or frame only.", within="[1, inf)")
    split: str | None = option(None, "Split of a dataset; default: test.")
    shard: str | None = option(None, "Segment a part of the images only: 3/16 is the third of 16 parts.")

    def __post_init__(self):
        super().__post_init__()
        self.write = [] if self.write == ["none"] else self.write
        self.formats = [] if self.formats == ["none"] else self.formats
        check_polygons(self.polygons, self.formats)


@dataclass
class ServiceArguments(CheckedArguments):
    """Where a service listens, and what it accepts."""

    _argument_group_name = "service"

    host: str = option("127.0.0.1", "Address to listen at; 0.0.0.0 for all.")
    port: int = option(8000, "Port; 0: a free one.", within="[0, 65535]")
    task: Task | None = option(None, "Default: the processor's.")
    threshold: float | None = option(None, "Smallest score; default: the processor's.", within="[0, 1]")
    batch_size: int = option(4, "Waiting images of equal size that are predicted together.", within="[1, inf)")
    max_waiting: int = option(64, "Queue length; further requests get HTTP 503.", within="[1, inf)")
    max_pixels: int = option(16_000_000, "Largest image in pixels.", within="[1, inf)")
    max_bytes: int = option(32 << 20, "Largest request in bytes.", within="[1, inf)")
