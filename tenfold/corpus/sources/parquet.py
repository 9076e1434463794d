"""Sources kept as `SPLIT/*.parquet` in the columns of RECORDS (CIFAR-10N)."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from tenfold import storage
from tenfold.corpus.sources.base import RECORDS, Record, Source


class ParquetSource(Source):
    """A source whose splits are parquet files; on disk or, copied there, on S3."""

    def batches(self, split: str, rows: int = 512) -> Iterator[pa.RecordBatch]:
        """Record batches in the order of files and rows; one row group in memory at a time."""
        folder = storage.join(self.root, self.check_split(split))
        for name in storage.list_files(folder):
            if name.endswith(".parquet"):
                with storage.open_read(storage.join(folder, name)) as file, pq.ParquetFile(file) as table:
                    yield from table.iter_batches(batch_size=rows, columns=RECORDS.names)

    def records(self, split: str) -> Iterator[Record]:
        """The rows of `batches` one by one."""
        for batch in self.batches(split):
            columns = (batch[name].to_pylist() for name in RECORDS.names)
            for file, image, labels, votes in zip(*columns, strict=True):
                yield Record(file, image, labels, votes)
