"""What is refined or audited, and where results are written."""

from dataclasses import dataclass
from pathlib import Path

from ..inference.arguments import POLYGONS, TOOLS, check_polygons
from ..utils.arguments import CheckedArguments, argument, option


@dataclass
class RefinementArguments(CheckedArguments):
    """Which annotations are refined, and how."""

    _argument_group_name = "refinement"

    annotations: Path = argument("annotations", "COCO file, or folder of YOLO's text files")
    images: Path = argument("photos", "folder of the images")
    output: Path = argument("output", "new folder, or the folder of a run to resume")
    rounds: int = option(1, "Number of rounds; each refines the masks of the one before.", within="[1, 100]")
    scale: float = option(1.0, "Image size relative to the processor's.", within="(0, 16]")
    boxes_only: bool = option(False, "Refine from the boxes, also where there are masks.")
    min_pixels: int = option(0, "Remove parts and fill holes of fewer pixels; 0: neither.", within="[0, inf)")
    overlays: bool = option(False, "Also write pictures before and after.")
    formats: list[str] = option([], "Also write files for these annotation tools.", choices=TOOLS)
    polygons: float | None = option(None, POLYGONS, within="[0, inf)")

    def __post_init__(self):
        super().__post_init__()
        check_polygons(self.polygons, self.formats)


@dataclass
class AuditArguments(CheckedArguments):
    """What an audit writes."""

    _argument_group_name = "audit"

    output: Path = argument("output", "new folder")
    min_suspicion: float = option(0.2, "Leave out findings below this suspicion.", within="[0, 1]")
    num_pictures: int = option(60, "Number of findings drawn on the page.", within="[0, 10000]")
    formats: list[str] = option(["cvat"], "Annotation tools that get the suggestions.", choices=TOOLS)
    polygons: float | None = option(None, POLYGONS, within="[0, inf)")

    def __post_init__(self):
        super().__post_init__()
        check_polygons(self.polygons, self.formats)
