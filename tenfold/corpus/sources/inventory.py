"""What files a finished source must have, and whether it still has them.

A second `tenfold fetch` is instant and yet tells a damaged copy: small sources are hashed whole, large ones are counted
folder by folder, and `--verify` looks at the size of every file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tenfold import storage

HASHED_FILES, HASHED_BYTES = 2000, 1 << 30  # sources below both are hashed; a GiB takes about a second


def take(root: Path, folders: tuple[str, ...] = ()) -> dict[str, Any]:
    """The inventory of the files below `root` (or only below these folders of it), of plain JSON types.

    Keys: `bytes`, `count`, `listing` (sha256 of the sorted lines `path size`), and `files` (path: [size, sha256]) for
    small sources or `folders` (path: number of files in it) for large ones.
    """
    sizes = dict(_walk(root, folders))
    total = sum(sizes.values())
    summary = {"bytes": total, "count": len(sizes), "listing": _listing(sizes)}
    if len(sizes) <= HASHED_FILES and total <= HASHED_BYTES:
        digests = {path: storage.digest(str(root / path)).removeprefix("sha256:") for path in sorted(sizes)}
        return {**summary, "files": {path: [sizes[path], digest] for path, digest in digests.items()}}
    counts: dict[str, int] = {}
    for path in sizes:
        folder = os.path.dirname(path)
        counts[folder] = counts.get(folder, 0) + 1
    return {**summary, "folders": dict(sorted(counts.items()))}


def damages(root: Path, inventory: dict[str, Any], *, thorough: bool = False) -> list[str]:
    """What is wrong below `root`, a sentence each; empty where nothing is."""
    found = []
    for path, (size, digest) in inventory.get("files", {}).items():
        file = root / path
        if not file.is_file():
            found.append(f"{path} is missing")
        elif (got := file.stat().st_size) != size:
            found.append(f"{path} has {got:,} bytes, expected {size:,}")
        elif (read := storage.digest(str(file)).removeprefix("sha256:")) != digest:
            found.append(f"{path} is damaged: expected sha256 {digest}, got {read}")
    for path, count in inventory.get("folders", {}).items():
        folder = root / path
        there = sum(1 for entry in os.scandir(folder) if entry.is_file()) if folder.is_dir() else 0
        if there < count:
            found.append(f"{path or root} has {there:,} files, expected {count:,}")
    if thorough and not found and "folders" in inventory:
        sizes = {path: size for path, size in _walk(root) if os.path.dirname(path) in inventory["folders"]}
        if _listing(sizes) != inventory["listing"]:
            found.append(f"files below {root} have changed their size or name")
    return found


def _walk(root: Path, folders: tuple[str, ...] = ()) -> Iterator[tuple[str, int]]:
    """Relative path and size of every file below `root` but the ones that describe the source itself."""
    stack = list(folders) or [""]
    while stack:
        folder = stack.pop()
        with os.scandir(root / folder) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_dir():
                    stack.append(path)
                elif path not in ("source.json", "card.md"):
                    yield path, entry.stat().st_size


def _listing(sizes: dict[str, int]) -> str:
    lines = "\n".join(f"{path} {size}" for path, size in sorted(sizes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
