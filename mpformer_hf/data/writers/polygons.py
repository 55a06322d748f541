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
    """Outlines of the parts of a mask, whose holes are filled: closed lines `[points, 2]` of (x, y) in pixels.

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
    """COCO's polygons of a mask: x1 y1 x2 y2 ... of each part, see `mask_outlines`."""
    return [ring[:-1].flatten().tolist() for ring in mask_outlines(mask, tolerance) if len(ring) > 3]
