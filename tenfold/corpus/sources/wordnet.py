"""The ten classes of CIFAR-10 as WordNet synsets, with all their ancestors.

The tree is that of YOLO9000's `9k.tree` (WordNet synsets cut down to a tree, one parent each), which Debian's package
`darknet` carries. The part that is needed, 40 nodes, is recorded here as well: machines without apt use it, and where
the package is had the two must agree.
"""

from __future__ import annotations

import io
import lzma
import tarfile
from collections.abc import Iterator
from pathlib import Path

from tenfold.corpus.table import Classes
from tenfold.errors import InputError

# In the order of CIFAR-10's own labels 0 to 9.
CIFAR10 = (
    "n02691156", "n02958343", "n01503061", "n02121620", "n02430045",
    "n02084071", "n01639765", "n02374451", "n04194289", "n04490091",
)  # fmt: skip

# synset, name, parent; from 9k.tree and 9k.names of Debian's darknet 0.0.0+git20180914.61c9d02e-2.
RECORDED = """\
n00002684 object -
n00003553 whole n00002684
n00004258 living thing n00003553
n00004475 organism n00004258
n00015388 animal n00004475
n00021939 artifact n00003553
n01466257 chordate n00015388
n01471682 vertebrate n01466257
n01503061 bird n01471682
n01627424 amphibian n01471682
n01639765 frog n01627424
n01861778 mammal n01471682
n01886756 placental n01861778
n02075296 carnivore n01886756
n02083346 canine n02075296
n02084071 dog n02083346
n02120997 feline n02075296
n02121620 cat n02120997
n02370806 ungulate n01886756
n02373336 odd-toed ungulate n02370806
n02374149 equine n02373336
n02374451 horse n02374149
n02394477 even-toed ungulate n02370806
n02399000 ruminant n02394477
n02430045 deer n02399000
n02686568 aircraft n03125870
n02691156 airplane n03510583
n02958343 car n03791235
n03094503 container n03575240
n03100490 conveyance n03575240
n03125870 craft n04524313
n03510583 heavier-than-air craft n02686568
n03575240 instrumentality n00021939
n03791235 motor vehicle n04170037
n04170037 self-propelled vehicle n04576211
n04194289 ship n04530566
n04490091 truck n03791235
n04524313 vehicle n03100490
n04530566 vessel n03125870
n04576211 wheeled vehicle n03094503
"""

Node = tuple[str, str | None]  # name, parent


def recorded() -> dict[str, Node]:
    """The recorded 40 nodes by synset id."""
    nodes: dict[str, Node] = {}
    for line in RECORDED.splitlines():
        synset, *name, parent = line.split()
        nodes[synset] = (" ".join(name), None if parent == "-" else parent)
    return nodes


def from_package(path: Path) -> dict[str, Node]:
    """The same nodes out of Debian's `darknet` package at `path`; raises InputError where they are not in it."""
    found: dict[str, bytes] = {}
    wanted = {"9k.tree", "9k.names"}
    try:
        with tarfile.open(fileobj=io.BytesIO(_data_tar(path.read_bytes()))) as tar:
            for member in tar:
                name = Path(member.name).name
                if name in wanted and (file := tar.extractfile(member)):
                    found[name] = file.read()
                if found.keys() == wanted:
                    break
    except (tarfile.TarError, lzma.LZMAError, ValueError) as error:
        raise InputError(f"{path.name} is not a Debian package that can be read here: {error}", "") from None
    if found.keys() != wanted:
        raise InputError(f"{path.name} holds no {', '.join(sorted(wanted - found.keys()))}", "")
    tree = [line.split() for line in found["9k.tree"].decode().splitlines()]
    names = found["9k.names"].decode().splitlines()
    row = {synset: i for i, (synset, _) in enumerate(tree)}
    nodes: dict[str, Node] = {}
    for leaf in CIFAR10:
        i = row.get(leaf, -1)
        while i >= 0:
            parent = int(tree[i][1])
            nodes[tree[i][0]] = (names[i], tree[parent][0] if parent >= 0 else None)
            i = parent
    return nodes


def _data_tar(deb: bytes) -> bytes:
    """The member `data.tar.*` of a .deb, which is an `ar` archive: 60-byte headers, members padded to even length."""
    for name, data in _ar(deb):
        if name.startswith("data.tar"):
            return data
    raise ValueError("no data.tar in it")


def _ar(data: bytes) -> Iterator[tuple[str, bytes]]:
    if not data.startswith(b"!<arch>\n"):
        raise ValueError("no ar archive")
    at = 8
    while at + 60 <= len(data):
        name, size = data[at : at + 16].decode().strip().rstrip("/"), int(data[at + 48 : at + 58])
        yield name, data[at + 60 : at + 60 + size]
        at += 60 + size + size % 2


def classes(nodes: dict[str, Node]) -> Classes:
    """The nodes as a class list: the ten of CIFAR-10 in its own order, then their ancestors by synset id."""
    names = [*CIFAR10, *sorted(nodes.keys() - set(CIFAR10))]
    index = {name: i for i, name in enumerate(names)}
    parents = tuple((index[parent],) if (parent := nodes[name][1]) else () for name in names)
    return Classes(tuple(names), tuple(nodes[name][0] for name in names), parents)
