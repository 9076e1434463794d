"""COCO's AP and AR of boxes, keypoints and masks (E-02 to E-07, E-11, E-12), from arrays or from COCO's JSON files.

Values come from hotcoco, a Rust engine that gives pycocotools' numbers; intervals and comparisons re-weigh matches that
are made once (`coco_match`). Traps that are kept as COCO has them: a crowd's `ignore` replaces any other; a category
without annotations does not count; for keypoints the size of a found pose is that of its keypoints' box, and an
annotation without visible keypoints is ignored. What COCO writes as -1 (nothing to find) is NaN here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from tenfold import storage
from tenfold.errors import InputError
from tenfold.metrics import coco_match, predictions, result

Kind = Literal["boxes", "keypoints", "masks"]
ENGINE = {"boxes": "bbox", "keypoints": "keypoints", "masks": "segm"}
SIZES = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
# Of COCO's people: nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles.
PERSON_SIGMAS = tuple(
    s / 100 for s in (2.6, 2.5, 2.5, 3.5, 3.5, 7.9, 7.9, 7.2, 7.2, 6.2, 6.2, 10.7, 10.7, 8.7, 8.7, 8.9, 8.9)
)


@dataclass(frozen=True)
class Settings:
    """How to judge.

    Attributes:
        kind: what is compared.
        max_dets: rising numbers of detections an image and category that may count; COCO's own where left out.
        sizes: name -> least and greatest area in px, the first being the one of the main value; COCO's where left out.
        sigmas: standard deviation of each keypoint relative to the object's size (the square root of its area).
    """

    kind: Kind = "boxes"
    max_dets: tuple[int, ...] = ()
    sizes: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    sigmas: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in ENGINE:
            raise InputError(f"kind is {self.kind!r}", f"use one of {', '.join(ENGINE)}")
        pose = self.kind == "keypoints"
        sizes = dict(self.sizes) or {k: v for k, v in SIZES.items() if not (pose and k == "small")}
        object.__setattr__(self, "sizes", sizes)
        object.__setattr__(self, "max_dets", tuple(self.max_dets) or ((20,) if pose else (1, 10, 100)))
        object.__setattr__(self, "sigmas", tuple(self.sigmas) or (PERSON_SIGMAS if pose else ()))
        if any(a >= b for a, b in zip((0, *self.max_dets), self.max_dets, strict=False)):
            raise InputError(f"max_dets is {list(self.max_dets)}", "give rising numbers from 1, such as 1, 10, 100")
        if any(s <= 0 for s in self.sigmas):
            raise InputError(f"sigmas are {list(self.sigmas)}", "give one number above 0 for each keypoint")


@dataclass(frozen=True)
class CocoAP(result.Measured):
    """Mergeable state of COCO's measures over images.

    Attributes:
        classes: number of categories.
        settings: how to judge.
        ids: images seen.
        parts: for each image annotated boxes [g, 7] float64 (category, crowd, area, x, y, w, h), their keypoints
            [g, K, 3], found ones [d, 6] (category, score, x, y, w, h) and their keypoints [d, K, 3].
    """

    classes: int
    settings: Settings = field(default_factory=Settings)
    ids: tuple[str, ...] = ()
    parts: tuple[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], ...] = ()

    @classmethod
    def empty(cls, classes: int, settings: Settings | None = None) -> CocoAP:
        """A state that has seen nothing; raises InputError for no classes or for masks (see `from_files`)."""
        settings = settings or Settings()
        if classes < 1:
            raise InputError(f"classes is {classes}", "there must be at least 1 category")
        if settings.kind == "masks":
            raise InputError("predictions hold no masks", "judge masks from COCO's files with coco.from_files")
        return cls(classes, settings)

    def update(
        self,
        ids: Sequence[str],
        found: Sequence[predictions.Boxes | predictions.Poses],
        truths: Sequence[predictions.Instances],
    ) -> CocoAP:
        """Add images: boxes (or poses where keypoints are judged) and the annotations of each.

        Raises InputError naming the image whose categories or keypoints are not those of the dataset.
        """
        predictions.check_batch(ids, found, truths)
        added = []
        points = len(self.settings.sigmas)
        for image, prediction, truth in zip(ids, found, truths, strict=True):
            categories = np.asarray(truth.categories, dtype=np.int64)
            predictions.check_classes(image, "annotation", categories, self.classes)
            predictions.check_classes(image, "prediction", prediction.classes, self.classes)
            own, other = np.zeros((len(categories), 0, 3)), np.zeros((len(prediction.classes), 0, 3))
            if points:
                if not isinstance(prediction, predictions.Poses):
                    raise InputError(f"image {image}: {type(prediction).__name__} has no keypoints", "predict poses")
                own = np.asarray(truth.keypoints, dtype=np.float64)
                other = prediction.keypoints.astype(np.float64)
                for name, values in (("annotation", own), ("prediction", other)):
                    if len(values) and values.shape[1:] != (points, 3):
                        raise InputError(
                            f"image {image}: keypoints of the {name} have shape {list(values.shape)}",
                            f"there are {points} sigmas, so it must be [k, {points}, 3]",
                        )
                own, other = own.reshape(-1, points, 3), other.reshape(-1, points, 3)
            boxes = _sides(truth.boxes)
            annotated = np.column_stack([categories, truth.crowd, truth.areas, boxes]).astype(np.float64)
            scored = np.column_stack([prediction.classes, prediction.scores, _sides(prediction.boxes)])
            added.append((annotated, own, scored.astype(np.float64), other))
        return CocoAP(self.classes, self.settings, self.ids + tuple(ids), self.parts + tuple(added))

    def merge(self, other: CocoAP) -> CocoAP:
        """The state that has seen what both have seen; raises InputError where they judge differently."""
        if (self.classes, self.settings) != (other.classes, other.settings):
            raise InputError("cannot merge COCO measures of different settings", "use the same settings on all ranks")
        return CocoAP(self.classes, self.settings, self.ids + other.ids, self.parts + other.parts)

    def prepared(self) -> result.Prepared:
        """Annotations and detections in the engine, images in the order of their ids."""
        import hotcoco

        ids, place = result.ordered(self.ids)
        order = np.argsort(place)
        parts = [self.parts[i] for i in order]
        true, points, found, poses = (np.concatenate([p[k] for p in parts]) for k in range(4))
        image = np.repeat(np.arange(len(ids)), [len(p[0]) for p in parts])
        place = np.repeat(np.arange(len(ids)), [len(p[2]) for p in parts])
        images = [{"id": i + 1, "width": 1, "height": 1} for i in range(len(ids))]
        categories = [{"id": c + 1, "name": str(c)} for c in range(self.classes)]
        crowd = true[:, 1] > 0
        if self.settings.kind == "keypoints":
            visible = (points[:, :, 2] > 0).sum(1)
            annotations = [
                {
                    "id": k + 1,
                    "image_id": int(image[k]) + 1,
                    "category_id": int(true[k, 0]) + 1,
                    "bbox": true[k, 3:].tolist(),
                    "area": float(true[k, 2]),
                    "iscrowd": int(crowd[k]),
                    "keypoints": points[k].ravel().tolist(),
                    "num_keypoints": int(visible[k]),
                }
                for k in range(len(true))
            ]
            truth = hotcoco.COCO({"images": images, "categories": categories, "annotations": annotations})
            guesses: Any = [
                {
                    "image_id": int(place[k]) + 1,
                    "category_id": int(found[k, 0]) + 1,
                    "keypoints": poses[k].ravel().tolist(),
                    "score": float(found[k, 1]),
                }
                for k in range(len(found))
            ]
            low, high = (getattr(poses[:, :, :2], f)(axis=1, initial=v) for f, v in (("min", 1e30), ("max", -1e30)))
            area = np.prod(high - low, axis=1)
            ignore = crowd | (visible == 0)
        else:
            truth = hotcoco.COCO.from_arrays(
                images, categories, image + 1, true[:, 0].astype(np.int64) + 1, true[:, 3:],
                area=true[:, 2], iscrowd=crowd.astype(np.int64),
            )  # fmt: skip
            guesses = np.column_stack([place + 1, found[:, 2:], found[:, 1], found[:, 0] + 1])
            area, ignore = found[:, 4] * found[:, 5], crowd
        true_cls, found_cls = true[:, 0].astype(np.int64), found[:, 0].astype(np.int64)
        off = np.zeros(len(found), bool)
        tables = (
            coco_match.Instances(image, true_cls, true[:, 3:], true[:, 2], np.zeros(len(true)), crowd, ignore, points),
            coco_match.Instances(place, found_cls, found[:, 2:], area, found[:, 1], off, off, poses),
        )
        every = np.arange(len(ids))
        return _Prepared(
            ids, self.classes, self.settings, every + 1, every, truth, truth.load_res(guesses), lambda: tables
        )


@dataclass(frozen=True)
class _Prepared:
    """Annotations and detections in the engine; matched for re-weighing when that is first asked for."""

    ids: np.ndarray
    classes: int
    settings: Settings
    engine_ids: np.ndarray  # [images] rising: the order of images decides between equal scores
    order: np.ndarray  # [images] place in `ids` of each of `engine_ids`
    truth: Any
    found: Any
    tables: Callable[[], tuple[coco_match.Instances, coco_match.Instances]]

    def at(self, counts: np.ndarray) -> result.Values:
        """The engine's values where images count once or not at all, those of re-weighed matches otherwise."""
        counts = counts[self.order]
        if counts.max() <= 1:
            return self._named(*self.engine(counts > 0))
        return self._named(*self.matches.weigh(counts))

    @cached_property
    def matches(self) -> coco_match.Matches:
        """All matches, made once."""
        sigmas = np.array(self.settings.sigmas) if self.settings.kind == "keypoints" else None
        sizes = np.array(list(self.settings.sizes.values()))
        return coco_match.match(*self.tables(), self.classes, self.settings.max_dets, sizes, sigmas)

    def engine(self, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `Matches.weigh`, by the engine, of the images kept [images] bool in its order."""
        import hotcoco

        judge = hotcoco.COCOeval(self.truth, self.found, ENGINE[self.settings.kind])
        params = judge.params
        params.max_dets = list(self.settings.max_dets)
        params.area_rng = [list(map(float, v)) for v in self.settings.sizes.values()]
        params.area_rng_lbl = list(self.settings.sizes)
        if self.settings.kind == "keypoints":
            params.kpt_oks_sigmas = list(self.settings.sigmas)
        if not kept.all():
            params.img_ids = self.engine_ids[kept].tolist()
        judge.evaluate()
        judge.accumulate()
        curves = judge.eval or {}
        precision, recall = curves["precision"], curves["recall"]  # [t, r, classes, areas, max_dets], no r
        curve = precision[:, :, :, :, -1].mean(axis=1)
        by_size, by_rank = recall[:, :, :, -1], recall[:, :, 0]
        curve, by_size, by_rank = (np.where(v < 0, np.nan, v) for v in (curve, by_size, by_rank))
        return curve.transpose(2, 0, 1), by_size.transpose(2, 0, 1), by_rank.transpose(2, 0, 1)

    def _named(self, precision: np.ndarray, recall: np.ndarray, by_rank: np.ndarray) -> result.Values:
        """COCO's summary of [areas, thresholds, classes] and [max_dets, thresholds, classes]."""
        half, strict = 0, 5  # places of 0.5 and 0.75 among the thresholds
        sizes = list(self.settings.sizes)[1:]
        named = {"AP": result.mean(precision[0]), "AP50": result.mean(precision[0, half])}
        named["AP75"] = result.mean(precision[0, strict])
        named |= {f"AP {size}": result.mean(precision[a]) for a, size in enumerate(sizes, 1)}
        if self.settings.kind == "keypoints":
            named |= {"AR": result.mean(recall[0]), "AR50": result.mean(recall[0, half])}
            named["AR75"] = result.mean(recall[0, strict])
        else:
            named |= {f"AR@{m}": result.mean(by_rank[k]) for k, m in enumerate(self.settings.max_dets)}
        named |= {f"AR {size}": result.mean(recall[a]) for a, size in enumerate(sizes, 1)}
        return result.Values(named, precision[0].mean(axis=0))


@dataclass(frozen=True)
class CocoFiles(result.Measured):
    """COCO's measures of a results file; computes and compares like a state. Made by `from_files`.

    Attributes:
        truth_file, found_file: what was read.
        categories: names, in the order of the classes of results (rising COCO category id).
        settings: how to judge.
    """

    truth_file: str
    found_file: str
    categories: tuple[str, ...]
    settings: Settings
    category_ids: tuple[int, ...] = field(repr=False)
    truth: Any = field(repr=False)
    found: Any = field(repr=False)

    def prepared(self) -> result.Prepared:
        """Both files in the engine; image ids are COCO's, as text."""
        engine_ids = np.array(sorted(self.truth.get_img_ids()), dtype=np.int64)
        ids, place = result.ordered([str(i) for i in engine_ids.tolist()])
        return _Prepared(
            ids, len(self.categories), self.settings, engine_ids, place, self.truth, self.found,
            lambda: self._tables(engine_ids),
        )  # fmt: skip

    def _tables(self, engine_ids: np.ndarray) -> tuple[coco_match.Instances, coco_match.Instances]:
        """Both files as arrays, for re-weighing."""
        if self.settings.kind == "masks":
            raise InputError("intervals of masks are not available", "compute without bootstrap, or judge boxes")
        truth, found = (_load(f) for f in (self.truth_file, self.found_file))
        return (
            self._table(truth["annotations"], engine_ids, scored=False),
            self._table(found, engine_ids, scored=True),
        )

    def _table(self, records: list[dict[str, Any]], engine_ids: np.ndarray, *, scored: bool) -> coco_match.Instances:
        n, points = len(records), len(self.settings.sigmas)
        image = np.searchsorted(engine_ids, np.array([r["image_id"] for r in records], dtype=np.int64))
        ids = np.array(self.category_ids)
        named = np.array([r["category_id"] for r in records], dtype=np.int64)
        cls = np.searchsorted(ids, named)
        known = np.flatnonzero(ids[np.minimum(cls, len(ids) - 1)] == named)
        keypoints = np.zeros((n, 0, 3))
        if self.settings.kind == "keypoints":
            keypoints = np.array([r["keypoints"] for r in records], dtype=np.float64).reshape(n, points, 3)
        if scored and not (n and records[0].get("bbox")):
            xy = keypoints[:, :, :2]
            low, high = xy.min(axis=1, initial=1e30), xy.max(axis=1, initial=-1e30)
            boxes = np.column_stack([low, high - low]) if n else np.zeros((0, 4))
        else:
            boxes = np.array([r["bbox"] for r in records], dtype=np.float64).reshape(n, 4)
        area = boxes[:, 2] * boxes[:, 3] if scored else np.array([r["area"] for r in records], dtype=np.float64)
        score = np.array([r["score"] if scored else 0 for r in records], dtype=np.float64)
        crowd = np.array([bool(r.get("iscrowd", 0)) for r in records], dtype=bool)
        ignore = crowd
        if self.settings.kind == "keypoints" and not scored:
            ignore = crowd | np.array([r.get("num_keypoints", 0) == 0 for r in records], dtype=bool)
        return coco_match.Instances(image, cls, boxes, area, score, crowd, ignore, keypoints).take(known)


def from_files(truth: str, found: str, settings: Settings | None = None) -> CocoFiles:
    """Annotations (`instances_….json`, `person_keypoints_….json`) and results in COCO's format, from disk or storage.

    Raises InputError naming the file that cannot be understood, or whose results are of unknown images.
    """
    import hotcoco

    settings = settings or Settings()
    file = truth
    try:
        known = hotcoco.COCO(truth if not storage.is_s3(truth) else _load(truth))
        file = found
        results = known.load_res(found if not storage.is_s3(found) else _load(found))
    except FileNotFoundError:
        raise InputError(f"{file} does not exist", "give the path of a COCO JSON file") from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise InputError(f"{file}: {error}", "write it in COCO's format (cocodataset.org, data and results)") from None
    unknown = set(results.get_img_ids()) - set(known.get_img_ids())
    if unknown or any("image_id" in w for w in results.load_warnings):
        raise InputError(f"{found} has results of images that {truth} lacks", "are both of the same split?")
    if settings.kind == "keypoints":  # the engine takes any number and judges by those it has sigmas for
        for file, records in ((truth, known), (found, results)):
            _check_keypoints(file, records, len(settings.sigmas))
    ids = tuple(sorted(known.get_cat_ids()))
    names = tuple(str(c["name"]) for c in known.load_cats(list(ids)))
    return CocoFiles(truth, found, names, settings, ids, known, results)


def _check_keypoints(file: str, records: Any, points: int) -> None:
    """Raise InputError naming file and annotation where an object has another number of keypoints than sigmas."""
    for record in records.load_anns(records.get_ann_ids()):
        given = len(record.get("keypoints") or ())
        if given != 3 * points:
            raise InputError(
                f"{file}: annotation {record['id']} has {given} keypoint numbers where {points} sigmas "
                f"need {3 * points}",
                "set sigmas to one number for each keypoint of the file; every object needs x, y, visibility of all",
            )


def _load(uri: str) -> Any:
    try:
        return json.loads(storage.read_bytes(uri))
    except ValueError as error:
        raise InputError(f"{uri} is not JSON: {error}", "write it in COCO's format") from None


def _sides(boxes: np.ndarray) -> np.ndarray:
    """[k, 4] float64 x, y, width, height of boxes x1, y1, x2, y2."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
