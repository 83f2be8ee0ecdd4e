"""Readers of public data sets: malformed and malicious files, and downloads from a host that misbehaves."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import struct
import tarfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import numpy as np
import pytest

from certify.errors import DataError
from certify.frontends.data import load_data
from certify.frontends.data_fetch import fetch_archive, fetch_file
from certify.frontends.data_known import read_cifar_batch, read_idx


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


# --- IDX ---------------------------------------------------------------------------------------------------------


def test_idx_round_trip() -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert np.array_equal(read_idx(struct.pack(">4I", 0x803, 2, 3, 4) + array.tobytes(), 3, "idx"), array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated"),
        (struct.pack(">2I", 0x803, 2), "truncated"),
        (struct.pack(">4I", 0x801, 1, 1, 1) + b"a", "not an IDX file"),
        (struct.pack(">4I", 0x803, 2, 3, 4) + bytes(23), "23 bytes of data where"),
        (struct.pack(">4I", 0x803, 2, 3, 4) + bytes(25), "25 bytes of data where"),
    ],
)
def test_malformed_idx(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_idx(content, 3, "idx")


# --- CIFAR batches -----------------------------------------------------------------------------------------------


def python2_batch(data: bytes, shape: tuple[int, int], labels: list[Any], dtype: bytes = b"u1") -> bytes:
    """A pickle of protocol 2 as Python 2 and old numpy wrote CIFAR batches, assembled opcode by opcode."""

    def string(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    array = b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n" + number(0) + b"\x85" + string(b"b")
    array += b"\x87R(" + number(1) + number(shape[0]) + number(shape[1]) + b"\x86"
    array += b"cnumpy\ndtype\n" + string(dtype) + number(0) + number(1) + b"\x87R"
    array += b"(" + number(3) + string(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    array += b"\x89" + string(data) + b"tb"
    items = string(b"data") + array + string(b"labels") + pickle.dumps(labels, 2)[2:-1]
    return b"\x80\x02}(" + items + b"u."


def test_batch_round_trip() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    x, y = read_cifar_batch(python2_batch(images.tobytes(), (2, 3072), [3, 9]), "batch")
    assert np.array_equal(x, images)
    assert y.tolist() == [3, 9]
    # The hand-made pickle is a true one: the ordinary reader agrees.
    usual = pickle.loads(python2_batch(images.tobytes(), (2, 3072), [3, 9]), encoding="bytes")
    assert np.array_equal(usual[b"data"].reshape(2, 3, 32, 32), images)


class Exploit:
    """Unpickled by the ordinary reader, it makes a directory."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_malicious_pickles_do_not_execute(tmp_path: Path, protocol: int) -> None:
    target = tmp_path / "owned"
    payloads = [
        pickle.dumps({b"data": Exploit(os.mkdir, str(target)), b"labels": []}, protocol),
        pickle.dumps(Exploit(eval, f"__import__('os').mkdir({str(target)!r})"), protocol),
        b"cos\nmkdir\n(V" + str(target).encode() + b"\ntR.",
        b"cnumpy\nload\n.",
    ]
    for payload in payloads:
        with pytest.raises(DataError, match="not a CIFAR-10 batch"):
            read_cifar_batch(payload, "batch")
    assert not target.exists()


def test_a_malicious_file_in_place_fails_before_it_is_unpickled(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "test_batch").write_bytes(pickle.dumps(Exploit(os.mkdir, str(tmp_path / "owned"))))
    with pytest.raises(DataError, match="MD5"):
        load_data("cifar10", data_dir=tmp_path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a CIFAR-10 batch"),
        (b"\x80\x02}(", "not a CIFAR-10 batch"),
        (pickle.dumps([1]), "no dictionary"),
        (pickle.dumps({b"labels": [1]}), "data is not an array"),
        (pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [1]}), "not a CIFAR-10 batch"),
        (python2_batch(bytes(3072), (1, 3072), [1], b"f4"), "data is not an array"),
        (python2_batch(bytes(3071), (1, 3072), [1]), "data is not an array"),
        (python2_batch(bytes(3072), (3072, 1), [1]), "data is not an array"),
        (python2_batch(bytes(3072), (1, 3072), [1, 2]), "labels do not fit"),
        (python2_batch(bytes(3072), (1, 3072), [10]), "labels must be"),
        (python2_batch(bytes(3072), (1, 3072), [1.5]), "labels must be"),
        (b"\x80\x02cnumpy\nndarray\n}X\x01\x00\x00\x00aK\x01sb.", "not a CIFAR-10 batch"),
    ],
)
def test_malformed_batches(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_cifar_batch(content, "batch")


# --- downloads ---------------------------------------------------------------------------------------------------


class Host:
    """Answers URLs from memory in place of the network; an exception stands for a failing host."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: dict[str, bytes | Exception]) -> None:
        self.answers = answers
        self.asked: list[str] = []
        monkeypatch.setattr(urllib.request, "urlopen", self.open)

    def open(self, url: str, timeout: float) -> io.BytesIO:
        assert timeout > 0
        self.asked.append(url)
        answer = self.answers[url]
        if isinstance(answer, Exception):
            raise answer
        return io.BytesIO(answer)


def files_below(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_download_tries_hosts_in_order_and_verifies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"data" * 99
    down = URLError("name not known")
    host = Host(monkeypatch, {"a": down, "b": gzip.compress(b"other", mtime=0), "c": gzip.compress(content)})
    target = tmp_path / "deep" / "file.gz"
    fetch_file(["a", "b", "c"], target, md5(content))
    assert gzip.decompress(target.read_bytes()) == content
    assert host.asked == ["a", "b", "c"]
    assert files_below(tmp_path) == ["deep/file.gz"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (URLError("name not known"), "no connection .name not known"),
        (HTTPError("a", 404, "Not Found", None, None), "Not Found"),  # type: ignore[arg-type]
        (TimeoutError("timed out"), "connection broke"),
        (ConnectionResetError("reset"), "connection broke"),
        (gzip.compress(b"other", mtime=0), "MD5"),
        (gzip.compress(b"data", mtime=0)[:-4], "damaged gzip"),
        (OSError(28, "No space left on device"), "cannot write .* No space left"),
    ],
)
def test_failed_downloads_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes | Exception, message: str
) -> None:
    Host(monkeypatch, {"a": answer})
    with pytest.raises(DataError, match=f"download failed: a: .*{message}"):
        fetch_file(["a"], tmp_path / "file.gz", md5(b"data"))
    assert files_below(tmp_path) == []


def test_offline_download_of_known_sets_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(url: str, timeout: float) -> None:
        raise URLError("offline")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    for name in ("mnist", "cifar10"):
        with pytest.raises(DataError, match=r"download failed: https://.*offline.*by hand"):
            load_data(name, data_dir=tmp_path, download=True)
    assert files_below(tmp_path) == []


def archive_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_archives_give_exactly_the_named_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = archive_of({"set/one": b"1", "set/two": b"2", "../escape": b"!", "set/other": b"?"})
    Host(monkeypatch, {"a": archive})
    fetch_archive(["a"], md5(archive), tmp_path / "set", {"one": md5(b"1"), "two": md5(b"2")})
    assert files_below(tmp_path) == ["set/one", "set/two"]


@pytest.mark.parametrize(
    ("members", "archive_md5", "message"),
    [
        ({"one": md5(b"1")}, md5(b""), "the archive has MD5"),
        ({"three": md5(b"1")}, None, "no file set/three"),
        ({"one": md5(b"x")}, None, "set/one in the downloaded archive has MD5"),
    ],
)
def test_bad_archives(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    members: dict[str, str],
    archive_md5: str | None,
    message: str,
) -> None:
    archive = archive_of({"set/one": b"1"})
    Host(monkeypatch, {"a": archive})
    with pytest.raises(DataError, match=message):
        fetch_archive(["a"], archive_md5 or md5(archive), tmp_path / "set", members)
    assert files_below(tmp_path) == []


def test_not_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Host(monkeypatch, {"a": b"plain"})
    with pytest.raises(DataError, match="cannot be unpacked"):
        fetch_archive(["a"], md5(b"plain"), tmp_path / "set", {"one": md5(b"1")})


def test_unwritable_target(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(DataError, match="cannot be created"):
        fetch_file(["a"], blocked / "sub" / "x.gz", "")
