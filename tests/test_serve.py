"""`certify serve`: reads only, answers this machine only, and no name that a browser sends becomes a path."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_folders import write_run

from certify.errors import UsageError
from certify.run_folder import DATABASE
from certify.serve import Server, Site, is_loopback
from certify.store import Store

EVIL = "a<img src=x onerror=alert(1)>\"'& b%2e#?"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server of tmp_path/runs, which holds two runs, one of them in a folder below, a damaged one and a link out."""
    root = tmp_path / "runs"
    write_run(root / "one", eps="1/10", left=10)
    write_run(root / "deep" / EVIL, eps="1/10", model=f"{EVIL}.onnx")
    write_run(tmp_path / "outside")
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "damaged").mkdir()
    (root / "damaged" / DATABASE).write_text("no database")
    with Server(Site(root), "127.0.0.1", 0) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


def ask(server: Server, path: str, host: str | None = None, method: str = "GET") -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host or f"127.0.0.1:{server.server_address[1]}")
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), {k.lower(): v for k, v in answer.getheaders()}


def test_the_list_names_every_run_and_says_which_cannot_be_read(server: Server) -> None:
    status, body, headers = ask(server, "/")
    assert status == 200
    assert "<img src=x" not in body
    assert 'href="/run/one"' in body
    assert "/run/deep/a%3Cimg%20src%3Dx" in body
    assert "cannot be read" in body
    assert "outside" not in body
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "script-src 'sha256-" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


def test_a_run_and_its_state_are_found_by_name(server: Server) -> None:
    from urllib.parse import quote

    assert "nets/net.onnx" in ask(server, "/run/one")[1]
    status, body, _ = ask(server, f"/run/deep/{quote(EVIL)}")
    assert status == 200
    assert "<img src=x" not in body
    state = json.loads(ask(server, "/state/one")[1])
    assert (state["running"], state["done"]) == (False, 0)
    with Store.open(server.site.root / "one"):
        state = json.loads(ask(server, "/state/one")[1])
        assert (state["running"], state["done"], state["total"]) == (True, 30, 40)
        assert json.loads(ask(server, "/state")[1])["total"] == 40
        assert "running, 30 of 40 decided" in ask(server, "/")[1]


@pytest.mark.parametrize(
    "path",
    [
        "/run/../outside",
        "/run/%2e%2e/outside",
        "/run/..%2foutside",
        "/run/link",
        "/run//etc/passwd",
        "/run/one/results.sqlite",
        "/run/one%00",
        "/run/",
        "/state/nothing",
        "/one",
        "//example.com/run/one",
        "/run/.",
    ],
)
def test_what_is_no_run_of_the_folder_is_not_found(server: Server, path: str) -> None:
    assert ask(server, path)[0] == 404


def test_a_damaged_run_is_an_error_in_words(server: Server) -> None:
    status, body, headers = ask(server, "/run/damaged")
    assert status == 500
    assert "not a database" in body
    assert headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize("host", ["example.com", "127.0.0.1.example.com", "example.com:127", "", "[", "127.0.0.2"])
def test_another_hosts_name_is_refused(server: Server, host: str) -> None:
    status, body, _ = ask(server, "/", host=host or " ")
    assert status == 403
    assert "one" not in body.split()


def test_this_machines_names_are_answered_and_nothing_can_be_sent(server: Server) -> None:
    for host in ("localhost:1", "LOCALHOST", "[::1]:80"):
        assert ask(server, "/state", host=host)[0] == 200
    assert ask(server, "/", method="HEAD")[1] == ""
    for method in ("POST", "PUT", "DELETE"):
        assert ask(server, "/", method=method)[0] == 501


def test_serving_writes_nothing(server: Server) -> None:
    root = server.site.root
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    for path in ("/", "/run/one", "/state", "/state/one"):
        ask(server, path)
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before


def test_a_page_is_made_anew_only_when_the_run_has_gone_on(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    import certify.serve

    made: list[int] = []
    render = certify.serve.render
    monkeypatch.setattr(certify.serve, "render", lambda *a, **k: made.append(1) or render(*a, **k))
    first = ask(server, "/run/one")[1]
    assert ask(server, "/run/one")[1] == first
    assert len(made) == 1
    with Store.open(server.site.root / "one") as store:
        store.record_clean({39: 4}, [])
        ask(server, "/run/one")
    assert len(made) == 2


def test_a_taken_port_is_a_clear_error(server: Server) -> None:
    with pytest.raises(UsageError, match="cannot be listened on"):
        Server(server.site, "127.0.0.1", server.server_address[1])
    with pytest.raises(UsageError, match="cannot be listened on"):
        Server(server.site, "no.such.host.invalid", 0)


def test_loopback_addresses() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.1", "example.com", "")))
