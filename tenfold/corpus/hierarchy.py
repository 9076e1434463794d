"""The class hierarchy and the completion of labels upward along it (D-05, D-10).

Classes form a directed graph whose edges point to parents; a class may have several. A label says that all ancestors of
its class hold as well (apple -> fruit), so closing replaces the labels of an image by their union with all ancestors.

**Votes of an ancestor.** Each person gives an image one label, so with `votes="sum"` an ancestor gets the sum of the
votes of the distinct labels given at or below it: two people for *cat* and one for *dog* make three for *animal*. A
class reached on two ways (several parents) is counted once. `votes="max"` takes the largest vote instead; use it for
scores, and for labels that come closed from their source.

The sum is of labels *as given*: summing over labels that are closed already would count the same people again. So a
closed state says so in its manifest (`facts.closed`, kept by later steps), and closing it again changes nothing.
"""

from __future__ import annotations

import itertools
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict
from scipy import sparse

from tenfold import storage
from tenfold.corpus.table import IMAGES, Classes, Corpus
from tenfold.corpus.tail import class_counts
from tenfold.errors import InputError
from tenfold.manifest import Manifest, digest_json, step_key

Votes = Literal["sum", "max"]
CHUNK = 4096  # rows closed at a time: their working set stays in the processor's cache
_SEARCH_BUDGET = 2_000_000  # edges looked at in search of the shortest cycle


class HierarchyStatistics(BaseModel):
    """Shape of a class hierarchy; JFT's is depth 12 and fan-out 2,876 over 18,291 classes (D-03, D-05).

    Attributes:
        classes, edges, roots, leaves: how many; a class without parents and children is both root and leaf.
        several_parents: classes with more than one parent.
        depth: edges on the longest way from a root; `deepest` is a class at its end.
        fan_out: most children of one class; `widest` is that class.
        mean_lineage: mean number of labels that one label becomes (itself and its ancestors).
    """

    model_config = ConfigDict(frozen=True)

    classes: int
    edges: int
    roots: int
    leaves: int
    several_parents: int
    depth: int
    deepest: str
    fan_out: int
    widest: str
    mean_lineage: float


@dataclass(frozen=True)
class Hierarchy:
    """A checked hierarchy, ready to close labels with.

    Attributes:
        offsets: int64 [C + 1]; `lineage[offsets[c]:offsets[c + 1]]` are class c and all its ancestors.
        lineage: int32, ascending for each class.
        depth: int32 [C], edges on the longest way from a root.
        statistics: its shape.
    """

    offsets: np.ndarray
    lineage: np.ndarray
    depth: np.ndarray
    statistics: HierarchyStatistics

    @classmethod
    def of(cls, classes: Classes) -> Hierarchy:
        """Check the hierarchy and find all ancestors; raises InputError (see `check`)."""
        check(classes)
        size = len(classes)
        child, parent = _edges(classes.parents)
        depth = np.zeros(size, np.int32)
        lineages: list[list[int]] = [[]] * size
        for index in parents_first(classes.parents):
            own = classes.parents[index]
            # Several ways to an ancestor count once, so several parents are united.
            lineages[index] = sorted({index}.union(*(lineages[p] for p in own)))
            depth[index] = max((depth[p] + 1 for p in own), default=0)
        offsets = np.zeros(size + 1, np.int64)
        np.cumsum([len(lineage) for lineage in lineages], out=offsets[1:])
        lineage = np.fromiter(itertools.chain.from_iterable(lineages), np.int32, int(offsets[-1]))
        children = np.bincount(parent, minlength=size)
        statistics = HierarchyStatistics(
            classes=size,
            edges=len(child),
            roots=int(size - len(np.unique(child))),
            leaves=int((children == 0).sum()),
            several_parents=int((np.bincount(child, minlength=size) > 1).sum()),
            depth=int(depth.max(initial=0)),
            deepest=classes.names[int(depth.argmax())] if size else "",
            fan_out=int(children.max(initial=0)),
            widest=classes.names[int(children.argmax())] if size else "",
            mean_lineage=round(len(lineage) / max(size, 1), 3),
        )
        return cls(offsets, lineage, depth, statistics)

    def of_class(self, index: int) -> np.ndarray:
        """A class and all its ancestors, ascending indices."""
        found: np.ndarray = self.lineage[self.offsets[index] : self.offsets[index + 1]]
        return found


def check(classes: Classes) -> None:
    """Raise InputError, naming classes, for a missing parent, a class that is its own parent, or a cycle."""
    size = len(classes)
    for index, parents in enumerate(classes.parents):
        name = classes.names[index]
        for parent in parents:
            if not 0 <= parent < size:
                raise InputError(
                    f"class {name!r} (index {index}) has parent {parent}, but there are only {size} classes",
                    "add the missing class to the class list, or take the parent out",
                )
            if parent == index:
                raise InputError(f"class {name!r} is its own parent", f"take {name!r} out of its own parents")
    if cycle := find_cycle(classes.parents):
        names = " -> ".join(classes.names[i] for i in [*cycle, cycle[0]])
        raise InputError(
            f"the class hierarchy has a cycle of {len(cycle)} classes: {names} (each arrow points to a parent)",
            "take one of these parents out of the class list",
        )


def parents_first(parents: Sequence[Sequence[int]]) -> list[int]:
    """All classes in an order in which each comes behind its parents; those on or below a cycle are missing."""
    waiting = [len(set(own)) for own in parents]
    children: list[list[int]] = [[] for _ in parents]
    for index, own in enumerate(parents):
        for parent in set(own):
            children[parent].append(index)
    order = [index for index, count in enumerate(waiting) if not count]
    for index in order:  # grows meanwhile
        for child in children[index]:
            waiting[child] -= 1
            if not waiting[child]:
                order.append(child)
    return order


def find_cycle(parents: Sequence[Sequence[int]]) -> list[int] | None:
    """A shortest cycle as class indices, child before parent, from its smallest index on; None where there is none.

    Searched breadth first from every class that lies on a cycle, until about two million edges were looked at: exact
    for any hierarchy made by people, and still a true cycle beyond.
    """
    child, parent = _edges(parents)
    size = len(parents)
    graph = sparse.csr_array((np.ones(len(child), np.int8), (child, parent)), shape=(size, size))
    _, part = sparse.csgraph.connected_components(graph, connection="strong")
    own = np.unique(child[child == parent])
    if len(own):
        return [int(own[0])]
    sizes = np.bincount(part, minlength=1)
    suspects = np.flatnonzero(sizes[part] > 1)
    best: list[int] | None = None
    budget = _SEARCH_BUDGET
    for start in suspects[np.argsort(sizes[part[suspects]], kind="stable")].tolist():
        if best is not None and (len(best) == 2 or budget < 0):
            break
        came_from: dict[int, int] = {start: -1}
        queue = deque([(start, 1)])
        while queue:
            node, length = queue.popleft()
            if best is not None and length >= len(best):
                break
            budget -= len(parents[node])
            if start in parents[node]:
                way = [node]
                while came_from[way[-1]] != -1:
                    way.append(came_from[way[-1]])
                best = way[::-1]
                break
            for up in parents[node]:
                if part[up] == part[start] and up not in came_from:
                    came_from[up] = node
                    queue.append((up, length + 1))
    if best is None:
        return None
    first = best.index(min(best))
    return best[first:] + best[:first]


def _edges(parents: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.fromiter((len(p) for p in parents), np.int64, len(parents))
    child = np.repeat(np.arange(len(parents)), lengths)
    return child, np.fromiter((i for p in parents for i in p), np.int64, int(lengths.sum()))


def close_labels(
    offsets: np.ndarray, labels: np.ndarray, votes: np.ndarray, hierarchy: Hierarchy, how: Votes = "sum"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Close ragged labels under their ancestors: pure, arrays in, arrays out, no Python loop over rows.

    Args:
        offsets: int [N + 1], where each row's labels begin; offsets[0] may be other than 0.
        labels: class indices, int32, without repeats in a row.
        votes: one for each label, float32.
        hierarchy: of the classes.
        how: what votes an ancestor gets (see the module).

    Returns:
        offsets int64 [N + 1] from 0, labels int32 ascending in each row, votes float32.

    Memory beside the result is that of `CHUNK` rows. Raises InputError for a label that is no class.
    """
    rows = len(offsets) - 1
    lo, hi = int(offsets[0]), int(offsets[-1])
    used = labels[lo:hi]
    size = len(hierarchy.offsets) - 1
    if len(used) and (used.min() < 0 or used.max() >= size):
        row = int(np.searchsorted(offsets, lo + int(np.flatnonzero((used < 0) | (used >= size))[0]), "right")) - 1
        raise InputError(f"row {row} has a label that is none of the {size} classes", "ingest the corpus again")
    lengths = np.diff(hierarchy.offsets)
    # An upper bound on the result; pages that stay untouched cost no memory.
    bound = sum(int(lengths[used[at : at + (1 << 20)]].sum()) for at in range(0, len(used), 1 << 20))
    new_labels, new_votes = np.empty(bound, np.int32), np.empty(bound, np.float32)
    new_offsets = np.zeros(rows + 1, np.int64)
    reach = sparse.csr_array(
        (np.ones(len(hierarchy.lineage), np.float32), hierarchy.lineage, hierarchy.offsets.astype(np.int32)),
        shape=(size, size),
    )
    filled = 0
    for start in range(0, rows, CHUNK):
        cut = np.asarray(offsets[start : start + CHUNK + 1])
        piece, weight = labels[cut[0] : cut[-1]], votes[cut[0] : cut[-1]].astype(np.float32, copy=False)
        local = (cut - cut[0]).astype(np.int32)
        # The sparse product drops sums of exactly 0, so it serves positive votes only.
        if how == "sum" and (weight > 0).all():
            product = sparse.csr_array((weight, piece, local), shape=(len(local) - 1, size)) @ reach
            product.sort_indices()
            ends, got_labels, got_votes = product.indptr[1:], product.indices, product.data
        else:
            ends, got_labels, got_votes = _close_by_sorting(local, piece, weight, hierarchy, how)
        until = filled + len(got_labels)
        new_labels[filled:until], new_votes[filled:until] = got_labels, got_votes
        new_offsets[start + 1 : start + len(local)] = ends + np.int64(filled)
        filled = until
    return new_offsets, new_labels[:filled], new_votes[:filled]


def _close_by_sorting(
    offsets: np.ndarray, labels: np.ndarray, votes: np.ndarray, hierarchy: Hierarchy, how: Votes
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One chunk by sorting (row, ancestor) keys: any votes, any reduction; about 2.5 times the product's time."""
    rows = len(offsets) - 1
    lengths = np.diff(hierarchy.offsets)[labels]
    at = np.repeat(np.arange(len(labels)), lengths)
    shift = hierarchy.offsets[labels] - (np.cumsum(lengths) - lengths)
    ancestors = hierarchy.lineage[shift[at] + np.arange(len(at))]
    row = np.repeat(np.arange(rows), np.diff(offsets))
    keys = row[at] * np.int64(len(hierarchy.offsets)) + ancestors
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    reduce = np.add if how == "sum" else np.maximum
    merged = reduce.reduceat(votes[at[order]], first) if len(first) else np.empty(0, np.float32)
    row, ancestor = np.divmod(keys[first], len(hierarchy.offsets))
    return np.cumsum(np.bincount(row, minlength=rows)), ancestor, merged


def close_batch(batch: pa.RecordBatch, hierarchy: Hierarchy, how: Votes = "sum") -> pa.RecordBatch:
    """`close_labels` for a record batch with the columns `labels` and `votes`."""
    lengths = batch["labels"].value_lengths().to_numpy(zero_copy_only=False)
    offsets = np.zeros(batch.num_rows + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    labels, votes = (batch[name].flatten().to_numpy(zero_copy_only=False) for name in ("labels", "votes"))
    offsets, labels, votes = close_labels(offsets, labels, votes, hierarchy, how)
    ends = pa.array(offsets.astype(np.int32))
    columns = [pa.ListArray.from_arrays(ends, pa.array(values)) for values in (labels, votes)]
    return pa.record_batch(columns, schema=pa.schema([IMAGES.field("labels"), IMAGES.field("votes")]))


class Closing(BaseModel):
    """What closing did.

    Attributes:
        corpus, tag, digest: the closed state.
        changed: False where there was nothing to do, or where the same closing had been done before.
        votes: how ancestors got theirs.
        images: rows of the corpus.
        labels_before, labels_after: labels of all images.
        hierarchy: shape of the hierarchy.
        per_class: class name -> (images before, images after).
    """

    model_config = ConfigDict(frozen=True)

    corpus: str
    tag: str
    digest: str
    changed: bool
    votes: Votes
    images: int
    labels_before: int
    labels_after: int
    hierarchy: HierarchyStatistics
    per_class: dict[str, tuple[int, int]]


def close(
    corpus: Corpus, *, votes: Votes = "sum", tag: str = "closed", hierarchy: Classes | None = None
) -> tuple[Corpus, Closing]:
    """Close the labels of a corpus under their ancestors and write the result as a new state (D-10).

    Args:
        corpus: the state to close; its images are not touched and it stays readable.
        votes: what votes an ancestor gets (see the module).
        tag: name of the new state.
        hierarchy: take parents from here, joined to the corpus by class name (see `with_hierarchy`).

    Streaming, in memory that does not grow with the corpus. A state that is closed already is returned as it is, and
    so is the result of the same closing done before. Raises InputError for a broken hierarchy, for a closed state that
    is to be closed in another way, and for a tag that cannot be.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", tag) or ".." in tag:
        raise InputError(f"--tag: {tag!r} is no name for a state", "use letters, digits, dots, dashes and underscores")
    classes = with_hierarchy(corpus.classes, hierarchy) if hierarchy else corpus.classes
    known = Hierarchy.of(classes)
    graph = graph_digest(classes)
    recipe = {"verb": "corpus close", "votes": votes, "classes": graph}
    closed = corpus.manifest.facts.get("closed")
    before = corpus
    if closed:
        given = state(corpus, closed["of"], closed["digest"])  # not there in a subset of a closed corpus
        if (closed["votes"], closed["classes"]) != (votes, graph):
            raise InputError(
                f"{corpus.uri}@{corpus.tag} was closed already, with votes={closed['votes']}"
                + ("" if closed["classes"] == graph else " and another class hierarchy"),
                f"close the state before it: {corpus.uri}@{closed['of']}"
                if given
                else f"take the subset anew from the state {closed['of']!r} of the corpus that it came from",
            )
        result, changed, before = corpus, False, given or corpus
    elif done := state(corpus, tag, key=step_key(recipe, [corpus.digest])):
        result, changed = done, False
    elif tag == corpus.tag:
        raise InputError(f"--tag: {tag!r} is the state that is to be closed", "give the new state another name")
    else:
        facts = {"votes": votes, "classes": graph, "of": corpus.tag, "digest": corpus.digest}
        result = corpus.rewrite(
            tag,
            ["labels", "votes"],
            lambda batch: close_batch(batch, known, votes),
            classes=classes,
            recipe=recipe,
            facts={"closed": facts},
        )
        changed = True
    counts = class_counts(before), class_counts(result)
    was = np.zeros(len(classes), np.int64)
    was[: len(counts[0])] = counts[0]
    return result, Closing(
        corpus=result.uri,
        tag=result.tag,
        digest=result.digest,
        changed=changed,
        votes=votes,
        images=result.rows,
        labels_before=int(was.sum()),
        labels_after=int(counts[1].sum()),
        hierarchy=known.statistics,
        per_class={n: (int(a), int(b)) for n, a, b in zip(classes.names, was, counts[1], strict=True)},
    )


def graph_digest(classes: Classes) -> str:
    """Digest of names and parents, by which a closed state knows its hierarchy."""
    return digest_json([classes.names, classes.parents])


def state(corpus: Corpus, tag: str, digest: str = "", key: str = "") -> Corpus | None:
    """The state `tag` of the same corpus, where it has this digest or was made by the step with this key."""
    path = storage.join(corpus.uri, "manifests", f"{tag}.json")
    if not storage.exists(path):
        return None
    there: Manifest = Manifest.read(path).model_copy(update={"uri": corpus.uri})
    if there.digest != digest and (not key or step_key(there.recipe, there.inputs, there.code) != key):
        return None
    return Corpus(corpus.uri, there)


def with_hierarchy(classes: Classes, hierarchy: Classes) -> Classes:
    """Parents from `hierarchy`, joined by class name. Indices of `classes` stay; ancestors it lacks are added behind.

    Of the hierarchy only what lies above the given classes is taken. Raises InputError where no class is in it.
    """
    theirs = {name: i for i, name in enumerate(hierarchy.names)}
    shared = [name for name in classes.names if name in theirs]
    if not shared:
        raise InputError(
            f"none of the {len(classes)} classes is in the given hierarchy",
            f"name them alike: the corpus has {', '.join(classes.names[:3])}, …",
        )
    check(hierarchy)
    wanted, queue = set(shared), deque(shared)
    while queue:
        for parent in hierarchy.parents[theirs[queue.popleft()]]:
            if (name := hierarchy.names[parent]) not in wanted:
                wanted.add(name)
                queue.append(name)
    own = set(classes.names)
    names = [*classes.names, *(name for name in hierarchy.names if name in wanted and name not in own)]
    index = {name: i for i, name in enumerate(names)}
    titles, parents = list(classes.titles), list(classes.parents)
    titles += [hierarchy.titles[theirs[name]] for name in names[len(classes) :]]
    parents += [()] * (len(names) - len(classes))
    for name in wanted:
        parents[index[name]] = tuple(index[hierarchy.names[p]] for p in hierarchy.parents[theirs[name]])
    return Classes(tuple(names), tuple(titles), tuple(parents))


def jft_like(seed: int = 0) -> Classes:
    """A made-up hierarchy of JFT's published shape: 18,291 classes, depth 12, fan-out 2,876 (D-03, D-05).

    One class in twenty has a second parent. For tests at full size, benchmarks and synthetic corpora; pure in `seed`.
    """
    size, deepest, widest = 18_291, 12, 2_876
    random = np.random.default_rng(seed)
    depth = [*range(deepest + 1)]  # classes 0 to 12 are one chain; class 3 has 2,875 children beside class 4
    parents: list[tuple[int, ...]] = [(), *((i,) for i in range(deepest)), *([(3,)] * (widest - 1))]
    depth += [4] * (widest - 1)
    open_ = [i for i, d in enumerate(depth) if d < deepest and i != 3]
    draws = random.random((size, 2))
    for index in range(len(parents), size):
        first = open_[int(draws[index, 0] * len(open_))]
        second = int(draws[index, 1] * 20 * index)  # one in twenty lies below index
        deeper = second < index and second not in (first, 3) and depth[second] < depth[first]
        parents.append((first, second) if deeper else (first,))
        depth.append(depth[first] + 1)
        if depth[index] < deepest:
            open_.append(index)
    names = tuple(f"c{i:05d}" for i in range(size))
    return Classes(names, names, tuple(parents))
