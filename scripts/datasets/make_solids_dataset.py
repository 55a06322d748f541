"""Generate a panoptic dataset: rendered solids on photographed grounds (with scikit-image, for its photographs).

python -m scripts.datasets.make_solids_dataset data/solids --train 2500 --validation 60 --test 100

Things: sphere, cube, cylinder, cone, shaded, with a shadow and a photograph as surface, seen from above. Stuff:
brick, grass, gravel, and photograph (of anything else). The splits share no photographed pixel: each has its own
photographs and its own strip of the three textures. About one image in twelve has no thing. The layout is that of
scripts/datasets/panoptic_parquet.py; the same seed gives the same files.
"""

from functools import cache

import numpy as np
from PIL import Image as PILImage

from mpformer_hf.utils.command import run_command

from .generated_dataset import beyond_border, parse_arguments, write_dataset
from .panoptic_parquet import Scene

TITLE = "Rendered solids on photographed grounds"
NAMES = ["sphere", "cube", "cylinder", "cone", "brick", "grass", "gravel", "photograph"]
NUM_THINGS = 4
SPHERE, CUBE, CYLINDER, CONE = range(NUM_THINGS)
PHOTOGRAPH = NAMES.index("photograph")
TINTS = {"brick": (1.25, 0.8, 0.65), "grass": (0.75, 1.15, 0.5), "gravel": (1.1, 1.05, 0.95)}
PHOTOGRAPHS = {
    "train": ("astronaut", "coffee", "hubble_deep_field", "immunohistochemistry", "moon", "retina"),
    "validation": ("camera",),
    "test": ("chelsea", "rocket"),
}
STRIPS = {"train": (0.0, 0.6), "validation": (0.6, 0.8), "test": (0.8, 1.0)}  # part of the width of a texture
EMPTY_SHARE = 1 / 12
SUPERSAMPLING = 2
LEAST_VISIBLE = 0.5  # share of a solid that later ones must leave visible
AMBIENT = 0.45
FACETS = 40


@cache
def photograph(name: str) -> np.ndarray:
    """One of scikit-image's photographs, uint8 `[H, W, 3]`.

    Raises:
        ImportError: scikit-image is missing; the message has the command.
    """
    try:
        from skimage import data
    except ImportError as error:
        raise ImportError('scikit-image is missing: pip install "mpformer-hf[quickstart]"') from error
    image = getattr(data, name)()
    return image if image.ndim == 3 else np.repeat(image[..., None], 3, -1)


def random_patch(rng: np.random.Generator, image: np.ndarray, sides: tuple[int, int], size: int) -> np.ndarray:
    """A square of `image`, of a random side between two, mirrored at random, float `[size, size, 3]` in 0 to 255."""
    side = int(rng.integers(sides[0], min(sides[1], *image.shape[:2]) + 1))
    y, x = (int(rng.integers(length - side + 1)) for length in image.shape[:2])
    patch = np.rot90(image[y : y + side, x : x + side][:, :: rng.choice([-1, 1])], rng.choice([0, 2]))
    return np.asarray(PILImage.fromarray(np.ascontiguousarray(patch)).resize((size, size)), dtype=np.float32)


def draw_ground(rng: np.random.Generator, label: int, size: int, split: str) -> np.ndarray:
    """A ground of a stuff class, float `[size, size, 3]` in 0 to 255."""
    name = NAMES[label]
    if label == PHOTOGRAPH:
        return random_patch(rng, photograph(str(rng.choice(PHOTOGRAPHS[split]))), (100, 300), size)
    texture = photograph(name)
    first, last = (round(share * texture.shape[1]) for share in STRIPS[split])
    tint = np.array(TINTS[name]) * rng.uniform(0.8, 1.2) * rng.uniform(0.92, 1.08, 3)
    return (random_patch(rng, texture[:, first:last], (64, 100), size) * tint).clip(0, 255)


def half_spaces(label: int) -> tuple[np.ndarray, np.ndarray]:
    """Normals float `[F, 3]` and offsets float `[F]` of the faces of a convex solid around the origin: points p with
    normal . p <= offset; z is up."""
    turns = np.linspace(0, 2 * np.pi, FACETS, endpoint=False)
    around = np.stack((np.cos(turns), np.sin(turns), np.zeros(FACETS)), -1)
    caps = np.array([[0.0, 0, 1], [0, 0, -1]])
    if label == CUBE:
        return np.concatenate((np.eye(3), -np.eye(3))), np.full(6, 0.72)
    if label == CYLINDER:
        return np.concatenate((around, caps)), np.concatenate((np.full(FACETS, 0.62), [0.85, 0.85]))
    height, radius = 1.75, 0.8
    length = np.hypot(height, radius)
    slopes = around * height / length + [0, 0, radius / length]
    return np.concatenate((slopes, caps[1:])), np.concatenate(
        (np.full(FACETS, 0.95 * radius / length), [height - 0.95])
    )


def render_solid(label: int, radius: float, elevation: float, turn: float) -> tuple[np.ndarray, np.ndarray]:
    """A solid seen from a direction, by orthographic projection.

    Args:
        label: class.
        radius: pixels of a unit of length.
        elevation: of the camera above the ground, in radians.
        turn: of the solid around the vertical axis, in radians.

    Returns:
        its pixels bool `[S, S]`, and their normals float `[S, S, 3]` towards right, down and the camera.
    """
    half = int(np.ceil(1.4 * radius))
    down, right = np.mgrid[-half : half + 1, -half : half + 1] / radius
    if label == SPHERE:
        square = 1 - (right**2 + down**2) / 0.8**2
        return square > 0, np.stack((right / 0.8, down / 0.8, np.sqrt(square.clip(0))), -1)
    normals, offsets = half_spaces(label)
    x = normals[:, 0] * np.cos(turn) - normals[:, 1] * np.sin(turn)
    depth = normals[:, 0] * np.sin(turn) + normals[:, 1] * np.cos(turn)  # away from the camera
    up = normals[:, 2]
    seen = np.stack(
        (x, -up * np.cos(elevation) - depth * np.sin(elevation), up * np.sin(elevation) - depth * np.cos(elevation)), -1
    )
    seen[np.abs(seen[:, 2]) < 1e-6, 2] = 1e-6
    distance = (offsets - right[..., None] * seen[:, 0] - down[..., None] * seen[:, 1]) / seen[:, 2]
    front = np.where(seen[:, 2] > 0, distance, np.inf)
    back = np.where(seen[:, 2] < 0, distance, -np.inf)
    return front.min(-1) > back.max(-1), seen[front.argmin(-1)]


def overlap(canvas: np.ndarray, patch: np.ndarray, x: int, y: int) -> tuple[np.ndarray, np.ndarray]:
    """Views of the parts of a canvas and of a square patch, centred at (x, y), that lie on each other."""
    half = patch.shape[0] // 2
    top, left = max(y - half, 0), max(x - half, 0)
    part = canvas[top : y + half + 1, left : x + half + 1]
    rows, columns = top - y + half, left - x + half
    return part, patch[rows : rows + part.shape[0], columns : columns + part.shape[1]]


def find_column(rng: np.random.Generator, ids: np.ndarray, pixels: np.ndarray, y: int, areas: dict) -> int | None:
    """Column for a solid at row y at which every earlier solid keeps enough of its pixels; None after ten tries."""
    for x in rng.uniform(0.08, 0.92, 10) * ids.shape[1]:
        part, mask = overlap(ids, pixels, int(x), y)
        covered, counts = np.unique(part[mask], return_counts=True)
        lost = dict(zip(covered.tolist(), counts.tolist(), strict=True))
        visible = {segment: int((ids == segment).sum()) for segment in lost if segment in areas}
        if all(visible[segment] - lost[segment] >= LEAST_VISIBLE * areas[segment] for segment in visible):
            return int(x)
    return None


def cast_shadow(image: np.ndarray, light: np.ndarray, radius: float, x: int, y: int) -> None:
    """Darken the ground under a solid, away from the light, in place."""
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    down, right = (rows - y - 0.55 * radius) / (0.5 * radius), (columns - x + light[0] * radius) / radius
    image *= 1 - 0.55 * np.exp(-((right**2 + down**2) ** 2))[..., None]


def draw_solid(
    rng: np.random.Generator, pixels: np.ndarray, normals: np.ndarray, light: np.ndarray, split: str
) -> np.ndarray:
    """Shaded surface of a solid, of a random colour and with a photograph on it, float `[S, S, 3]` in 0 to 255."""
    surface = random_patch(rng, photograph(str(rng.choice(PHOTOGRAPHS[split]))), (40, 160), len(pixels)).mean(-1)
    pattern = 0.75 + 0.25 * (surface / max(surface.mean(), 1)).clip(0, 2)
    brightness = AMBIENT + (1.15 - AMBIENT) * (normals @ light).clip(0)
    return rng.uniform(50, 235, 3) * (pattern * brightness)[..., None]


def draw_scene(rng: np.random.Generator, size: int, split: str) -> Scene:
    """A scene of one or two grounds and up to five solids, the lower ones in front."""
    side = size * SUPERSAMPLING
    first, second = rng.choice(range(NUM_THINGS, len(NAMES)), 2, replace=False).tolist()
    image, ids, classes = draw_ground(rng, first, side, split), np.full((side, side), 1, dtype=np.int32), {1: first}
    if rng.random() < 0.7:
        beyond = beyond_border(rng, side)
        image[beyond] = draw_ground(rng, second, side, split)[beyond]
        ids[beyond] = 2
        classes[2] = second
    elevation, angle = rng.uniform(0.45, 0.8), rng.uniform(0, 2 * np.pi)
    light = np.array([0.7 * np.cos(angle), -0.5, 0.55])
    light /= np.linalg.norm(light)
    count = 0 if rng.random() < EMPTY_SHARE else int(rng.integers(1, 6))
    areas: dict[int, int] = {}
    for segment, y in enumerate(np.sort(rng.uniform(0.08, 0.92, count) * side).astype(int).tolist(), 3):
        label, radius = int(rng.integers(NUM_THINGS)), rng.uniform(0.11, 0.2) * side
        pixels, normals = render_solid(label, radius, elevation, rng.uniform(0, 2 * np.pi))
        x = find_column(rng, ids, pixels, y, areas)
        if x is None:
            continue
        cast_shadow(image, light, radius, x, y)
        part, mask = overlap(image, pixels, x, y)
        part[mask] = overlap(image, draw_solid(rng, pixels, normals, light, split), x, y)[1][mask]
        overlap(ids, pixels, x, y)[0][mask] = segment
        areas[segment], classes[segment] = int(mask.sum()), label
    image += rng.normal(0, 6, image.shape)
    image = image.clip(0, 255).astype(np.uint8)
    image = np.asarray(PILImage.fromarray(image).resize((size, size), PILImage.Resampling.BOX))
    ids = ids[::SUPERSAMPLING, ::SUPERSAMPLING]
    return image, np.ascontiguousarray(ids), classes


def main(argv: list[str] | None = None) -> None:
    folder, counts, size, seed = parse_arguments(__doc__, argv)
    write_dataset(folder, draw_scene, NAMES, NUM_THINGS, TITLE, counts, size, seed)


if __name__ == "__main__":
    run_command(main)
