"""Canonical streams: which row is read at (epoch, step, slot), whatever the number of ranks (design section 4).

Everything here is a pure function on numbers: no table, no thread, no state. An epoch is made in four moves:

1. The first n rows are cut into **blocks** of `block` contiguous rows; the blocks are permuted (seed, digest, epoch).
2. The permuted row sequence is cut into `streams` contiguous segments, whose lengths differ by at most one.
3. Each stream is cut into **windows** of about `window` rows, which are shuffled inside. Windows of different streams
   end at different times, so reading is even.
4. Position p of the epoch belongs to stream p mod S, at place p // S of it. A step takes the next `batch` positions;
   its slots list them by stream, so a rank's slots are a contiguous range of slots *and* of streams.

So every row comes once an epoch (but the last n mod batch positions, which are other rows every epoch), the world size
is nowhere in it, and reading is in contiguous blocks. The table is in random order already: the shuffle only has to
make epochs differ, not to undo an order.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from tenfold.errors import InputError

STREAMS = 64
RECORD_BYTES = 20_000  # a JPEG of 340 px on the short side
MEMORY_BYTES = 192 << 20  # of encoded records that all streams together hold at once, half of it on average
READ_BYTES = 1 << 20  # a contiguous read worth its request, from an object store
BLOCKS_A_WINDOW = 4

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


class Plan(BaseModel):
    """The order of samples: a pure function of (seed, digest, n) for a given geometry (batch, streams, block, window).

    A checkpoint should keep the plan whole (`model_dump`), so that a resume reads on in the same order even where
    defaults have changed since.

    Attributes:
        seed: of the order and of augmentation.
        digest: of the corpus state, so another corpus gives another order under the same seed.
        n: rows read: the first n of the table, a random subset by construction (D-12).
        batch: samples of one step over all ranks (the global batch).
        streams: logical streams, S; as many ranks as this read disjoint blocks. It does not depend on the world size.
        block: rows of a contiguous read.
        window: rows shuffled together inside a stream.

    Memory: the loader holds at most about streams x window encoded records over all ranks (each rank its share), half
    of it on average: 192 MiB with the defaults of `Plan.sized`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(ge=0, lt=1 << 63)
    digest: str
    n: int = Field(ge=1)
    batch: int = Field(ge=1)
    streams: int = Field(default=STREAMS, ge=1, le=1 << 16)
    block: int = Field(default=0, ge=0, description="0 chooses one for records of 20 kB")
    window: int = Field(default=0, ge=0, description="0 chooses one for records of 20 kB")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.batch > self.n:
            raise InputError(
                f"batch = {self.batch} is larger than the corpus subset, n = {self.n}: an epoch would have no step",
                "choose a smaller batch or a larger n",
            )
        block, window = default_geometry(self.n, self.streams, RECORD_BYTES)
        object.__setattr__(self, "window", self.window or max(window, self.block))
        object.__setattr__(self, "block", self.block or min(block, self.window))
        return self

    @classmethod
    def sized(cls, *, seed: int, digest: str, n: int, batch: int, record_bytes: int, streams: int = STREAMS) -> Plan:
        """A plan whose block and window fit records of about `record_bytes` encoded bytes."""
        block, window = default_geometry(n, streams, record_bytes)
        return cls(seed=seed, digest=digest, n=n, batch=batch, streams=streams, block=block, window=window)

    @property
    def steps_per_epoch(self) -> int:
        """Whole steps of an epoch; the n mod batch positions left over are dropped, other rows every epoch."""
        return self.n // self.batch

    def at(self, step: int) -> tuple[int, int]:
        """Epoch and step inside it of a global step (counted over all epochs, from 0)."""
        return divmod(step, self.steps_per_epoch)

    def slots(self, rank: int = 0, world: int = 1) -> range:
        """Slots that a rank reads: [rank x batch / world, (rank + 1) x batch / world).

        Raises InputError where the ranks would get unequal shares, or `rank` is not one of them.
        """
        if not 0 <= rank < world:
            raise InputError(f"rank = {rank} is not in a world of {world}", "ranks count from 0 to world - 1")
        if self.batch % world:
            raise InputError(
                f"batch = {self.batch} cannot be shared equally by {world} ranks",
                f"choose a batch that is a multiple of {world}, or another number of ranks",
            )
        share = self.batch // world
        return range(rank * share, (rank + 1) * share)

    def rows(self, epoch: int, step: int, slots: range | np.ndarray | None = None) -> np.ndarray:
        """Table rows, int64 [len(slots)], of `slots` (all by default) of a step inside an epoch."""
        return self.locate(epoch, step, slots)[0]

    def locate(
        self, epoch: int, step: int, slots: range | np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Table row, stream, and window in it, int64 [len(slots)] each, of the slots of a step inside an epoch."""
        streams, places = self.positions(step, slots)
        windows = self.window_of(streams, places)
        rows = np.empty(len(streams), np.int64)
        order = np.lexsort((windows, streams))
        cuts = np.flatnonzero((np.diff(streams[order]) != 0) | (np.diff(windows[order]) != 0)) + 1
        for group in np.split(order, cuts):
            if len(group):
                stream, window = int(streams[group[0]]), int(windows[group[0]])
                start = self.window_bounds(stream, window)[0]
                rows[group] = self.window_rows(epoch, stream, window)[places[group] - start]
        return rows, streams, windows

    def positions(self, step: int, slots: range | np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Stream and place in it, int64 [len(slots)] each, of the slots of a step inside an epoch.

        Raises InputError where the epoch has no such step, or the step no such slot.
        """
        if not 0 <= step < self.steps_per_epoch:
            raise InputError(
                f"step = {step} is not in an epoch of {self.steps_per_epoch} steps",
                "split a global step with Plan.at",
            )
        index = np.arange(self.batch) if slots is None else np.asarray(slots, dtype=np.int64)
        if len(index) and not 0 <= index.min() <= index.max() < self.batch:
            raise InputError(f"slots reach beyond a batch of {self.batch}", f"choose from 0 to {self.batch - 1}")
        first = step * self.batch
        position = first + _slot_order(self.batch, self.streams, first % self.streams)[index]
        return position % self.streams, position // self.streams

    def stream_length(self, stream: int) -> int:
        """Rows of a stream."""
        return self.n // self.streams + (stream < self.n % self.streams)

    def window_of(self, streams: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Window, counted from 0 inside each stream, of places in streams."""
        # The first window of a stream is cut short by a different amount each, so that windows do not all end together.
        return (places + streams * self.window // self.streams) // self.window

    def window_bounds(self, stream: int, window: int) -> tuple[int, int]:
        """Places [first, last) of a window of a stream."""
        shift = stream * self.window // self.streams
        length = self.stream_length(stream)
        return min(max(window * self.window - shift, 0), length), min((window + 1) * self.window - shift, length)

    def window_rows(self, epoch: int, stream: int, window: int) -> np.ndarray:
        """Table rows of a window in the order in which they are read, int64 [its rows]; read-only."""
        first, last = self.window_bounds(stream, window)
        start = stream * (self.n // self.streams) + min(stream, self.n % self.streams)
        key = _epoch_key(self.seed, self.digest, self.n, epoch)
        return _window_rows(key, self.n, self.block, start + first, start + last)

    def sample_random(self, epoch: int, step: int, slot: int, attempt: int = 0) -> SampleRandom:
        """The randomness of one sample (augmentation): pure in (seed, digest, n, epoch, step, slot, attempt)."""
        key = _epoch_key(self.seed, self.digest, self.n, epoch)
        return SampleRandom(mix(mix(mix(key ^ _SAMPLE) ^ (step * self.batch + slot)) ^ attempt))

    def replacement(self, epoch: int, step: int, slot: int, attempt: int) -> int:
        """The row read instead where the row of a slot cannot be decoded; `attempt` counts from 1."""
        return SampleRandom(self.sample_random(epoch, step, slot, attempt).key ^ _REPLACE).below(self.n)


class SampleRandom:
    """A small random source for one sample: splitmix64, a few draws in microseconds.

    numpy's generators cost more to make than a small image costs to augment, and their streams may change between
    numpy versions; this one never does.
    """

    __slots__ = ("key", "state")

    def __init__(self, key: int) -> None:
        self.key = key & _MASK
        self.state = self.key

    def bits(self) -> int:
        """64 random bits."""
        self.state = (self.state + _GOLDEN) & _MASK
        return mix(self.state)

    def random(self) -> float:
        """Uniform in [0, 1)."""
        return (self.bits() >> 11) * 2.0**-53

    def below(self, n: int) -> int:
        """Uniform integer in [0, n); the bias is below n / 2^64."""
        return (self.bits() * n) >> 64

    def generator(self) -> np.random.Generator:
        """A numpy generator seeded by this sample, for tasks that need its distributions."""
        return np.random.Generator(np.random.Philox(key=self.bits()))


def default_geometry(n: int, streams: int, record_bytes: int) -> tuple[int, int]:
    """Block and window (rows) for n rows of about `record_bytes` in `streams` streams.

    The window is what the memory budget allows, at most a stream; a block is a quarter of it, or what makes a read of
    1 MiB where that is less.
    """
    if n < 1 or streams < 1 or record_bytes < 1:
        raise InputError(
            f"n = {n}, streams = {streams} and record_bytes = {record_bytes} must be at least 1",
            "pass the size of the corpus subset and the mean bytes of its images",
        )
    window = min(-(-n // streams), max(BLOCKS_A_WINDOW, MEMORY_BYTES // (streams * record_bytes)))
    block = min(window // BLOCKS_A_WINDOW, max(16, READ_BYTES // record_bytes))
    return max(block, 1), max(window, 1)


def mix(value: int) -> int:
    """splitmix64's finaliser: a bijection of 64 bits that looks random."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def keyed_order(key: int, first: int, count: int) -> np.ndarray:
    """A permutation of range(count), int64: the order of the random keys of `first`, `first + 1`, …"""
    with np.errstate(over="ignore"):
        x = np.arange(first + 1, first + 1 + count, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(key)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return np.argsort(x, kind="stable")


_SAMPLE, _REPLACE, _BLOCKS = (mix(tag) for tag in (0x5A, 0x5B, 0x5C))  # keep the uses of one key apart


@functools.lru_cache(maxsize=64)
def _epoch_key(seed: int, digest: str, n: int, epoch: int) -> int:
    text = f"tenfold streams 1\n{seed}\n{digest}\n{n}\n{epoch}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


@functools.lru_cache(maxsize=3)
def _block_order(key: int, count: int) -> tuple[np.ndarray, int]:
    """The permuted blocks, and where among them the last block of the table (which may be short) comes."""
    order = keyed_order(key ^ _BLOCKS, 0, count)
    return order, int(np.flatnonzero(order == count - 1)[0])


@functools.lru_cache(maxsize=1024)
def _window_rows(key: int, n: int, block: int, first: int, last: int) -> np.ndarray:
    """Rows at positions [first, last) of the block-permuted sequence, shuffled."""
    order, last_block = _block_order(key, -(-n // block))
    position = first + keyed_order(key, first, last - first)
    # All blocks are full but the last of the table; wherever it comes, what follows it has moved up.
    short = -n % block
    if short:
        after = (last_block + 1) * block - short
        position = np.where(position >= after, position + short, position)
    rows: np.ndarray = order[position // block] * block + position % block
    rows.flags.writeable = False
    return rows


@functools.lru_cache(maxsize=256)
def _slot_order(batch: int, streams: int, phase: int) -> np.ndarray:
    """Positions of a step, relative to its first, listed by stream; `phase` is the stream of the first."""
    return np.argsort((np.arange(batch) + phase) % streams, kind="stable")
