"""Keys, ciphertexts and runs: all of it real."""

from __future__ import annotations

import os
import signal
import stat
import threading
import time
from pathlib import Path
from typing import Optional

import numpy as np
import pytest
import thex
from conftest import DATA, Arrays


def increasing(calls: list[tuple[int, int]], total: int) -> bool:
    """Whether progress never went back, and ended with everything done."""
    done = [d for d, _ in calls]
    return done == sorted(done) and {t for _, t in calls} == {total} and calls[-1] == (total, total)


def test_a_sentence_comes_back_with_progress(text: thex.Compiled, client: thex.Client) -> None:
    calls: list[tuple[int, int]] = []
    encrypted = client.encrypt(text="The film was great fun!")
    result = text.circuit.run(client.server_key, encrypted, progress=lambda done, total: calls.append((done, total)), threads=2)
    rounded, exact = client.decrypt(result), client.decrypt(result, exact=True)
    assert increasing(calls, 24)
    assert rounded.label == exact.label == "positive" and rounded.rounded and not exact.rounded
    # Rounded to a power of two below the noise.
    steps = np.array([rounded["logits"][0] * 2.0**k for k in range(20)])
    assert (steps == np.round(steps)).all(axis=1).any() and (rounded["logits"] != exact["logits"]).any()


def test_an_encrypted_run_is_as_exact_as_the_model_says(text: thex.Compiled, client: thex.Client, words: Arrays) -> None:
    modelled = text.report()["predicted_output_error"]
    for sample in words["input_ids"][:3]:
        result = text.circuit.run(client.server_key, client.encrypt(sample))
        difference = client.decrypt(result, exact=True)["logits"] - text.clear(sample)["logits"]
        assert np.abs(difference).max() < 6 * modelled


def test_everything_travels_as_bytes_and_files(text: thex.Compiled, client: thex.Client, tmp_path: Path) -> None:
    """The server has nothing but the bytes of circuit, server key and input; the client comes back with its keys alone."""
    text.circuit.save(tmp_path / "circuit")
    client.save(tmp_path / "client")
    client.save_keys(tmp_path / "keys")
    client.encrypt(text="The plot was awful, dull").save(tmp_path / "in.ct")

    key = thex.ServerKey.from_bytes((tmp_path / "keys" / "server.key").read_bytes())
    encrypted = thex.EncryptedInput.from_bytes((tmp_path / "in.ct").read_bytes())
    assert key.id == encrypted.key == client.server_key.id and len(encrypted) == 16
    assert key.to_bytes() == client.server_key.to_bytes()
    result = thex.Circuit(tmp_path / "circuit").run(key, encrypted)

    again = thex.Client((tmp_path / "client").read_bytes())
    assert not again.has_keys and again.load_keys(tmp_path / "keys").has_keys
    assert again.decrypt(thex.EncryptedOutput.from_bytes(result.to_bytes())).label == "negative"
    result.save(tmp_path / "out.ct")
    assert client.decrypt(thex.EncryptedOutput.load(tmp_path / "out.ct")).label == "negative"


def test_secret_keys_are_for_their_owner_and_never_overwritten(client: thex.Client, tmp_path: Path) -> None:
    client.save_keys(tmp_path)
    secret = tmp_path / "client.key"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    before = secret.read_bytes()
    with pytest.raises(thex.InvalidError, match="it is there already") as caught:
        client.save_keys(tmp_path)
    assert caught.value.code == "TX0001" and secret.read_bytes() == before
    secret.chmod(0o644)
    with pytest.raises(thex.InvalidError, match="chmod 600"):
        client.load_keys(tmp_path)


def test_keys_of_two_pairs_are_no_pair(text: thex.Compiled, client: thex.Client, tmp_path: Path) -> None:
    client.save_keys(tmp_path / "one")
    thex.Client(text).keygen().save_keys(tmp_path / "two")
    (tmp_path / "two" / "server.key").replace(tmp_path / "one" / "server.key")
    with pytest.raises(thex.InvalidError, match="key id") as caught:
        client.load_keys(tmp_path / "one")
    assert caught.value.code == "TX0003" and client.has_keys


def test_runs_give_the_same_bytes(text: thex.Compiled, client: thex.Client) -> None:
    encrypted = client.encrypt(text="The film was great fun!")
    first, second = (text.circuit.run(client.server_key, encrypted, threads=n).to_bytes() for n in (1, 2))
    assert first == second


def test_clamped_values_are_warned_of(digits_client: thex.Client) -> None:
    with pytest.warns(UserWarning, match="lay outside the calibrated range"):
        digits_client.encrypt(np.full((1, 1, 8, 8), 100.0))


def test_pictures_are_read(digits_client: thex.Client, digits: thex.Compiled) -> None:
    assert len(digits_client.encrypt(image=DATA / "digit_8.png")) == sum(digits.circuit.inputs.values())


def test_sharing_adds_noise_or_is_refused(text: thex.Compiled, client: thex.Client) -> None:
    result = text.circuit.run(client.server_key, client.encrypt(text="The film was great fun!"))
    with pytest.raises(thex.UnsupportedError, match="cannot be made safe to share") as caught:
        client.decrypt(result, share=30)
    assert caught.value.code == "TX0104"
    assert client.decrypt(result, share=1)["logits"].shape == (1, 2)


class Interruption(Exception):
    """Raised by a callback."""


class Stopper:
    """Lets a run start, then does something to it; counts how often other threads ran."""

    def __init__(self, action: Optional[str]) -> None:
        self.calls: list[tuple[int, int]] = []
        self.action = action
        self.acted = 0.0
        self.ticks = 0
        self.over = threading.Event()

    def __call__(self, done: int, total: int) -> None:
        self.calls.append((done, total))
        if self.action == "raise" and done > total // 10:
            self.acted = time.monotonic()
            raise Interruption

    def tick(self) -> None:
        """The other thread."""
        while not self.over.wait(0.005):
            self.ticks += 1
            due = bool(self.calls) and self.calls[-1][0] > self.calls[-1][1] // 10
            if self.action == "signal" and due and not self.acted:
                self.acted = time.monotonic()
                os.kill(os.getpid(), signal.SIGINT)


def run_stopped(
    stopper: Stopper, digits: thex.Compiled, client: thex.Client, encrypted: thex.EncryptedInput, folder: Optional[Path] = None
) -> thex.EncryptedOutput:
    thread = threading.Thread(target=stopper.tick)
    thread.start()
    try:
        return digits.circuit.run(client.server_key, encrypted, progress=stopper, checkpoint=folder)
    finally:
        stopper.over.set()
        thread.join()


def test_ctrl_c_stops_a_run_which_goes_on_later(digits: thex.Compiled, digits_client: thex.Client, tmp_path: Path) -> None:
    """The same call after KeyboardInterrupt goes on from the checkpoint, with the ciphertext that it was given."""
    encrypted = digits_client.encrypt(np.load(DATA / "digits_dev.npz")["image"][4])
    stopper = Stopper("signal")
    with pytest.raises(KeyboardInterrupt):
        run_stopped(stopper, digits, digits_client, encrypted, tmp_path / "kept")
    assert stopper.acted and time.monotonic() - stopper.acted < 10
    done, total = stopper.calls[-1]
    assert 0 < done < total and stopper.ticks > 50

    after = Stopper(None)
    result = run_stopped(after, digits, digits_client, encrypted, tmp_path / "kept")
    assert after.calls[0][0] >= done - 200 and increasing(after.calls, total) and not (tmp_path / "kept").exists()
    assert int(np.argmax(digits_client.decrypt(result)["logits"])) == 8


def test_an_exception_of_the_callback_stops_a_run(digits: thex.Compiled, digits_client: thex.Client) -> None:
    encrypted = digits_client.encrypt(np.load(DATA / "digits_dev.npz")["image"][4])
    stopper = Stopper("raise")
    with pytest.raises(Interruption):
        run_stopped(stopper, digits, digits_client, encrypted)
    assert time.monotonic() - stopper.acted < 10 and stopper.calls[-1][0] < stopper.calls[-1][1]
