"""A corpus of small pictures with something to learn in them, made in a moment."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from PIL import Image

from tenfold import storage
from tenfold.corpus import table
from tenfold.corpus.table import Corpus


def make_corpus(uri: str, rows: int, leaves: int = 9, seed: int = 0) -> Corpus:
    """Patches of colour with noise, of 9 classes below 3: something to learn."""
    rng = np.random.default_rng(seed)
    images = []
    for i in range(rows):
        leaf = int(rng.integers(leaves))
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        pixels[:, :, leaf % 3] = 25 * leaf
        file = io.BytesIO()
        Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR).save(file, "PNG")
        images.append((hashlib.sha256(f"{seed} {i}".encode()).hexdigest(), file.getvalue(), [leaf, leaves + leaf % 3]))
    ranks = table.rank_of([i for i, _, _ in images])
    order = np.argsort(ranks)
    columns: dict[str, list[Any]] = {
        "id": [images[i][0] for i in order],
        "rank": ranks[order].tolist(),
        "image": [images[i][1] for i in order],
        "width": [32] * rows,
        "height": [32] * rows,
        "labels": [images[i][2] for i in order],
        "votes": [[2.0, 1.0]] * rows,
        "source": ["synthetic"] * rows,
        "flags": [0] * rows,
    }
    arrays = [pa.array(columns[field.name], field.type) for field in table.IMAGES]
    options = storage.lance_options(uri)
    lance.write_dataset(pa.table(arrays, schema=table.IMAGES), f"{uri}/images.lance", storage_options=options)
    classes = table.Classes.flat([f"class {i}" for i in range(leaves + 3)])
    return table.commit(uri, "closed", classes=classes, recipe={}, inputs=[], facts={"salt": "tenfold"})
