"""Entries of a fixed size in array records, which can be read in any order."""

import contextlib
import itertools
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spkd_keras.messages import one_line
from spkd_keras.storage import bring_to_disk, partial_of

NAME = "entries-{:05d}.array_record"
OPTIONS = "group_size:1,uncompressed"  # each entry can be read alone


class ShardWriter:
    """Writes entries one after the other, from where an interrupted attempt came to. Files get their names when whole.

    Args:
        folder: for the files.
        entries: how many there will be.
        entries_a_shard: in each file but the last.

    Attributes:
        written: how many there are.
    """

    def __init__(self, folder: Path, entries: int, entries_a_shard: int) -> None:
        self.folder, self.entries_a_shard = folder, entries_a_shard
        starts = range(0, entries, entries_a_shard)
        files = ((folder / NAME.format(i), min(entries_a_shard, entries - start)) for i, start in enumerate(starts))
        self.written = sum(count for _, count in itertools.takewhile(lambda file: _is_whole(*file), files))
        self._writer: Any = None
        self._file = folder

    def write(self, values: Sequence[np.ndarray]) -> None:
        """Writes the entries of a batch, of which `values` has every tensor."""
        from array_record.python import array_record_module

        for row in zip(*values, strict=True):
            if self.written % self.entries_a_shard == 0:
                self.close()
                self._file = self.folder / NAME.format(self.written // self.entries_a_shard)
                self._writer = array_record_module.ArrayRecordWriter(str(self._partial), OPTIONS)
            with _as_os_error():
                self._writer.write(b"".join(value.tobytes() for value in row))
            self.written += 1

    def close(self) -> None:
        """Ends the last file."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            with _as_os_error():
                writer.close()
            bring_to_disk(self._partial)
            self._partial.rename(self._file)

    @property
    def _partial(self) -> Path:
        return partial_of(self._file)


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    """Makes an OSError of what array_record raises where a file cannot be written, for example to a full disk."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(one_line(error)) from error


def _is_whole(file: Path, count: int) -> bool:
    """Whether a file has its entries; one that has its name may still be empty after a power failure."""
    from array_record.python import array_record_module

    try:
        reader = array_record_module.ArrayRecordReader(str(file), "readahead_buffer_size:0,max_parallelism:0")
        return bool(reader.num_records() == count)
    except Exception:  # whatever array_record makes of missing and damaged files
        return False


class ShardReader:
    """Reads entries by their numbers.

    Args:
        folder: with the files.
        entries: how many there are.
        entries_a_shard: in each file.

    Raises:
        ValueError: if a file is missing or damaged.
    """

    def __init__(self, folder: Path, entries: int, entries_a_shard: int) -> None:
        from array_record.python import array_record_data_source

        files = [folder / NAME.format(index) for index in range(-(-entries // entries_a_shard))]
        try:
            self._source = array_record_data_source.ArrayRecordDataSource([str(file) for file in files])
            count = len(self._source)
        except Exception as error:  # whatever array_record makes of missing and damaged files
            raise ValueError(f"{folder} is not whole ({one_line(error)[:150]}). Remove it.") from error
        if count != entries:
            raise ValueError(f"{folder} must have {entries} entries. It has {count}. Remove it and compute it anew.")
        self._lock = threading.Lock()

    def read(self, numbers: np.ndarray, width: int) -> np.ndarray:
        """Returns entries as bytes, shape (numbers, width)."""
        with self._lock:
            records = self._source.__getitems__(numbers.tolist())
        return np.frombuffer(b"".join(records), np.uint8).reshape(len(numbers), width)
