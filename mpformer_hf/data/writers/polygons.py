"""Outlines of masks as polygons."""

import numpy as np
from scipy.ndimage import binary_fill_holes


def require_polygons() -> None:
    """
    Raises:
        ValueError: scikit-image is missing.
    """
    try:
        import skimage.measure  # noqa: F401
    except ImportError as error:
        raise ValueError('Polygons need scikit-image: pip install "mpformer-hf[yolo]".') from error


def mask_outlines(mask: np.ndarray, tolerance: float = 0.0) -> list[np.ndarray]:
    """Outlines of the parts of a mask, whose holes are filled: closed lines, float64 `[points, 2]`, of (x, y) in
    pixels from 0 to width and height; the first point is the last one.

    Args:
        mask: bool `[H, W]`.
        tolerance: largest distance of a simplified line from the outline, in pixels.
    """
    from skimage.measure import approximate_polygon, find_contours

    padded = np.pad(binary_fill_holes(mask).astype(np.uint8), 1)
    rings = find_contours(padded, 0.5, fully_connected="high")  # (row, column) of pixel centres
    rings = [approximate_polygon(ring, tolerance) for ring in rings] if tolerance else rings
    return [(ring[:, ::-1] - 0.5).clip(0, (mask.shape[1], mask.shape[0])) for ring in rings]


def mask_polygons(mask: np.ndarray, tolerance: float) -> list[list[float]]:
    """COCO's polygons of a mask: x1 y1 x2 y2 ... of each part, see `mask_outlines`. What is too small to be simplified
    keeps its outline."""
    pairs = zip(mask_outlines(mask, tolerance), mask_outlines(mask), strict=True)
    return [(simple if len(simple) > 3 else exact)[:-1].flatten().tolist() for simple, exact in pairs]
