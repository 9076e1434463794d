"""The loader to augmented batches of 299 px: ours against litData, webdataset and torchvision's ImageFolder.

The same JPEGs (photographs of 340 px on the short side, quality 90) on the same cores, all in the page cache. Every
side resizes to 340 x 340, crops 299 x 299 at random, flips at random (T-03) and delivers shuffled uint8 batches of 32,
which the consumer touches. Peers run as their documentation says, with a worker process a core and torchvision's v2
transforms on uint8 tensors, their quickest way. What is timed begins with the first batch: starting processes is not
counted.

The limit is the decoding of whole JPEGs by libjpeg-turbo on both cores and nothing else.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import simplejpeg
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from benchmarks.fingerprint import photographs as fruit
from benchmarks.harness import Benchmark, Ratio, Values
from tenfold.corpus.ingest import IngestConfig, ingest
from tenfold.corpus.table import Corpus
from tenfold.engine.batches import LabelledImages
from tenfold.engine.images import CropTransform
from tenfold.engine.loader import Loader
from tenfold.engine.streams import Plan

BATCH = 32
CORES = os.cpu_count() or 1
AUGMENT = v2.Compose(
    [v2.PILToTensor(), v2.Resize((340, 340), antialias=True), v2.RandomCrop(299), v2.RandomHorizontalFlip()]
)


def write_photographs(folder: Path, count: int) -> list[Path]:
    """`count` JPEGs in class folders: real photographs of 340 px on the short side and cuts of them, none twice."""
    pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in fruit()[0]]
    made: list[Path] = []
    for number in range(count):
        turn, picture = number // len(pictures), pictures[number % len(pictures)]
        scale = 340 / min(picture.size) * (1 + 0.05 * turn)
        resized = picture.resize((round(picture.width * scale), round(picture.height * scale)))
        cut = resized.crop((0, 0, max(340, resized.width - 17 * turn), max(340, resized.height - 17 * turn)))
        path = folder / f"{number % 10}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        cut.save(path, "JPEG", quality=90)
        made.append(path)
    return made


def pack(path: str) -> dict[str, Any]:
    """litData: one sample as it is stored."""
    return {"image": Path(path).read_bytes(), "label": int(Path(path).parent.name)}


def unpack(sample: dict[str, Any]) -> tuple[torch.Tensor, int]:
    """litData: from the stored sample to what the network sees."""
    return AUGMENT(Image.open(io.BytesIO(sample["image"])).convert("RGB")), sample["label"]


def timed(batches: Iterable[Any], pick: Any = lambda batch: batch[0]) -> Values:
    """Images a second from the first batch on."""
    count, start = 0, 0.0
    for batch in batches:
        images = pick(batch)
        int(images[:, :, ::64, ::64].sum())
        if start == 0.0:
            start = time.perf_counter()
        else:
            count += len(images)
    rate = count / (time.perf_counter() - start)
    return {"images_per_s": rate}


def benchmark(scale: float) -> Benchmark:
    """Writes the photographs once in the format of each side, then runs one epoch a round."""
    import litdata
    import webdataset

    folder = Path(tempfile.mkdtemp(prefix="tenfold-loader-"))
    files = write_photographs(folder / "tree", max(20 * BATCH, int(4000 * scale)))
    ingest(IngestConfig(input=str(folder / "tree")), str(folder / "corpus"))
    corpus = Corpus.open(str(folder / "corpus"))
    with webdataset.ShardWriter(str(folder / "%06d.tar"), maxcount=500, verbose=0) as shards:
        for path in files:
            shards.write({"__key__": path.stem, "jpg": path.read_bytes(), "cls": int(path.parent.name)})
    shard_names = sorted(map(str, folder.glob("*.tar")))
    chunks = str(folder / "chunks")
    litdata.optimize(
        pack, list(map(str, files)), output_dir=chunks, chunk_bytes="16MB", num_workers=CORES, verbose=False
    )
    encoded = [path.read_bytes() for path in files]
    rounds = iter(range(1_000_000))

    def ours() -> Values:
        plan = Plan(seed=next(rounds), digest=corpus.digest, n=corpus.rows, batch=BATCH)
        loader = Loader(corpus.images, plan, LabelledImages(CropTransform()), stop_step=plan.steps_per_epoch)
        values = timed(loader, lambda item: item[1].images)
        return {**values, "decode_share": values["images_per_s"]}

    def image_folder() -> Values:
        data = ImageFolder(str(folder / "tree"), AUGMENT)
        return timed(DataLoader(data, BATCH, shuffle=True, num_workers=CORES, drop_last=True))

    def web_dataset() -> Values:
        data = (
            webdataset.WebDataset(shard_names, shardshuffle=100, empty_check=False)
            .shuffle(1000)
            .decode("pil")
            .to_tuple("jpg", "cls")
            .map_tuple(AUGMENT, int)
            .batched(BATCH, partial=False)
        )
        return timed(webdataset.WebLoader(data, batch_size=None, num_workers=CORES))

    def lit_data() -> Values:
        data = litdata.StreamingDataset(chunks, shuffle=True, drop_last=True, transform=unpack)
        return timed(litdata.StreamingDataLoader(data, batch_size=BATCH, num_workers=CORES))

    def bare() -> Values:
        start = time.perf_counter()
        with ThreadPoolExecutor(CORES) as pool:
            list(pool.map(simplejpeg.decode_jpeg, encoded))
        return {"decode_share": len(encoded) / (time.perf_counter() - start)}

    size = sum(map(len, encoded)) / len(encoded) / 1000
    return Benchmark(
        what=f"augmented 299 px batches of {len(files):,} photographs of 340 px ({size:.0f} kB), images a second",
        sides={
            "tenfold": ours,
            "ImageFolder": image_folder,
            "webdataset": web_dataset,
            "litdata": lit_data,
            "bare decode": bare,
        },
        ratios=[
            Ratio("speed", "images_per_s", "higher", aim=1.5),
            Ratio("decode_share", "decode_share", "higher", aim=0.9, peer="bare decode"),
        ],
        limits={"decoding": lambda: "the side `bare decode`: whole JPEGs by libjpeg-turbo on all cores, nothing else"},
        close=lambda: shutil.rmtree(folder, ignore_errors=True),
    )
