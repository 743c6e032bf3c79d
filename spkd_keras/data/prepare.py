"""Preparing a data set of TFDS: from its address, or from archives that the user has."""

import difflib
import functools
import math
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import getproxies, proxy_bypass

import keras
import tensorflow_datasets as tfds

from spkd_keras.data import builders  # noqa: F401  (registers them)
from spkd_keras.data.archives import check_whole
from spkd_keras.messages import one_line
from spkd_keras.storage import sha256

ALIASES = {"dtd": "dtd_folds"}  # TFDS' own has the first fold only
NOT_OF_TFDS = ("digits", "image_folder")
LARGE = 64 * 64 * 3  # values of an image; of smaller ones, 350,000 fit into memory
LARGE_ARCHIVES = 2**30  # bytes; plain images take up to four times what their archives do
ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")


def find_builder(name: str, data_dir: str | Path | None = None, **arguments: Any) -> Any:
    """Returns the TFDS builder of a data set.

    Args:
        name: as TFDS has it, `cifar10` or `dtd/fold3`.
        data_dir: where prepared data sets are; default `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
        **arguments: others of `tfds.builder`.

    Raises:
        ValueError: if there is no such data set.
    """
    base, _, config = name.partition("/")
    known = ALIASES.get(base, base)
    try:
        configs = [*tfds.builder_cls(known).builder_configs]
    except (tfds.core.registered.DatasetNotFoundError, ValueError) as error:
        if Path(name).is_dir():
            raise ValueError(
                f"TFDS has no data set {base!r}. The photos of a folder are image_folder with path={name} and "
                "image_size=224, the size that the network takes (spkd data show and evaluate: image_folder "
                f"--set path={name} --set image_size=224)."
            ) from error
        names = [*NOT_OF_TFDS, *ALIASES, *tfds.list_builders(with_community_datasets=False)]  # those need a network
        raise ValueError(f"TFDS has no data set {base!r}.{_nearest(base, names)}") from error
    if config and config.split("/")[0] not in configs:
        raise ValueError(f"The data set {base!r} has no config {config!r}.{_nearest(config, configs)}")
    return tfds.builder(f"{known}/{config}" if config else known, data_dir=data_dir, **arguments)


def _may_be_read_from_disk(builder: Any) -> bool:
    """Whether images differ in size, or they or the archives are so large that memory may not hold them.

    How many there are, TFDS does not tell before it has written them.
    """
    archives = sum(info.size for info in (builder.url_infos or {}).values())
    shapes = [feature.shape for feature in builder.info.features.values() if isinstance(feature, tfds.features.Image)]
    return archives >= LARGE_ARCHIVES or any(None in shape or math.prod(shape) >= LARGE for shape in shapes)


def check_prepared(builder: Any) -> None:
    """Checks that a data set is there as a whole.

    Raises:
        ValueError: saying how to prepare it.
    """
    if not builder.is_prepared():
        addresses = ", ".join(_addresses(builder))
        raise ValueError(
            f"{builder.info.full_name} is not prepared in {builder.data_dir}. Run `spkd data prepare "
            f"{_own_name(builder)}`; without a network get {addresses or 'its archive'} elsewhere and add "
            "`--manual-dir FOLDER`, the folder that it is in."
        )


def prepare(
    name: str,
    data_dir: str | Path | None = None,
    manual_dir: str | Path | None = None,
    notice: Callable[[str], None] = print,
) -> Any:
    """Downloads a data set, or takes its archives from a folder, and writes it as TFDS does.

    What fails leaves nothing that looks prepared. Archives are compared with the checksum that TFDS knows, before any
    of them is read. One that was packed anew has another, and those of some sets have none: then the archive must be
    whole by its own checksum or end, and the builder checks its content. A download that fails this is removed.

    Args:
        name: as TFDS has it.
        data_dir: where to write it; default `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
        manual_dir: folder with the archives under the names that their addresses end in; one archive of another name
            is taken where one is needed.
        notice: is told what the user should know.

    Returns:
        The builder.

    Raises:
        ValueError: if there is no such data set, or an archive is missing, truncated or not whole.
        OSError: if it cannot be downloaded or written.
    """
    if name in NOT_OF_TFDS:
        options = " --set path=FOLDER --set image_size=224" if name == "image_folder" else ""
        raise ValueError(f"{name} needs no preparation. Use it as it is: `spkd data show {name}{options}`.")
    builder = find_builder(name, data_dir)
    if builder.is_prepared():
        return builder
    if _may_be_read_from_disk(builder):  # read in any order, not held in memory
        builder = find_builder(name, data_dir, file_format="array_record")
    if manual_dir is not None and not Path(manual_dir).is_dir():
        raise ValueError(f"--manual-dir must be a folder. Received: {manual_dir}.")
    split_generators, all_files = builder._split_generators, []

    @functools.wraps(split_generators)  # TFDS looks at the signature
    def from_files(manager: Any, *args: Any, **kwargs: Any) -> Any:
        files = _Files(manager, builder, manual_dir, notice)
        all_files.append(files)
        return split_generators(files, *args, **kwargs)

    builder._split_generators = from_files
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()  # each of its steps would be a line of a log
    try:
        root = Path(builder.data_dir_root)  # where there is room for it
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="spkd-", dir=root) as extracted:  # TFDS would take an old one again
            config = tfds.download.DownloadConfig(manual_dir=manual_dir, extract_dir=extracted)
            builder.download_and_prepare(download_config=config)
    except Exception as error:  # whatever half an archive makes its reader raise
        # What has a number is the system's, and not what a reader says of an archive.
        if isinstance(error, FileNotFoundError) or (isinstance(error, OSError) and (manual_dir is None or error.errno)):
            raise
        for files in all_files:
            files.forget()
        raise ValueError(_broken(builder, manual_dir, error)) from error
    return builder


class _Files:
    """A TFDS download manager that takes files from a folder, or says at once that there is no network.

    TFDS itself tries for minutes, and takes a file of the user only if its checksum is the one it knows. Sets that are
    not for download, ImageNet among them, read the folder themselves: their archives are checked where they are opened.
    """

    def __init__(self, manager: Any, builder: Any, folder: str | Path | None, notice: Callable[[str], None]) -> None:
        self.manager, self.builder, self.notice = manager, builder, notice
        self.folder = None if folder is None else Path(folder)
        self.known = builder.url_infos or {}
        self.taken: dict[Path, str] = {}
        self.checked: set[Path] = set()
        self.downloaded: list[Path] = []  # that TFDS could not check

    def __getattr__(self, name: str) -> Any:
        return getattr(self.manager, name)

    def download(self, addresses: Any) -> Any:
        """Returns the path of each file, in the same structure."""
        if self.folder is not None:
            one = len(keras.tree.flatten(addresses)) == 1
            return keras.tree.map_structure(lambda address: self._in_folder(address, one), addresses)
        for address in keras.tree.flatten(addresses):
            _check_reachable(_url(address), self.builder)
        paths = self.manager.download(addresses)
        files = dict(zip(map(Path, keras.tree.flatten(paths)), keras.tree.flatten(addresses), strict=True))
        self.checked |= files.keys()
        self.downloaded += [path for path, address in files.items() if _url(address) not in self.known]
        for path in self.downloaded:
            check_whole(path)
        return paths

    def download_and_extract(self, addresses: Any) -> Any:
        """Returns the folder or file that each archive is extracted to, in the same structure."""
        return self.manager.extract(self.download(addresses))

    def extract(self, archives: Any) -> Any:
        """Returns the folder or file that each archive is extracted to, in the same structure."""
        for archive in keras.tree.flatten(archives):
            self._check(archive)
        return self.manager.extract(archives)

    def iter_archive(self, archive: Any) -> Any:
        """Returns an iterator over names and contents in an archive."""
        self._check(archive)
        return self.manager.iter_archive(archive)

    def forget(self) -> None:
        """Removes downloads that may be damaged; TFDS would take them again."""
        for path in self.downloaded:
            path.unlink(missing_ok=True)
            Path(f"{path}.INFO").unlink(missing_ok=True)

    def _in_folder(self, address: Any, one: bool) -> Path:
        """Returns the file of an address, which no other has: the test images are not the training images."""
        url, folder = _url(address), Path(str(self.folder))
        path = folder / _name(url)
        archives = [file for file in sorted(folder.iterdir()) if file.name.endswith(ARCHIVES)]
        if not path.is_file() and one and len(archives) == 1:
            path = archives[0]
        if not path.is_file():
            raise FileNotFoundError(f"{folder} must have the file {path.name}, which is at {url}.")
        if self.taken.setdefault(path, url) != url:
            raise FileNotFoundError(
                f"{path} was taken for {self.taken[path]}, and is wanted for {url}. {folder} must have both files."
            )
        self._compare(path, self.known.get(url))
        return path

    def _check(self, archive: Any) -> None:
        """Checks an archive that a builder opens, by the checksum of its name."""
        path = Path(getattr(archive, "path", archive))
        self._compare(path, {_name(url): known for url, known in self.known.items()}.get(path.name))

    def _compare(self, path: Path, known: Any) -> None:
        """Checks, once, that a file is the one that TFDS knows, or else whole by itself."""
        if path in self.checked:
            return
        same = known is not None and path.stat().st_size == known.size
        if same and known.size >= LARGE_ARCHIVES:
            self.notice(f"Reading {path.name} for its checksum: {known.size / 1e9:,.0f} GB, which takes a while.")
        if not same or sha256(path) != known.checksum:
            check_whole(path)
            if known is not None:
                self.notice(
                    f"{path.name} is not byte for byte the file that TFDS knows ({known.size:,} bytes). It is taken if "
                    "its content is whole."
                )
        self.checked.add(path)


def _nearest(name: str, valid: list[str]) -> str:
    nearest = difflib.get_close_matches(name.lower(), dict.fromkeys(valid), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(nearest)}?" if nearest else ""


def _url(address: Any) -> str:
    return getattr(address, "url", address)


def _name(url: str) -> str:
    return Path(urlparse(url).path).name


def _check_reachable(url: str, builder: Any) -> None:
    host, scheme = urlparse(url).hostname or "", urlparse(url).scheme
    if scheme in getproxies() and not proxy_bypass(host):
        return  # it is the proxy that knows the host
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        raise ConnectionError(
            f"{host} cannot be reached. Get {url} elsewhere and run `spkd data prepare {_own_name(builder)} "
            "--manual-dir FOLDER`, with the folder that it is in."
        ) from error


def _broken(builder: Any, manual_dir: str | Path | None, error: Exception) -> str:
    reason = one_line(error) or type(error).__name__
    where = "" if manual_dir is None else f" from {manual_dir}"
    return f"{builder.info.full_name} could not be prepared{where}; nothing was kept: {reason}"


def _addresses(builder: Any) -> list[str]:
    own = getattr(builder, "URL", None)  # of the builders here, which have no checksums
    return list(builder.url_infos or {}) or ([own] if own else [])


def _own_name(builder: Any) -> str:
    names = {theirs: ours for ours, theirs in ALIASES.items()}
    name = names.get(builder.name, builder.name)
    return f"{name}/{builder.builder_config.name}" if builder.builder_config else name
