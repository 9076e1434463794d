"""The class tree of CIFAR-10: the recorded one, and the same out of a Debian package."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from tenfold.corpus.sources import wordnet
from tenfold.errors import InputError


def ancestors(nodes: dict[str, wordnet.Node], name: str) -> list[str]:
    parent = nodes[name][1]
    return [] if parent is None else [parent, *ancestors(nodes, parent)]


def test_forty_nodes_eight_to_thirteen_labels() -> None:
    nodes = wordnet.recorded()
    assert len(nodes) == 40
    depths = {nodes[leaf][0]: 1 + len(ancestors(nodes, leaf)) for leaf in wordnet.CIFAR10}
    assert depths == {
        "airplane": 10, "car": 9, "bird": 8, "cat": 12, "deer": 13,
        "dog": 12, "frog": 9, "horse": 13, "ship": 9, "truck": 9,
    }  # fmt: skip
    reached = {name for leaf in wordnet.CIFAR10 for name in [leaf, *ancestors(nodes, leaf)]}
    assert reached == set(nodes)  # no node but the ten and their ancestors
    assert [name for name, (_, parent) in nodes.items() if parent is None] == ["n00002684"]


def test_classes_begin_with_the_ten() -> None:
    classes = wordnet.classes(wordnet.recorded())
    assert classes.names[:10] == wordnet.CIFAR10
    assert classes.titles[:3] == ("airplane", "car", "bird")
    assert list(classes.names[10:]) == sorted(classes.names[10:])
    for i, parents in enumerate(classes.parents):
        assert [classes.names[p] for p in parents] == [p for p in [wordnet.recorded()[classes.names[i]][1]] if p]


def write_deb(path: Path, files: dict[str, str], compression: str = "xz") -> None:
    """A Debian package as dpkg-deb writes it: `ar` of debian-binary, control.tar, data.tar."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=f"w:{compression}") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f"./usr/share/darknet/data/{name}")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    members = [("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), (f"data.tar.{compression}", data.getvalue())]
    with open(path, "wb") as file:
        file.write(b"!<arch>\n")
        for name, content in members:
            file.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode())
            file.write(content + b"\n" * (len(content) % 2))


def tree_files(nodes: dict[str, wordnet.Node]) -> dict[str, str]:
    """`9k.tree` and `9k.names` of these nodes, with strangers between them."""
    order = ["n99999999", *sorted(nodes, key=lambda n: len(ancestors(nodes, n)))]
    row = {name: i for i, name in enumerate(order)}
    tree = [f"{name} {row[parent] if (parent := nodes.get(name, ('', None))[1]) else -1}" for name in order]
    return {"9k.tree": "\n".join(tree) + "\n", "9k.names": "\n".join(nodes.get(n, ("thing", None))[0] for n in order)}


@pytest.mark.parametrize("compression", ["xz", "gz"])
def test_out_of_a_package(tmp_path: Path, compression: str) -> None:
    write_deb(tmp_path / "darknet.deb", {"coco.names": "x", **tree_files(wordnet.recorded())}, compression)
    assert wordnet.from_package(tmp_path / "darknet.deb") == wordnet.recorded()


def test_package_with_another_tree_or_none(tmp_path: Path) -> None:
    path = tmp_path / "darknet.deb"
    write_deb(path, {"coco.names": "x"})
    with pytest.raises(InputError, match=r"holds no 9k\.names, 9k\.tree"):
        wordnet.from_package(path)
    other = {**wordnet.recorded(), "n02691156": ("aeroplane", "n03510583")}
    write_deb(path, tree_files(other))
    assert wordnet.from_package(path) != wordnet.recorded()
    path.write_bytes(b"no package")
    with pytest.raises(InputError, match="no ar archive"):
        wordnet.from_package(path)
