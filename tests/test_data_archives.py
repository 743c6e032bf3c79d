"""Archives are checked before they are read: downloads, those that TFDS knows, those of sets that read a folder."""

import hashlib
import io
import socket
import tarfile
from types import SimpleNamespace

import pytest
import tensorflow_datasets as tfds
from pictures import CINIC10_ARCHIVE, archive, cinic10, encoded, plain
from tensorflow_datasets.core.download import checksums, download_manager, downloader

from spkd_keras.data import prepare as prepare_module
from spkd_keras.data.builders import Cinic10
from spkd_keras.data.prepare import _Files, check_prepared, find_builder, prepare

URL = "https://there.org/a.tar.gz"
IMAGENET = "ILSVRC2012_img_train.tar"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with an empty `manual`, beside the `data` that TFDS looks into."""
    monkeypatch.setattr(Cinic10, "IMAGES_IN_SPLIT", 10)
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "manual").mkdir()
    return tmp_path


def tar(members):
    """The bytes of a plain tar file."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as file:
        for name, value in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(value)
            file.addfile(member, io.BytesIO(value))
    return content.getvalue()


def manager(**known):
    """A download manager of TFDS that says what it was given."""
    given = SimpleNamespace(iter_archive=lambda path: ("read", path), extract=lambda path: ("extracted", path))
    return given, SimpleNamespace(url_infos={URL: SimpleNamespace(**known)})


@pytest.mark.parametrize("reads", ["download", "iter_archive", "extract"])
@pytest.mark.parametrize("same", [True, False])
def test_an_archive_that_tfds_knows_is_taken_without_a_word(here, same, reads):
    file, told = archive(here / "manual" / "a.tar.gz", {"readme": b""}), []
    checksum = hashlib.sha256(file.read_bytes()).hexdigest() if same else "0" * 64
    files = _Files(*manager(checksum=checksum, size=file.stat().st_size), here / "manual", told.append)
    for _ in range(2):
        getattr(files, reads)(URL if reads == "download" else str(file))
    assert len(told) == (not same)


def test_a_large_archive_of_the_right_size_is_announced_and_one_of_another_size_is_not_read(here, monkeypatch):
    file, told = archive(here / "manual" / "a.tar.gz", {"readme": b""}), []
    monkeypatch.setattr(prepare_module, "LARGE_ARCHIVES", 1)
    checksum, size = hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_size
    _Files(*manager(checksum=checksum, size=size), here / "manual", told.append).iter_archive(file)
    assert told == ["Reading a.tar.gz for its checksum: 0 GB, which takes a while."]
    monkeypatch.setattr(prepare_module, "sha256", None)
    _Files(*manager(checksum=checksum, size=size + 1), here / "manual", told.append).iter_archive(file)
    assert "is not byte for byte the file that TFDS knows" in told[1]


@pytest.mark.parametrize("order", [("train", "test"), ("test", "train")])
def test_no_archive_is_taken_for_two_one_after_the_other(here, order):
    archive(here / "manual" / "test.tar.gz", {"readme": b""})
    builder = SimpleNamespace(url_infos={})
    files = _Files(None, builder, here / "manual", print)
    one, other = (f"https://there.org/{part}.tar.gz" for part in order)
    assert files.download(one) == files.download(one) == here / "manual" / "test.tar.gz"
    with pytest.raises(FileNotFoundError, match=f"test.tar.gz was taken for {one}, and is wanted for {other}"):
        files.download(other)


@pytest.mark.parametrize(("variable", "asked"), [("https_proxy", False), ("http_proxy", True), (None, True)])
def test_behind_a_proxy_nobody_need_know_the_host(monkeypatch, variable, asked):
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    if variable:
        monkeypatch.setenv(variable, "http://proxy.there.org:3128")
    hosts = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, port: hosts.append(host))
    prepare_module._check_reachable("https://there.org/a.zip", None)
    assert hosts == ["there.org"] * asked
    hosts.clear()
    monkeypatch.setenv("no_proxy", "there.org")
    prepare_module._check_reachable("https://there.org/a.zip", None)
    assert hosts == ["there.org"]


WHOLE = tar({"one": b"word" * 128, "two": b"more" * 128})
CUT = (0, 100, 512, 700, 1024, 1300, 2048, 2048 + 512, 2048 + 1023)  # in a header, a member, between two, in its end


@pytest.mark.parametrize("part", [*(WHOLE[:length] for length in CUT), b"no archive" * 512], ids=len)
def test_a_plain_tar_file_must_have_its_end(here, part):
    files = _Files(*manager(checksum="", size=0), None, print)
    (here / "a.tar").write_bytes(part)
    with pytest.raises(ValueError, match=r"^a.tar is not whole: ") as caught:
        files.iter_archive(here / "a.tar")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.tar", "without-a-suffix"])
def test_a_plain_tar_file_that_is_whole(here, name):
    files = _Files(*manager(checksum="", size=0), None, print)
    (here / name).write_bytes(tar({"one": b"word", "two": b""}))
    assert files.iter_archive(here / name) == ("read", here / name)
    (here / name).write_bytes(tar({"one": b"word"}).rstrip(b"\0"))
    files.iter_archive(here / name)  # it was checked
    with pytest.raises(ValueError, match="is not whole"):
        _Files(*manager(checksum="", size=0), None, print).extract([here / name])


@pytest.fixture
def imagenet(here):
    """A small ImageNet, of which TFDS reads the folder itself: an archive of an archive for each class."""
    photos = {
        name: tar({f"{name}_{number}.JPEG": encoded(plain((9, 9, 80 * number), 20, 30)) for number in range(3)})
        for name in ("n01440764", "n01443537")
    }
    (here / "manual" / IMAGENET).write_bytes(tar({f"{name}.tar": content for name, content in photos.items()}))
    validation = tar({"ILSVRC2012_val_00000001.JPEG": encoded(plain((9, 9, 9), 20, 30))})
    (here / "manual" / "ILSVRC2012_img_val.tar").write_bytes(validation)
    return here


def test_what_tfds_reads_from_a_folder_is_compared_too(imagenet):
    told = []
    builder = prepare("imagenet2012", manual_dir=imagenet / "manual", notice=told.append)
    assert builder.info.splits["train"].num_examples == 6
    assert told[0] == (
        f"{IMAGENET} is not byte for byte the file that TFDS knows (147,897,477,120 bytes). It is taken if its content "
        "is whole."
    )
    assert len(told) == 2


def test_half_of_what_tfds_reads_from_a_folder_is_refused(imagenet):
    """TFDS would take the first class for all: the cut is behind the end of that one's archive."""
    file = imagenet / "manual" / IMAGENET
    with tarfile.open(file) as members:
        second = members.getmembers()[1].offset
    file.write_bytes(file.read_bytes()[:second])
    with pytest.raises(
        ValueError, match=f"from .*manual; nothing was kept: {IMAGENET} is not whole: there are no 1024"
    ):
        prepare("imagenet2012", manual_dir=imagenet / "manual", notice=print)
    with pytest.raises(ValueError, match="is not prepared in"):
        check_prepared(find_builder("imagenet2012"))


@pytest.fixture
def server(here, monkeypatch):
    """What is downloaded: the file `manual/CINIC-10.tar.gz` as it then is."""

    def download(_, url, folder, verify):
        path = folder / CINIC10_ARCHIVE
        path.write_bytes((here / "manual" / CINIC10_ARCHIVE).read_bytes())
        downloads.append(url)
        result = downloader.DownloadResult(path=path, url_info=checksums.compute_url_info(path))
        return download_manager.promise.Promise.resolve(result)

    downloads = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, port: [])
    monkeypatch.setattr(downloader._Downloader, "download", download)
    cinic10(here / "manual", 1)
    return downloads


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda content: content[: len(content) // 2], "is not whole: Compressed file ended before the end-of-stream"),
        (lambda content: content[:-8] + bytes(8), "is not whole: CRC check failed"),
        (lambda content: b"<html>The service is not available</html>", "nothing was kept: "),
    ],
    ids=["cut", "wrong", "page"],
)
def test_a_damaged_download_is_not_kept_for_the_next_try(here, server, spoil, said):
    file = here / "manual" / CINIC10_ARCHIVE
    whole = file.read_bytes()
    file.write_bytes(spoil(whole))
    with pytest.raises(ValueError, match=said):
        prepare("cinic10")
    file.write_bytes(whole)
    assert prepare("cinic10").info.splits["train"].num_examples == 10
    assert server == [Cinic10.URL] * 2


def test_a_download_is_kept_where_it_is_not_what_failed(here, server, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Cinic10, "_generate_examples", full)
        with pytest.raises(OSError, match="No space left"):
            prepare("cinic10")
    prepare("cinic10")
    assert server == [Cinic10.URL]
