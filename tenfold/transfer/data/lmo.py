"""LineMOD-Occluded as boxes, visible masks, class maps and keypoints: projected from its poses and CAD models.

The surfaces are sampled densely (so that every pixel of a front face is met several times), projected, and the nearest
object of each pixel owns it: that is the visible mask, and its tight box. K keypoints a model are chosen by farthest
point sampling on its surface, projected with the pose, and compared with the same depth buffer. What else stands on the
table has no model, so what hides behind it counts as visible.

Pixels: a camera's pixel centres lie at whole numbers, ours at halves (table), so projections are moved by half a pixel.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from tenfold.corpus.sources import Source
from tenfold.corpus.sources.lmo import OBJECTS, SCENE, split_of
from tenfold.errors import InputError
from tenfold.transfer.data import rle
from tenfold.transfer.data.faults import Faults
from tenfold.transfer.data.reader import About, Item, Reader, gather
from tenfold.transfer.data.table import IGNORE, Annotations

K = 8
DENSITY = 2.0  # samples per mm²; at 1 m a pixel covers 3 mm²
VISIBLE = 8.0  # mm that a keypoint may lie behind the depth buffer and still count as seen
OPEN = (5,)  # the can's handle encloses a true hole; holes in the others are gaps in the scans, and are closed
LEAST = 0.1  # visible share below which an object is difficult: BOP leaves those out
SPECK, SPECK_SHARE = 40, 0.02  # px, share of the object's visible pixels: smaller parts are no part, see without_specks
SYMMETRIC = (10, 11)  # eggbox, glue: BOP's models_info gives them half a turn about z
# A keypoint that is off by a tenth of the model's diameter gets an OKS of 0.5. That error is where a pose counts as
# wrong in this data set's own measure (ADD-0.1d, Hinterstoisser et al. 2012). With d the diameter and s the square root
# of the object's area, both in px, OKS = exp(-e² / (2 s² (2 sigma)²)), so sigma = 0.1 d / s / (2 sqrt(2 ln 2)); the
# median of d / s over the training instances, each rendered alone, is 1.58.
SIGMA = 0.067


@dataclass(frozen=True)
class Model:
    """A CAD model, mm, in its own axes.

    Attributes:
        points: [n, 3] float32, evenly spread samples of the surface.
        normals: [n, 3] float32, pointing outwards.
        keypoints: [K, 3] float32, far apart on the surface.
        diameter: largest distance of two vertices, mm.
        solid: whether its silhouette has no holes.
    """

    points: np.ndarray
    normals: np.ndarray
    keypoints: np.ndarray
    diameter: float
    solid: bool = True

    @classmethod
    def read(cls, path: Path, solid: bool = True, density: float = DENSITY) -> Model:
        """From a PLY file in ASCII; raises InputError where it is none."""
        vertices, faces = read_ply(path)
        points, normals = sample_surface(vertices, faces, density)
        keypoints = farthest_points(vertices, K)
        return cls(points, normals, keypoints, diameter(vertices), solid)


def read_ply(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [n, 3] float32 and triangles [m, 3] int64 of an ASCII PLY file."""
    try:
        head, _, body = path.read_text("ascii").partition("end_header\n")
        lines = head.splitlines()
        if lines[0] != "ply" or "format ascii 1.0" not in lines:
            raise ValueError("it is no PLY file in ASCII")
        counts = {line.split()[1]: int(line.split()[2]) for line in lines if line.startswith("element")}
        rows = body.splitlines()
        n, m = counts["vertex"], counts["face"]
        vertices = np.array([row.split()[:3] for row in rows[:n]], np.float32)
        faces = np.array([row.split()[:4] for row in rows[n : n + m]], np.int64)
        if vertices.shape != (n, 3) or faces.shape != (m, 4) or (faces[:, 0] != 3).any():
            raise ValueError("its vertices or triangles are incomplete")
        if m and not 0 <= faces[:, 1:].min() <= faces[:, 1:].max() < n:
            raise ValueError("a triangle names a vertex that is not there")
    except (OSError, ValueError, KeyError, IndexError, UnicodeDecodeError) as error:
        raise InputError(f"the model {path} cannot be read: {error}", "fetch lmo anew") from None
    return vertices, faces[:, 1:]


def sample_surface(vertices: np.ndarray, faces: np.ndarray, density: float) -> tuple[np.ndarray, np.ndarray]:
    """Points and unit normals [n, 3], spread evenly by area: `density` a mm², the same ones every time."""
    corner = vertices[faces].astype(np.float64)
    cross = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    area = np.linalg.norm(cross, axis=1) / 2
    ends = np.cumsum(area)
    n = max(1, int(ends[-1] * density))
    face = np.minimum(np.searchsorted(ends, (np.arange(n) + 0.5) * ends[-1] / n), len(faces) - 1)
    # The R2 sequence: even in the plane for any stretch of n (Roberts 2018).
    u, v = (((np.arange(n) + 1) * step) % 1.0 for step in (0.7548776662466927, 0.5698402909980532))
    over = u + v > 1
    u, v = np.where(over, 1 - u, u), np.where(over, 1 - v, v)
    base = corner[face]
    points = base[:, 0] + u[:, None] * (base[:, 1] - base[:, 0]) + v[:, None] * (base[:, 2] - base[:, 0])
    normals = cross[face] / np.maximum(2 * area[face, None], 1e-12)
    return points.astype(np.float32), normals.astype(np.float32)


def farthest_points(vertices: np.ndarray, k: int) -> np.ndarray:
    """k vertices, each as far as can be from those before; the first is the one farthest from the middle."""
    points = vertices.astype(np.float64)
    distance = np.linalg.norm(points - (points.min(0) + points.max(0)) / 2, axis=1)
    chosen = [int(distance.argmax())]
    distance = np.full(len(points), np.inf)
    while len(chosen) < k:
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
        chosen.append(int(distance.argmax()))
    return vertices[chosen]


def diameter(vertices: np.ndarray) -> float:
    """Largest distance of two vertices: exact, over the corners of the convex hull."""
    from scipy.spatial import ConvexHull
    from scipy.spatial.distance import pdist

    corners = vertices[ConvexHull(vertices.astype(np.float64)).vertices]
    return float(pdist(corners.astype(np.float64)).max())


@dataclass(frozen=True)
class Camera:
    """A pinhole camera; fx, fy, cx, cy in px, image size in px."""

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int

    def project(self, points: np.ndarray) -> np.ndarray:
        """Pixels [n, 2] of camera points [n, 3], pixel centres at whole numbers."""
        return points[:, :2] / points[:, 2:] * (self.fx, self.fy) + (self.cx, self.cy)


def depth_of(model: Model, rotation: np.ndarray, shift: np.ndarray, camera: Camera) -> np.ndarray:
    """Depth [H, W] float32 in mm of an object alone, inf beside it; back faces are left out, pinholes closed."""
    turned = rotation.astype(np.float32)
    points = model.points @ turned.T + shift.astype(np.float32)
    facing = np.einsum("ij,ij->i", model.normals @ turned.T, points) < 0
    points = points[facing & (points[:, 2] > 1)]
    depth = np.full((camera.height, camera.width), np.inf, np.float32)
    pixel = np.rint(camera.project(points)).astype(np.int64)
    inside = (pixel >= 0).all(1) & (pixel[:, 0] < camera.width) & (pixel[:, 1] < camera.height)
    pixel, z = pixel[inside], points[inside, 2]
    np.minimum.at(depth.reshape(-1), pixel[:, 1] * camera.width + pixel[:, 0], z)
    if len(z):
        (x1, y1), (x2, y2) = np.maximum(pixel.min(0) - 2, 0), pixel.max(0) + 3
        part = depth[y1:y2, x1:x2]  # a view: filling it fills the image
        there = np.isfinite(part)
        closed = ndimage.binary_closing(np.pad(there, 1), np.ones((3, 3)))[1:-1, 1:-1]
        if model.solid:
            closed = ndimage.binary_fill_holes(closed)
        at = ndimage.distance_transform_edt(~there, return_distances=False, return_indices=True)
        part[closed] = part[tuple(at)][closed]
    return depth


def without_specks(mask: np.ndarray) -> np.ndarray:
    """The mask without its specks: separate parts below both limits.

    Poses are a few pixels off, so an object seems to show through gaps where it does not; a speck of four pixels can
    double its box.
    """
    parts, count = ndimage.label(mask, np.ones((3, 3)))
    if count < 2:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    keep = (sizes >= SPECK) | (sizes >= SPECK_SHARE * sizes.sum()) | (sizes == sizes.max())
    keep[0] = False
    return keep[parts]


class LmoReader(Reader):
    """LineMOD-Occluded; splits `train`, `val`, `test` by arrangement (sources.lmo.split_of)."""

    def __init__(self, source: Source) -> None:
        self.folder: Path = source.data  # type: ignore[attr-defined]
        try:
            truth = json.loads((self.folder / SCENE / "scene_gt.json").read_bytes())
            camera = json.loads((self.folder / SCENE / "camera.json").read_bytes())
            self.truth: dict[int, list[dict[str, Any]]] = {int(frame): objects for frame, objects in truth.items()}
            self.camera = Camera(**{name: camera[name] for name in ("fx", "fy", "cx", "cy", "width", "height")})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"the poses in {self.folder / SCENE} cannot be read: {error}", "fetch lmo anew") from None
        self.index = {number: i for i, number in enumerate(OBJECTS)}
        self.splits = tuple(split for split in ("train", "val", "test") if split in source.splits)
        self.about = About(
            name="lmo",
            categories=tuple(OBJECTS.values()),
            has=("boxes", "masks", "keypoints", "map", "labels"),
            protocol="One scene, one camera; split by blocks of frames between which the objects were rearranged: no "
            "arrangement is in two splits (train to frame 695, test to 1001, val after it).",
            keypoints=tuple(f"p{i}" for i in range(K)),
            oks_sigmas=(SIGMA,) * K,
            inputs=(source.manifest.digest,),
            more={
                "mirror": False,  # a mirrored object is another one: its keypoints have no counterparts
                "symmetric": [OBJECTS[i] for i in SYMMETRIC],
                "symmetry": "half a turn about z looks the same: of the two poses the one whose x axis points right "
                "in the image is taken, so keypoints have one answer but at the turning point",
                "oks_sigmas_from": "an error of a tenth of the model's diameter gives OKS 0.5",
                "difficult": "less than 10 % of the object is visible; hidden ones are left out",
            },
        )

    @cached_property
    def models(self) -> dict[int, Model]:
        """The models by BOP number; read at first use, 3 s."""
        return {i: Model.read(self.folder / "models" / f"obj_{i:06d}.ply", i not in OPEN) for i in OBJECTS}

    def items(self, split: str, faults: Faults) -> list[Item]:
        """Photographs in order of frame number, which is the image id."""
        size = self.camera.width, self.camera.height
        files = {frame: f"{SCENE}/rgb/{frame:06d}.png" for frame in sorted(self.truth) if split_of(frame) == split}
        return [Item(file, self.folder / file, frame, size) for frame, file in files.items()]

    def annotations(self, split: str, item: Item, size: tuple[int, int], faults: Faults) -> Annotations:
        """Project everything in a frame. An annotation's id is frame * 100 + its place in the frame."""
        camera, placed = self.camera, []
        for place, thing in enumerate(self.truth[item.image_id]):
            number = int(thing["obj_id"])
            rotation = np.array(thing["cam_R_m2c"], np.float64).reshape(3, 3)
            if number in SYMMETRIC and rotation[0, 0] < 0:
                rotation = rotation @ np.diag([-1.0, -1.0, 1.0])
            placed.append((place, number, rotation, np.array(thing["cam_t_m2c"], np.float64)))
        depths = [depth_of(self.models[n], rotation, shift, camera) for _, n, rotation, shift in placed]
        nearest = np.full((camera.height, camera.width), np.inf, np.float32)
        owner = np.full(nearest.shape, -1, np.int16)
        for i, depth in enumerate(depths):
            closer = depth < nearest
            nearest[closer], owner[closer] = depth[closer], i
        class_map = np.zeros(nearest.shape, np.uint8)
        objects = []
        for i, (place, number, rotation, shift) in enumerate(placed):
            mask = owner == i
            class_map[mask] = IGNORE  # where specks were
            mask = without_specks(mask)
            if not (seen := int(mask.sum())):
                continue
            difficult = seen < LEAST * np.isfinite(depths[i]).sum()
            class_map[mask] = IGNORE if difficult else self.index[number] + 1
            counts = rle.encode(mask)
            objects.append(
                {
                    "id": item.image_id * 100 + place,
                    "category": self.index[number],
                    "box": rle.bounds(counts, camera.height),
                    "area": seen,
                    "mask": counts,
                    "difficult": bool(difficult),
                    "keypoints": self._keypoints(self.models[number].keypoints @ rotation.T + shift, mask, nearest),
                }
            )
        return gather(size, objects, K, class_map)

    def _keypoints(self, points: np.ndarray, mask: np.ndarray, nearest: np.ndarray) -> np.ndarray:
        """x, y, visibility [K, 3] of camera points: 2 seen, 1 hidden, 0 outside the image."""
        pixels = self.camera.project(points)
        found = np.zeros((len(points), 3), np.float32)
        for k, ((x, y), z) in enumerate(zip(pixels + 0.5, points[:, 2], strict=True)):
            if not (0 <= x < self.camera.width and 0 <= y < self.camera.height and z > 0):
                continue
            # Keypoints are extremities, often on the silhouette: a neighbouring pixel of the object will do.
            around = np.s_[max(int(y) - 1, 0) : int(y) + 2, max(int(x) - 1, 0) : int(x) + 2]
            seen = mask[around] & (z <= nearest[around] + VISIBLE)
            found[k] = x, y, 2 if seen.any() else 1
        return found
