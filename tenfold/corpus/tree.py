"""The class tree as it is shown to people: what to show of up to tens of thousands of classes, and in which order."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from tenfold.corpus.table import Classes

SHOWN = 1500  # classes in the tree at most, those with most images first
CHILDREN = 60  # children shown of one class
OPEN = 48  # rows that are unfolded from the start


@dataclass
class Node:
    """One line of the tree.

    Attributes:
        index: class index.
        chain: classes above it that have this one child and the same images, shown on the same line, topmost first.
        children: shown children, most images first.
        more: children left out, and `more_images` labels on them.
        also: under which other class (index) this one is shown in full; -1 where it is shown here.
        open: unfolded from the start.
    """

    index: int
    chain: list[int] = field(default_factory=list)
    children: list[Node] = field(default_factory=list)
    more: int = 0
    more_images: int = 0
    also: int = -1
    open: bool = False


def class_tree(classes: Classes, counts: np.ndarray) -> tuple[Node, list[int]]:
    """The tree to show, as a node (index -1) above its roots, and the class indices shown, most important first.

    Classes enter by their number of images until `SHOWN` are in, so that large branches are never missing. A class with
    several parents is shown in full under the one with most images, and as a pointer under the others. A flat list of
    classes gives a list of roots. The hierarchy has to be free of cycles (`hierarchy.check`).
    """
    children: list[list[int]] = [[] for _ in classes.names]
    for own, parents in enumerate(classes.parents):
        for above in parents:
            children[above].append(own)
    size = counts.tolist()
    for below in children:
        below.sort(key=lambda c: (-size[c], c))
    roots = sorted((c for c, p in enumerate(classes.parents) if not p), key=lambda c: (-size[c], c))
    top = Node(-1)
    home: dict[int, Node] = {}  # class -> the node it is shown under in full
    shown: list[int] = []
    turn = itertools.count()
    queue: list[tuple[int, int, int, Node]] = []

    def offer(node: Node, below: list[int], room: int) -> None:
        node.more, node.more_images = len(below[room:]), sum(size[c] for c in below[room:])
        for child in below[:room]:
            heapq.heappush(queue, (-size[child], next(turn), child, node))

    offer(top, roots, SHOWN)
    while queue:
        _, _, index, parent = heapq.heappop(queue)
        if index in home:
            parent.children.append(Node(index, also=home[index].index))
        elif len(shown) >= SHOWN:
            parent.more += 1
            parent.more_images += size[index]
        else:
            home[index] = parent
            shown.append(index)
            parent.children.append(node := Node(index))
            offer(node, children[index], CHILDREN)
    _fold(top, classes, size)
    _unfold(top)
    return top, shown


def _fold(top: Node, classes: Classes, size: list[int]) -> None:
    """Put a class and its only child on one line, where both have the same images."""
    stack = [top]
    while stack:
        node = stack.pop()
        for at, child in enumerate(node.children):
            while len(child.children) == 1 and not child.more:
                below = child.children[0]
                if below.also >= 0 or size[below.index] != size[child.index] or len(classes.parents[below.index]) > 1:
                    break
                below.chain = [*child.chain, child.index]
                child = below
            node.children[at] = child
        stack.extend(node.children)


def _unfold(top: Node) -> None:
    """Open whole levels, from the top, while no more than OPEN rows show."""
    rows, level = len(top.children), top.children
    while level:
        below = [child for node in level for child in node.children]
        rows += len(below)
        if not below or rows > OPEN:
            return
        for node in level:
            node.open = bool(node.children)
        level = below


def lines(top: Node) -> Iterator[tuple[str, Node]]:
    """The tree as a flat sequence, for a template: `("open", node)`, …, `("close", node)`, or `("leaf", node)`."""
    stack = [("leaf" if not n.children and not n.more else "open", n) for n in reversed(top.children)]
    while stack:
        kind, node = stack.pop()
        yield kind, node
        if kind == "open":
            stack.append(("close", node))
            stack += [("leaf" if not n.children and not n.more else "open", n) for n in reversed(node.children)]
