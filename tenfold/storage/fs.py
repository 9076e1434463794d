"""S3 for whatever speaks fsspec: pyarrow, torch's FsspecWriter, `fsspec.open`.

Registered for `s3://` when `tenfold.storage` is imported. Why not s3fs: current releases come with aiobotocore, which
holds botocore to versions that boto3 has left behind, so beside a current boto3 resolvers fall back to a release of
2020. That one completes an upload although writing it failed, and remembers listings. This one keeps no state at all:
settings, client and listings are those of now.
"""

from __future__ import annotations

from typing import Any

from fsspec import AbstractFileSystem
from fsspec.spec import AbstractBufferedFile

from tenfold.errors import StorageError
from tenfold.storage import s3
from tenfold.storage.uris import split

READ_BLOCK = 4 << 20  # bytes fetched at once when a file is read in order


class S3FileSystem(AbstractFileSystem):
    """`s3://bucket/key` as a file system. Files are opened in binary modes `rb` and `wb`, whole or not at all."""

    protocol = ("s3", "s3a")
    cachable = False  # it has no state, so there is nothing to share

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        return "/".join(split(str(path).replace("s3a://", "s3://", 1))).rstrip("/")

    def unstrip_protocol(self, name: str) -> str:
        """`bucket/key` as `s3://bucket/key`."""
        return f"s3://{self._strip_protocol(name)}"

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """Name, type and size (bytes) of a file or folder; FileNotFoundError where there is neither."""
        path = self._strip_protocol(path)
        uri = f"s3://{path}"
        if entry := s3.head(uri):
            return _details(path, entry)
        if next(iter(s3.entries(uri, limit=1)), None) or not split(uri)[1]:
            return {"name": path, "type": "directory", "size": 0}
        raise FileNotFoundError(uri)

    def exists(self, path: str, **kwargs: Any) -> bool:
        """Whether a file or folder is there. Unlike fsspec's own, a server that is away is an error, not a no."""
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """What is directly in a folder."""
        path = self._strip_protocol(path)
        bucket = split(path)[0]
        if not bucket:
            raise StorageError("s3:// names no bucket", "write s3://BUCKET/PATH")
        files, folders = s3.level(f"s3://{path}")
        found = [_details(f"{bucket}/{entry.key}", entry) for entry in files if not entry.key.endswith("/")]
        found += [{"name": f"{bucket}/{key}", "type": "directory", "size": 0} for key in folders]
        if not found:
            found = [self.info(path)]
            if found[0]["type"] == "directory":
                found = []
        return found if detail else sorted(one["name"] for one in found)

    def find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **kwargs: Any
    ) -> Any:
        """All files below a folder, by one flat listing."""
        if maxdepth is not None or withdirs or kwargs.get("prefix"):
            return super().find(path, maxdepth=maxdepth, withdirs=withdirs, detail=detail, **kwargs)
        path = self._strip_protocol(path)
        bucket = split(path)[0]
        found = {
            (name := f"{bucket}/{entry.key}"): _details(name, entry)
            for entry in s3.entries(f"s3://{path}")
            if not entry.key.endswith("/")
        }
        if not found and (entry := s3.head(f"s3://{path}")):
            found = {path: _details(path, entry)}
        return found if detail else sorted(found)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """Bytes of a file; negative bounds count from its end."""
        uri = self.unstrip_protocol(path)
        if start is None and end is None:
            return s3.get(uri)
        size = self.info(path)["size"]
        low, high, _ = slice(start, end).indices(size)
        return s3.get(uri, low, high)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        """Write a file."""
        if mode == "create" and self.exists(path):
            raise FileExistsError(path)
        with s3.S3Writer(self.unstrip_protocol(path)) as file:
            file.write(value)

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        """Copy on the server."""
        s3.copy(self.unstrip_protocol(path1), self.unstrip_protocol(path2))

    def _rm(self, path: str) -> None:
        uri = self.unstrip_protocol(path)
        s3.delete(uri, [split(uri)[1]])

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Remove files, or folders with all they hold."""
        for one in path if isinstance(path, list) else [path]:
            uri = self.unstrip_protocol(one)
            if recursive:
                s3.delete(uri, (entry.key for entry in s3.entries(uri)))
            self._rm(one)

    def mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> None:
        """Nothing: S3 has no folders, and buckets are made by the operator."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Nothing, as `mkdir`."""

    def rmdir(self, path: str) -> None:
        """Nothing: a folder goes with its last file."""

    def created(self, path: str) -> Any:
        """When a file was written (S3 keeps one time)."""
        return self.info(path)["LastModified"]

    modified = created

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **kwargs: Any) -> Any:
        uri = self.unstrip_protocol(path)
        if mode == "wb":
            return s3.S3Writer(uri)
        if mode == "rb":
            details = self.info(path)
            if details["type"] == "directory":
                raise IsADirectoryError(uri)
            cache = {key: kwargs[key] for key in ("cache_type", "cache_options") if key in kwargs}
            return _Reader(self, path, block_size or READ_BLOCK, details, **cache)
        raise ValueError(f"{uri}: files on S3 are opened in mode 'rb' or 'wb', not {mode!r}")


class _Reader(AbstractBufferedFile):
    """Reads ranges of the object that was there when it was opened; StorageError where it is replaced meanwhile."""

    def __init__(self, fs: S3FileSystem, path: str, block_size: int, details: dict[str, Any], **cache: Any) -> None:
        super().__init__(fs, path, "rb", block_size, size=details["size"], **{"cache_type": "readahead", **cache})
        self._etag = details["ETag"]

    def _fetch_range(self, start: int, end: int) -> bytes:
        return s3.get(self.fs.unstrip_protocol(self.path), start, end, etag=self._etag)


def _details(name: str, entry: s3.Entry) -> dict[str, Any]:
    return {
        "name": name,
        "type": "file",
        "size": entry.size,
        "ETag": entry.etag,
        "LastModified": entry.modified,
    }
