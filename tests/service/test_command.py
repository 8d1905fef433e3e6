"""``crovca serve`` as a process: clients beside a writer, several processes, its end."""

import http.client
import json
import signal
import socket
import time

import httpx
import pytest

from crovca.errors import ConfigError
from crovca.service import run
from tests.service import soak
from tests.started import ended

pytestmark = [pytest.mark.slow, pytest.mark.starts]


def test_clients_beside_a_writer_get_right_answers(tmp_path):
    counts, wrong, *_ = soak.soak(tmp_path / "codes", 1.0, requests=300, generations=30)
    assert wrong == []
    assert set(counts) == {200, "seconds", "generations"}
    assert counts[200] >= 300 and counts["generations"] >= 30


def test_several_processes_count_together_and_requests_under_way_are_answered(tmp_path):
    soak.make(tmp_path / "codes")
    with soak.served(tmp_path / "codes", "--workers", "2", "--grace", "90") as (address, process):
        for _ in range(40):
            with httpx.Client(timeout=500) as client:  # a connection each, so both processes answer
                assert client.get(f"{address}/v1/collections").json()[0]["items"] == soak.STAYING
        metrics = httpx.get(f"{address}/metrics", timeout=500).text
        (line,) = (line for line in metrics.splitlines() if line.startswith("crovca_requests_total{"))
        assert line.endswith(" 40.0")
        assert len(soak.children(process.pid)) >= 2
        started = soak.children(process.pid)
        asked = http.client.HTTPConnection(address.removeprefix("http://"), timeout=500)
        asked.putrequest("POST", "/v1/collections/codes/search")
        body = json.dumps({"queries": [[{"id": id}] for id in range(5)], "k": 3}).encode()
        for header in (("Content-Type", "application/json"), ("Content-Length", len(body)), ("Expect", "100-continue")):
            asked.putheader(*header)
        asked.endheaders()
        assert asked.sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"  # it waits for what is asked
        process.send_signal(signal.SIGTERM)
        while not any(map(soak.has_ended, started)):  # the process that does not wait
            time.sleep(0.01)
        asked.send(body)
        answer = asked.getresponse()
        assert answer.status == 200 and len(json.loads(answer.read())) == 5
        asked.close()


def test_ctrl_c_stops_it_without_an_error(tmp_path):
    soak.make(tmp_path / "codes")
    with soak.served(tmp_path / "codes") as (address, process):
        assert httpx.get(f"{address}/healthz", timeout=500).status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=500) == 0 and process.stderr.read() == ""


def test_what_cannot_be_served_is_refused_in_a_line(tmp_path):
    soak.make(tmp_path / "codes")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for options, words in (
            (["--port", str(taken.getsockname()[1])], "cannot listen on 127.0.0.1"),
            (["--workers", "2", "--writable", "--token", "t"], "a writer is one process"),
            (["--host", "0.0.0.0"], "set CROVCA_TOKEN"),
            ([str(tmp_path / "codes"), "--port", "0"], "two collections have the same name"),
        ):
            status, address, said = ended(["-m", "crovca.cli.main", "serve", tmp_path / "codes", *options])
            assert status == 2 and words in " ".join(said.split()), said
            assert address == ""  # nothing was served
            assert "Traceback" not in said


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_answers_are_sent_at_once(host):
    """On a socket that does not name its protocol asyncio leaves Nagle's algorithm on: 40 ms an answer."""
    try:
        listening = run._listening(host, 0)
    except ConfigError:
        pytest.skip(f"{host} is no address of this machine")
    with listening:
        assert listening.proto == socket.IPPROTO_TCP
