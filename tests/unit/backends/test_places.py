"""Ports and sockets: reserved, released, never given twice."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from backends.places import SOCKET_PATH_LIMIT, Places, socket_folder
from backends.ports import FIRST_PORT, LAST_PORT, NoFreePort, PortPool, is_free


@pytest.fixture
def listener() -> socket.socket:
    """A listening socket on a port of the kernel's choice."""
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    return taken


def test_our_range_lies_below_the_ephemeral_ports() -> None:
    """No port of ours is one the kernel would hand out by itself."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert 1024 < FIRST_PORT <= LAST_PORT < lowest


def test_a_taken_port_is_not_free(listener: socket.socket) -> None:
    """A port somebody listens on is not free; after that it is."""
    port = listener.getsockname()[1]
    assert not is_free("127.0.0.1", port)
    listener.close()
    assert is_free("127.0.0.1", port)


def test_a_pool_gives_each_port_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every port of the range once, then NoFreePort saying which range; a released one again, round robin."""
    monkeypatch.setattr("backends.ports.is_free", lambda *_: True)
    monkeypatch.setattr("backends.ports.os.getpid", lambda: 0)
    pool = PortPool(first=18500, last=18502)
    assert [pool.reserve() for _ in range(3)] == [18500, 18501, 18502]
    with pytest.raises(NoFreePort, match=r"between 18500 and 18502 on 127\.0\.0\.1"):
        pool.reserve()
    pool.release(18501)
    pool.release(18500)
    pool.release(18500)
    assert pool.reserve() == 18500
    assert pool.reserve() == 18501


def test_two_gateways_begin_at_different_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools of two processes do not begin at the same port, which a loading engine has not bound yet."""
    monkeypatch.setattr("backends.ports.is_free", lambda *_: True)
    first = []
    for pid in (4000, 4001):
        monkeypatch.setattr("backends.ports.os.getpid", lambda pid=pid: pid)
        first.append(PortPool().reserve())
    assert first[0] != first[1]


def test_a_released_port_is_not_given_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """The port just released comes last, because a client may still remember it."""
    monkeypatch.setattr("backends.ports.is_free", lambda *_: True)
    monkeypatch.setattr("backends.ports.os.getpid", lambda: 0)
    pool = PortPool(first=18500, last=18502)
    first = pool.reserve()
    pool.release(first)
    assert pool.reserve() == first + 1


def test_a_pool_passes_over_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that another program holds is passed over."""
    monkeypatch.setattr("backends.ports.is_free", lambda _, port: port != 18500)
    monkeypatch.setattr("backends.ports.os.getpid", lambda: 0)
    assert PortPool(first=18500, last=18502).reserve() == 18501


def test_a_tcp_place_is_loopback(tmp_path: Path) -> None:
    """A TCP place is a reserved port of loopback and can be released twice."""
    places = Places(tmp_path / "sockets")
    first, second = places.reserve("a", "tcp"), places.reserve("b", "tcp")
    assert first.host == second.host == "127.0.0.1"
    assert first.port != second.port
    for _ in range(2):
        places.release(first)
        places.release(second)
    assert not (tmp_path / "sockets").exists()


def test_a_unix_place_is_ours_alone(tmp_path: Path) -> None:
    """A socket's folder may be entered by its owner only; each backend has its own path, the same each time."""
    places = Places(tmp_path / "sockets")
    one, other = places.reserve("Qwen/Qwen3", "unix"), places.reserve("Qwen/Qwen3.5", "unix")
    assert stat.S_IMODE((tmp_path / "sockets").stat().st_mode) == 0o700
    assert one.uds != other.uds
    places.release(one)
    assert places.reserve("Qwen/Qwen3", "unix") == one


def test_a_socket_left_behind_is_removed(tmp_path: Path) -> None:
    """What a killed run left at the path is gone when the place is reserved, and what this run leaves when released."""
    places = Places(tmp_path)
    place = places.reserve("m", "unix")
    Path(place.uds).touch()
    assert places.reserve("m", "unix") == place
    assert not Path(place.uds).exists()
    Path(place.uds).touch()
    places.release(place)
    places.release(place)
    assert not Path(place.uds).exists()


@pytest.mark.parametrize("length", [10, 60, 87, 88, 89, 90, 91, 300])
def test_socket_paths_fit_the_kernel(length: int) -> None:
    """However long the state folder's path, a socket can be bound: where it does not fit, elsewhere."""
    state_dir = Path("/" + "s" * length)
    folder = socket_folder(state_dir)
    assert len(os.fsencode(folder / "0123456789ab.sock")) <= SOCKET_PATH_LIMIT
    assert (folder.parent == state_dir) == (length <= 80)
    assert socket_folder(state_dir) == folder


def test_two_long_state_folders_do_not_meet() -> None:
    """Two state folders that are too long get two socket folders."""
    assert socket_folder(Path("/" + "a" * 200)) != socket_folder(Path("/" + "b" * 200))
