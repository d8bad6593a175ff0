"""A round trip through `thex serve`, started as a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import thex
from conftest import DATA, MODELS
from serving import Server


@pytest.fixture(scope="module")
def url(program: str, text: thex.Compiled, digits: thex.Compiled, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server of both models."""
    with Server(program, tmp_path_factory.mktemp("serve"), text, digits) as server:
        yield server.url


def jobs(url: str) -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"{url}/v1/jobs") as answer:
        found: list[dict[str, Any]] = json.load(answer)
        return found


def test_a_sentence_is_classified_by_the_server(url: str, client: thex.Client) -> None:
    remote = thex.remote(url)
    assert sorted(model["name"] for model in remote.models()) == ["digits_vit", "tiny_text"]
    calls: list[tuple[int, int]] = []
    result = remote.predict(client, text="The film was great fun!", progress=lambda done, total: calls.append((done, total)))
    assert result.label == "positive" and result.rounded and calls[-1] == (24, 24)
    assert not remote.predict(client, np.zeros(8), exact=True).rounded


def test_a_client_of_the_servers_bundle(url: str, text: thex.Compiled) -> None:
    remote = thex.remote(url)
    client = remote.client("tiny_text").keygen()
    assert client.circuit == text.circuit.digest
    assert remote.predict(client, text="The plot was awful, dull").label == "negative"


class Wire:
    """Hands every byte on to a server and back, and keeps what the client sent; `look` sees that before it goes on."""

    def __init__(self, url: str, look: Callable[[bytes], None] = lambda data: None) -> None:
        self.look = look
        host, port = url.removeprefix("http://").split(":")
        self.server = (host, int(port))
        self.sent = bytearray()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = "http://127.0.0.1:%d" % self.listener.getsockname()[1]
        self.listener.settimeout(0.2)
        self.over = threading.Event()
        self.threads: list[threading.Thread] = []
        self.ends: list[socket.socket] = []
        self.start(self.accept)

    def accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except TimeoutError:
                if self.over.is_set():
                    return
                continue
            server = socket.create_connection(self.server)
            self.ends += [client, server]
            for pair in ((client, server, True), (server, client, False)):
                self.start(self.hand_on, *pair)

    def start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments)
        self.threads.append(thread)
        thread.start()

    def hand_on(self, source: socket.socket, sink: socket.socket, keep: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if keep:
                    self.sent += data
                    self.look(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join(30)
        for end in [*self.ends, self.listener]:
            end.close()


def test_nothing_secret_is_sent(url: str, text: thex.Compiled, tmp_path: Path) -> None:
    """The server key and the input go over the wire; the secret key, 64 words of it in its file's form, and the sentence do not."""
    wire = Wire(url)
    client = thex.Client(text).keygen()
    client.save_keys(tmp_path)
    assert thex.remote(wire.url).predict(client, text="The film was great fun!").label == "positive"
    wire.close()
    secret = (tmp_path / "client.key").read_bytes()
    sent = bytes(wire.sent)
    assert client.server_key.to_bytes() in sent and b"thexdata" in sent
    # The file ends with the keys, a word for each bit; what is in front (ids and parameters) both keys have.
    dimensions = text.report()["parameters"]
    words = dimensions["lwe_dimension"] + dimensions["glwe_dimension"] * dimensions["polynomial_size"]
    runs = [secret[i : i + 512] for i in range(len(secret) - 8 * words, len(secret) - 511, 512)]
    # Random bits do not repeat.
    assert len(set(runs)) == len(runs) == words // 64
    assert not any(run in sent for run in runs) and b"client key" not in sent and b"film" not in sent


def test_ctrl_c_cancels_the_job(url: str, digits_client: thex.Client) -> None:
    started = threading.Event()
    known = {job["id"] for job in jobs(url)}

    def interrupt() -> None:
        started.wait(120)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    image = np.load(DATA / "digits_dev.npz")["image"][4]
    with pytest.raises(KeyboardInterrupt):
        thex.remote(url).predict(digits_client, image, progress=lambda done, total: started.set())
    thread.join()
    deadline = time.monotonic() + 30
    while True:
        states = [job["state"] for job in jobs(url) if job["id"] not in known]
        if states == ["cancelled"]:
            break
        assert time.monotonic() < deadline, states
        time.sleep(0.2)


def test_ctrl_c_while_the_job_is_sent_cancels_it(url: str, digits_client: thex.Client) -> None:
    """The request to cancel arrives before the job does, and finds none."""
    known = {job["id"] for job in jobs(url)}

    def look(data: bytes) -> None:
        if data.startswith(b"PUT /v1/jobs/") and b"?circuit=" in data:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)

    wire = Wire(url, look)
    with pytest.raises(KeyboardInterrupt):
        thex.remote(wire.url).predict(digits_client, np.load(DATA / "digits_dev.npz")["image"][5])
    deadline = time.monotonic() + 30
    while (states := [job["state"] for job in jobs(url) if job["id"] not in known]) != ["cancelled"]:
        assert time.monotonic() < deadline, states
        time.sleep(0.2)
    wire.close()


def test_errors_of_the_service(url: str, client: thex.Client, tmp_path: Path) -> None:
    with pytest.raises(thex.ServiceError) as caught:
        thex.remote("http://127.0.0.1:1", patience=0).models()
    assert caught.value.code == "TX0610"
    with pytest.raises(thex.InvalidError, match="no URL"):
        thex.remote("localhost")
    with pytest.raises(thex.InvalidError, match="choose one circuit"):
        thex.remote(url).client("nothing")
    with pytest.raises(thex.InvalidError, match="patience"):
        thex.remote(url, patience=-1.0)
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(thex.InvalidError, match="certificates"):
        thex.remote(url, ca=tmp_path / "ca.pem")


def test_a_model_that_is_not_served(url: str, words: dict[str, Any]) -> None:
    other = thex.compile(MODELS / "tiny_text.onnx", words, margin=2.0)
    with pytest.raises(thex.ThexError) as caught:
        thex.remote(url).predict(thex.Client(other).keygen(), np.zeros(8))
    assert caught.value.code in ("TX0003", "TX0601")
