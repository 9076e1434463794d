"""The class tree as it is shown to people: what to show of up to tens of thousands of classes, and in which order."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from tenfold.corpus.hierarchy import parents_first
from tenfold.corpus.table import Classes

SHOWN = 1500  # classes in the tree at most, those with most images first
CHILDREN = 400  # children of one class at most
FIRST = 40  # of them that are not folded away behind one more line
OPEN = 48  # rows that are unfolded from the start


@dataclass
class Node:
    """One line of the tree.

    Attributes:
        index: class index.
        chain: classes above it that have this one child and the same images, shown on the same line, topmost first.
        children: shown children, most images first.
        more: children with images that are left out, and `more_images` labels on them.
        empty: children without an image at or below them, which are left out.
        also: under which other class (index) this one is shown in full; -1 where it is shown here.
        open: unfolded from the start.
    """

    index: int
    chain: list[int] = field(default_factory=list)
    children: list[Node] = field(default_factory=list)
    more: int = 0
    more_images: int = 0
    empty: int = 0
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
    weight = _weights(classes, counts)
    roots = [c for c, p in enumerate(classes.parents) if not p]
    top = Node(-1)
    home: dict[int, Node] = {}  # class -> the node it is shown under in full
    shown: list[int] = []
    turn = itertools.count()
    queue: list[tuple[int, int, int, Node]] = []

    def offer(node: Node, below: list[int], room: int) -> None:
        filled = sorted((c for c in below if weight[c]), key=lambda c: (-weight[c], c))
        node.empty = len(below) - len(filled)
        node.more, node.more_images = len(filled[room:]), sum(size[c] for c in filled[room:])
        for child in filled[:room]:
            heapq.heappush(queue, (-weight[child], next(turn), child, node))

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


def _weights(classes: Classes, counts: np.ndarray) -> list[int]:
    """For each class the most images of any class at or below it: its own, where labels are closed."""
    weight: list[int] = counts.tolist()
    for index in reversed(parents_first(classes.parents)):
        for parent in classes.parents[index]:
            weight[parent] = max(weight[parent], weight[index])
    return weight


def _fold(top: Node, classes: Classes, size: list[int]) -> None:
    """Put a class and its only child on one line, where both have the same images."""
    stack = [top]
    while stack:
        node = stack.pop()
        for at, child in enumerate(node.children):
            while len(child.children) == 1 and not child.more and not child.empty:
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
        rows += sum(min(len(node.children), FIRST) for node in level)
        if not below or rows > OPEN:
            return
        for node in level:
            node.open = bool(node.children)
        level = below


def lines(top: Node) -> Iterator[tuple[str, Node]]:
    """The tree as a flat sequence, for a template.

    `("open", node)`, …, `("close", node)` around children, `("leaf", node)` without; `("rest", node)`, …,
    `("end", node)` around the children of a node behind its first FIRST ones.
    """

    def below(node: Node) -> list[tuple[str, Node]]:
        kinds = ["open" if n.children or n.more or n.empty else "leaf" for n in node.children]
        out = list(zip(kinds, node.children, strict=True))
        return [*out[:FIRST], ("rest", node), *out[FIRST:], ("end", node)] if len(out) > FIRST + 5 else out

    stack = below(top)[::-1]
    while stack:
        kind, node = stack.pop()
        yield kind, node
        if kind == "open":
            stack += [("close", node), *below(node)[::-1]]
