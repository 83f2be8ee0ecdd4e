"""Finding, verifying and downloading the files of public data sets (torchvision's folder layout)."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from certify.errors import DataError

if TYPE_CHECKING:
    import tarfile

DATA_VARIABLE = "CERTIFY_DATA"
TIMEOUT_SECONDS = 30.0


def data_root(name: str, data_dir: str | os.PathLike[str] | None, how: str) -> Path:
    """The data folder: the argument, else the environment variable CERTIFY_DATA; DataError if neither is given.

    how: the way to fill a folder DIR by hand.
    """
    named = data_dir if data_dir is not None else os.environ.get(DATA_VARIABLE)
    if not named:
        raise DataError(
            f"{name}: no data folder given; pass --data-dir DIR or set {DATA_VARIABLE}=DIR, and {how}, or let "
            "--download do it"
        )
    return Path(named)


def read_verified(path: Path, md5: str) -> bytes:
    """The file's uncompressed content (`path`, or else `path`.gz), whose MD5 must be this one.

    Raises DataError: missing, unreadable, damaged, or other content.
    """
    packed = path.with_name(path.name + ".gz")
    found = path if path.exists() else packed
    try:
        content = found.read_bytes()
        if found == packed:
            content = gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{found}: damaged gzip file ({error}); delete it and fetch it again") from error
    except OSError as error:
        raise DataError(f"{found}: cannot be read: {error.strerror or error}") from error
    actual = md5_of(content)
    if actual != md5:
        raise DataError(
            f"{found}: the uncompressed content has MD5 {actual}, expected {md5}: damaged, or another data set; "
            "delete it and fetch it again"
        )
    return content


def md5_of(content: bytes) -> str:
    """MD5, here a checksum against damage, as published with the data."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def is_present(path: Path) -> bool:
    """Is the file there, plain or with .gz?"""
    return path.exists() or path.with_name(path.name + ".gz").exists()


def fetch_file(urls: Sequence[str], target: Path, md5: str) -> None:
    """Download to `target` (a .gz file) from the first host that answers; md5 is of the uncompressed content.

    Written under another name and renamed when complete and verified. Raises DataError.
    """

    def verify(path: Path) -> None:
        read_verified(path.with_name(path.name.removesuffix(".gz")), md5)

    _first_that_works(urls, lambda url: _download(url, target, verify))


def fetch_archive(urls: Sequence[str], archive_md5: str, folder: Path, members: Mapping[str, str]) -> None:
    """Download a .tar.gz and unpack exactly `members` (name in the folder -> MD5) into `folder`.

    Raises DataError; nothing of a damaged archive is left behind.
    """
    import tarfile

    _make_folder(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
        archive = Path(scratch) / "archive"

        def verify(path: Path) -> None:
            with path.open("rb") as file:
                actual = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            if actual != archive_md5:
                raise DataError(f"the archive has MD5 {actual}, expected {archive_md5}")

        _first_that_works(urls, lambda url: _download(url, archive, verify))
        try:
            with tarfile.open(archive) as tar:
                for member, md5 in members.items():
                    _unpack(tar, f"{folder.name}/{member}", Path(scratch) / "member", folder / member, md5)
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"the downloaded archive cannot be unpacked: {error}") from error


def _unpack(tar: tarfile.TarFile, name: str, scratch: Path, target: Path, md5: str) -> None:
    """One regular file, verified, then renamed into place; the archive's own paths are never used."""
    try:
        source = tar.extractfile(name)
    except KeyError:
        source = None
    if source is None:
        raise DataError(f"the downloaded archive has no file {name}")
    with source:
        content = source.read()
    if md5_of(content) != md5:
        raise DataError(f"{name} in the downloaded archive has MD5 {md5_of(content)}, expected {md5}")
    try:
        scratch.write_bytes(content)
        os.replace(scratch, target)
    except OSError as error:
        raise DataError(f"{target}: cannot be written: {error.strerror or error}") from error


def _first_that_works(urls: Sequence[str], download: Callable[[str], None]) -> None:
    failures = []
    for url in urls:
        try:
            return download(url)
        except DataError as error:
            failures.append(f"{url}: {error}")
    raise DataError("download failed: " + "; ".join(failures) + "; fetch the files by hand or try again later")


def _download(url: str, target: Path, verify: Callable[[Path], None]) -> None:
    """Fetch one URL to a file beside `target`, verify it, rename it. Raises DataError; leaves no partial file."""
    _make_folder(target.parent)
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as scratch:
            partial = Path(scratch) / target.name
            with partial.open("wb") as file:
                _copy(url, file)
            verify(partial)
            os.replace(partial, target)
    except OSError as error:
        raise DataError(f"cannot write in {target.parent}: {error.strerror or error}") from error


def _copy(url: str, file: IO[bytes]) -> None:
    # Imported late: most runs download nothing.
    import ssl
    from http.client import HTTPException
    from urllib.error import URLError
    from urllib.request import urlopen

    try:
        with urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            shutil.copyfileobj(response, file, 1 << 20)
            file.flush()
    except URLError as error:
        raise DataError(f"no connection ({error.reason})") from error
    except (HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
        raise DataError(f"the connection broke ({error})") from error


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be created: {error.strerror or error}") from error
