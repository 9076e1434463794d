"""torch.distributed.checkpoint on `tenfold.storage`: files are hashed as they are written and verified before they are
read; tensors may be pieces of taller ones.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, cast

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemBase, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from tenfold import storage
from tenfold.errors import StorageError

State = Mapping[str, Tensor]


def shard(tensor: Tensor, first: int, total: int) -> Tensor:
    """Mark `tensor` [rows, …] as rows `first` to `first + rows` of a tensor [total, …]; returns `tensor` itself.

    Every tensor of a state that ranks hold in pieces is marked so (the head's weights, their optimizer state); the
    others are the same on all ranks. Pieces may be uneven (D-03), which DTensor's placements do not allow.
    """
    marked = cast(Any, tensor)
    zeros = (0,) * (tensor.dim() - 1)
    marked.global_shape = (total, *tensor.shape[1:])
    marked.global_offsets = ((first, *zeros),)
    marked.local_offsets = ((0, *zeros),)
    marked.local_sizes = (tuple(tensor.shape),)
    return tensor


def mark_like(tensor: Tensor, source: Any) -> Tensor:
    """Give `tensor` the marks of `source`, where it has any."""
    if isinstance(source, dcp.CheckpointableTensor):
        for name in ("global_shape", "global_offsets", "local_offsets", "local_sizes"):
            setattr(tensor, name, getattr(source, name))
    return tensor


def local_tensors(state: State) -> dict[str, Tensor]:
    """Each tensor as this rank holds it, sharing memory; DTensors become marked tensors, empty pieces are left out."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        local = tensor.detach()
        if isinstance(tensor, DTensor):
            sizes, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
            local = tensor.to_local().detach()
            marked = cast(Any, local)
            marked.global_shape, marked.global_offsets = tuple(tensor.shape), (tuple(offsets),)
            marked.local_offsets, marked.local_sizes = ((0,) * local.dim(),), (tuple(sizes),)
        else:
            mark_like(local, tensor)
        if local.numel() or not isinstance(local, dcp.CheckpointableTensor):
            tensors[name] = local
    return tensors


class _Hashing(io.RawIOBase):
    """A stream that hashes what is written to it. torch writes front to back, so the hash is that of the file."""

    def __init__(self, stream: storage.Writer) -> None:
        self.stream = stream
        self.sha256 = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        return self.stream.write(data)

    def tell(self) -> int:
        return self.stream.tell()


class _Files(FileSystemBase):
    """torch's view of `tenfold.storage`.

    Args:
        expected: name -> digest; when given, a file is verified before torch sees a byte of it.

    Attributes:
        written: name -> digest of the files written through this object.
    """

    def __init__(self, expected: Mapping[str, str] | None = None) -> None:
        self.expected = expected
        self.written: dict[str, str] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[Any]:
        uri = str(path)
        name = uri.rpartition("/")[2]
        if mode == "rb":
            with self._verified(uri, name) as file:
                yield file
            return
        with storage.open_write(uri) as raw:
            hashing = _Hashing(raw)
            stream = io.BufferedWriter(hashing, 1 << 20)  # torch writes a tensor in some forty pieces
            yield stream
            stream.close()  # torch may have done so already
        self.written[name] = "sha256:" + hashing.sha256.hexdigest()

    @contextmanager
    def _verified(self, uri: str, name: str) -> Iterator[IO[bytes]]:
        source = storage.open_read(uri)
        with source, tempfile.TemporaryFile() if storage.is_s3(uri) else source as file:  # torch seeks: not over a wire
            state = hashlib.sha256()
            while piece := source.read(1 << 22):
                state.update(piece)
                if file is not source:
                    file.write(piece)
            if self.expected is not None and self.expected.get(name) != "sha256:" + state.hexdigest():
                raise StorageError(
                    f"{uri} is damaged: its digest differs from the manifest's",
                    f"remove {uri.rpartition('/')[0]} and use an older checkpoint",
                )
            file.seek(0)
            yield file

    def concat_path(self, path: str | os.PathLike[str], suffix: str) -> str:
        return storage.join(str(path), suffix)

    def init_path(self, path: str | os.PathLike[str]) -> str:
        return str(path)

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        storage.copy(str(path), str(new_path))
        storage.remove(str(path))
        self.written[str(new_path).rpartition("/")[2]] = self.written.pop(str(path).rpartition("/")[2])

    def mkdir(self, path: str | os.PathLike[str]) -> None:
        pass  # storage makes folders when it writes into them

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True

    def exists(self, path: str | os.PathLike[str]) -> bool:
        return storage.exists(str(path))

    def rm_file(self, path: str | os.PathLike[str]) -> None:
        storage.remove(str(path))


class Writer(FileSystemWriter):
    """Writes through `storage`, one file a rank, and the same bytes for the same state (no random ids in metadata)."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri, sync_files=False)  # storage does
        self.files = _Files()
        self.fs = cast(Any, self.files)
        self.path = cast(Any, uri)

    def storage_meta(self) -> StorageMeta | None:
        """None: torch would put a random id here."""
        return None


class _Unpickler(pickle.Unpickler):
    """Reads `.metadata`, and refuses anything in it that is not plain description: a pickle can carry code."""

    ALLOWED = frozenset(
        {
            ("torch", "Size"),
            ("torch.serialization", "_get_layout"),
            ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
            *(
                ("torch.distributed.checkpoint.metadata", name)
                for name in (
                    "BytesStorageMetadata",
                    "ChunkStorageMetadata",
                    "Metadata",
                    "MetadataIndex",
                    "StorageMeta",
                    "TensorProperties",
                    "TensorStorageMetadata",
                    "_MEM_FORMAT_ENCODING",
                )
            ),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if dtype or (module, name) in self.ALLOWED:
            return super().find_class(module, name)
        raise StorageError(
            f"the checkpoint's .metadata names {module}.{name}, which no checkpoint needs",
            "do not use this file: it was not written by Tenfold",
        )


class Reader(FileSystemReader):
    """Reads through `storage`; every file is verified against the manifest's digests before torch sees it."""

    def __init__(self, uri: str, digests: Mapping[str, str]) -> None:
        super().__init__(uri)
        self.fs = cast(Any, _Files(digests))
        self.path = cast(Any, uri)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Which file holds which piece; unpickled with care."""
        if kwargs.get("rank") is not None:  # torch's second try; the first error is the one to tell
            raise StorageError(f"{self.path} cannot be read")
        with self.fs.create_stream(cast(Any, storage.join(str(self.path), ".metadata")), "rb") as file:
            metadata = cast(Metadata, _Unpickler(cast(Any, file)).load())
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        return metadata
