"""Which ports are chosen from, and when one is free."""

from __future__ import annotations

import errno
import socket
from itertools import chain

import pytest

from cdm.errors import SliceFailed
from cdm.model.manifest import Manifest, Readiness, Tcp
from cdm.runtimes.process import ports
from cdm.runtimes.process.ports import AUTO_PORTS, FEWEST, auto_ports, chosen_port, refusal


@pytest.mark.parametrize(
    ("local", "first", "last", "count"),
    [
        pytest.param("32768\t60999\n", 20_000, 29_999, 10_000, id="as most systems have it"),
        pytest.param("49152\t65535\n", 20_000, 29_999, 10_000, id="above"),
        pytest.param("1024\t19999\n", 20_000, 29_999, 10_000, id="below"),
        pytest.param("25000\t65535\n", 20_000, 24_999, 5_000, id="the upper half is given away"),
        pytest.param("1024\t24999\n", 25_000, 29_999, 5_000, id="the lower half is given away"),
        pytest.param("1024\t65535\n", 20_000, 29_999, 10_000, id="everything is given away"),
        pytest.param(f"{20_000 + FEWEST - 1}\t65535\n", 20_000, 29_999, 10_000, id="too few are left"),
        pytest.param("", 20_000, 29_999, 10_000, id="unknown"),
        pytest.param("none at all\n", 20_000, 29_999, 10_000, id="no numbers"),
        pytest.param("some -1\n", 20_000, 29_999, 10_000, id="no number, either"),
    ],
)
def test_ports_that_connections_get_are_not_chosen_from(local: str, first: int, last: int, count: int) -> None:
    ports = [*chain(*auto_ports(local))]
    assert (ports[0], ports[-1], len(ports)) == (first, last, count)


def test_reserved_ports_are_not_chosen_either_where_connections_get_all() -> None:
    assert set(AUTO_PORTS) - set(chain(*auto_ports("1024 65535", "27017"))) == {27_017}


@pytest.mark.parametrize(
    ("reserved", "missing"),
    [
        pytest.param("\n", [], id="none"),
        pytest.param("27017\n", [27_017], id="one"),
        pytest.param("8080,20001-20003,25672\n", [20_001, 20_002, 20_003, 25_672], id="several"),
        pytest.param("20000-29999\n", [], id="all, as if there were none"),
    ],
)
def test_reserved_ports_are_not_chosen(reserved: str, missing: list[int]) -> None:
    assert sorted(set(AUTO_PORTS) - set(chain(*auto_ports(reserved=reserved)))) == missing


class TestAuto:
    @pytest.fixture(autouse=True)
    def usual(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ports, "_told", lambda name: "32768 60999" if name == "ip_local_port_range" else "")

    manifest = Manifest(port="auto", readiness=Readiness(check=Tcp()))

    def test_a_port_of_the_range_that_no_other_slice_has(self) -> None:
        only = AUTO_PORTS[-2000:]
        chosen = {chosen_port(self.manifest, AUTO_PORTS[:-2000], None) for _ in range(5)}
        assert len(chosen) > 1
        assert chosen <= set(only)

    def test_every_port_that_is_left_may_be_chosen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        told = {"ip_local_port_range": "21000 29000", "ip_local_reserved_ports": "20500"}
        monkeypatch.setattr(ports, "_told", told.get)
        left = {*range(20_000, 21_000), *range(29_001, 30_000)} - {20_500}
        assert {*chain(*auto_ports("21000 29000", "20500"))} == left
        chosen = {chosen_port(self.manifest, (), None) for _ in range(60)}
        assert chosen <= left
        parts = (range(20_000, 20_500), range(20_501, 21_000), range(29_001, 30_000))
        assert all(chosen & {*part} for part in parts)

    def test_one_that_it_had_is_kept(self) -> None:
        port = chosen_port(self.manifest, (), None)
        assert chosen_port(self.manifest, (), port) == port

    def test_none_is_free(self) -> None:
        with pytest.raises(SliceFailed, match=r"no TCP port is free: 100 of 2\d+ to 29999 were tried") as caught:
            chosen_port(self.manifest, AUTO_PORTS, None)
        assert not caught.value.fatal


class TestFree:
    def test_a_port_on_which_somebody_listens_is_not(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            assert _told(server.getsockname()[1]) == "Address already in use"

    def test_a_port_of_a_connection_is_not(self) -> None:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname()) as connection,
        ):
            assert _told(connection.getsockname()[1]) == "Address already in use"

    def test_a_port_whose_server_closed_its_connections_a_moment_ago_is(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            with socket.create_connection(("127.0.0.1", port)) as connection:
                accepted, _ = server.accept()
                accepted.close()
                assert connection.recv(1) == b""
        assert refusal(port) is None
        assert refusal(port, reuse=False) is not None

    def test_there_is_no_descriptor_to_find_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def none_left() -> socket.socket:
            raise OSError(errno.EMFILE, "Too many open files")

        monkeypatch.setattr(socket, "socket", none_left)
        with pytest.raises(SliceFailed, match="port 20000: Too many open files"):
            chosen_port(Manifest(port=20_000), (), None)
        with pytest.raises(SliceFailed, match=r"port 2\d+: Too many open files"):
            chosen_port(Manifest(port="auto"), (), None)


def _told(port: int) -> str | None:
    error = refusal(port)
    return error.strerror if error else None
