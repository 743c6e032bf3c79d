"""Whether an archive is whole."""

import gzip
import tarfile
import zlib
from pathlib import Path

END_OF_TAR = bytes(1024)  # two blocks of zeros (POSIX.1, pax)


def check_whole(path: Path) -> None:
    """Reads a gzip file to its end, where its checksum is, and walks through a tar file to its own.

    Readers of archives stop before the one and do without the other. A zip file cannot be opened without its end.

    Raises:
        ValueError: if the end is not there.
    """
    with path.open("rb") as file:
        start = file.read(512)
    try:
        if start.startswith(b"\x1f\x8b"):
            with gzip.open(path) as content:
                while content.read(2**20):
                    pass
        elif path.suffix == ".tar" or start[257:262] == b"ustar":
            _check_tar(path)
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise ValueError(f"{path.name} is not whole: {error}") from error


def _check_tar(path: Path) -> None:
    """Looks for the end behind the last member: the last bytes alone may be the end of a tar file in this one."""
    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
        archive.getmembers()
        file.seek(archive.offset)
        if file.read(len(END_OF_TAR)) != END_OF_TAR:
            raise EOFError(f"there are no {len(END_OF_TAR)} zero bytes behind its last member")
