"""Bad input: an exception with the code of the command line, and never anything worse."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
import thex
from conftest import DATA, MODELS, Arrays


def refused(code: str, kind: type[thex.ThexError], call: Callable[[], object]) -> thex.ThexError:
    with pytest.raises(thex.ThexError) as caught:
        call()
    error = caught.value
    assert (error.code, type(error)) == (code, kind), error
    assert code in str(error) and error.help and thex.explain(code).startswith(code)
    return error


def invalid(code: str, call: Callable[[], object]) -> str:
    return str(refused(code, thex.InvalidError, call))


@pytest.mark.parametrize("garbage", [b"", b"\0", b"garbage", b"thexdata" + b"\xff" * 100, b"\xff" * 4096])
def test_garbage_bytes(garbage: bytes, client: thex.Client, words: Arrays) -> None:
    assert refused("TX0004", thex.InvalidError, lambda: thex.compile(garbage, words)).code if garbage else True
    with pytest.raises(thex.InvalidError):
        thex.compile(garbage, words)
    invalid("TX0002", lambda: thex.Circuit(garbage))
    invalid("TX0002", lambda: thex.Client(garbage))
    invalid("TX0002", lambda: thex.ServerKey.from_bytes(garbage))
    invalid("TX0002", lambda: thex.EncryptedInput.from_bytes(garbage))
    invalid("TX0002", lambda: client.decrypt(thex.EncryptedOutput.from_bytes(garbage)))


def test_damaged_bytes(text: thex.Compiled, client: thex.Client) -> None:
    encrypted = client.encrypt(text="The film was great fun!")
    result = text.circuit.run(client.server_key, encrypted).to_bytes()
    for whole, read in [
        (text.circuit.to_bytes(), thex.Circuit),
        (client.to_bytes(), thex.Client),
        (encrypted.to_bytes(), thex.EncryptedInput.from_bytes),
        (result, lambda data: client.decrypt(thex.EncryptedOutput.from_bytes(data))),
    ]:
        invalid("TX0002", lambda: read(whole[:-1]))
        invalid("TX0002", lambda: read(whole + b"\0"))
        altered = bytearray(whole)
        altered[-9] ^= 1
        invalid("TX0002", lambda: read(bytes(altered)))


def test_files_that_are_not_there(words: Arrays, tmp_path: Path, client: thex.Client) -> None:
    absent = tmp_path / "absent"
    for call in [
        lambda: thex.compile(absent, words),
        lambda: thex.compile(MODELS / "tiny_text.onnx", absent),
        lambda: thex.load(absent),
        lambda: thex.Circuit(absent),
        lambda: client.load_keys(absent),
        lambda: client.save(absent / "deeper"),
        lambda: thex.remote("http://127.0.0.1:1", ca=absent),
    ]:
        assert "absent" in invalid("TX0001", call)


def test_wrong_shapes(text: thex.Compiled, client: thex.Client, words: Arrays) -> None:
    for x in (np.zeros(7), np.zeros((1, 9)), np.zeros((2, 3, 8)), np.zeros(()), np.zeros((0, 7))):
        assert "[1, 8]" in invalid("TX0010", lambda: text.simulate(x))
        assert "[1, 8]" in invalid("TX0010", lambda: client.encrypt(x))
    assert "empty" in invalid("TX0010", lambda: text.simulate(np.zeros((0, 8))))
    assert "empty" in invalid("TX0010", lambda: text.clear(np.zeros((0, 1, 8))))
    # Encryption takes one sample.
    invalid("TX0010", lambda: client.encrypt(words["input_ids"][:2]))
    invalid("TX0010", lambda: text.simulate())
    invalid("TX0010", lambda: text.simulate({}))
    assert "`input_ids`" in invalid("TX0010", lambda: text.simulate(tokens=np.zeros(8)))
    assert "text=" in invalid("TX0010", lambda: client.encrypt("good"))
    invalid("TX0010", lambda: client.encrypt(np.zeros(8), text="The film was great fun!"))


@pytest.mark.parametrize(
    "values",
    [np.array(["a"] * 8), np.zeros(8, dtype=complex), np.array([None] * 8), np.zeros(8, dtype="datetime64[s]"), [[1, 2], [3]], object()],
)
def test_wrong_types(values: Any, text: thex.Compiled, client: thex.Client) -> None:
    assert "no array of numbers" in invalid("TX0010", lambda: client.encrypt(values))
    assert "no array of numbers" in invalid("TX0010", lambda: text.clear(values))


def test_values_that_the_model_does_not_take(text: thex.Compiled, client: thex.Client) -> None:
    for value in (np.nan, np.inf):
        invalid("TX0010", lambda: client.encrypt(np.full(8, value)))
    assert "no whole number" in invalid("TX0013", lambda: client.encrypt(np.full(8, 0.5)))
    assert "outside a table" in invalid("TX0013", lambda: text.simulate(np.full(8, 1e9)))


def test_types_that_arguments_cannot_have(text: thex.Compiled, client: thex.Client) -> None:
    for call in (lambda: thex.Circuit(5), lambda: thex.Client([]), lambda: text.circuit.run(client, None)):  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            call()


def test_keys_of_another_model_or_client(text: thex.Compiled, client: thex.Client, digits: thex.Compiled, digits_client: thex.Client) -> None:
    encrypted = client.encrypt(text="The film was great fun!")
    other = thex.Client(text).keygen()
    assert "key id" in invalid("TX0003", lambda: text.circuit.run(other.server_key, encrypted))
    invalid("TX0003", lambda: text.circuit.run(digits_client.server_key, encrypted))
    invalid("TX0003", lambda: digits.circuit.run(digits_client.server_key, encrypted))
    result = text.circuit.run(client.server_key, encrypted)
    invalid("TX0003", lambda: other.decrypt(result))


def test_keys_of_another_model_are_not_loaded(text: thex.Compiled, digits_client: thex.Client, tmp_path: Path) -> None:
    digits_client.save_keys(tmp_path)
    invalid("TX0003", lambda: thex.Client(text).load_keys(tmp_path))


def test_a_client_without_keys(text: thex.Compiled) -> None:
    fresh = text.client
    for call in (lambda: fresh.server_key, lambda: fresh.encrypt(text="The film was great fun!"), lambda: fresh.save_keys("nowhere")):
        assert "keygen()" in invalid("TX0011", call)


@pytest.mark.parametrize(
    "options",
    [
        {"profile": "fast"},
        {"output_error": -1.0},
        {"output_error": float("nan")},
        {"margin": "wide"},
        {"parameters": "n=850"},
        {"budget_accuracy": 1.0},
        {"profile": "auto", "budget_accuracy": 1.0, "budget_seconds": 1.0},
        {"profile": "auto", "budget_seconds": -1.0},
        {"name": "x.onnx"},
        {"labels": 3},
        {"labels": ["a\nb", "c"]},
        {"shapes": {"input_ids": "wide"}},
        {"shapes": {"tokens": (1, 8)}},
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], words: Arrays) -> None:
    invalid("TX0011", lambda: thex.compile(MODELS / "tiny_text.onnx", words, **options))


def test_names_of_bytes_stay_in_their_folder(words: Arrays) -> None:
    for name in ("../evil.onnx", "/etc/evil.onnx", "..", ""):
        invalid("TX0011", lambda: thex.compile((MODELS / "tiny_text.onnx").read_bytes(), words, name=name))


def test_calibration_data_that_do_not_fit(words: Arrays) -> None:
    model = MODELS / "tiny_text.onnx"
    with pytest.raises(thex.ThexError, match="input_ids"):
        thex.compile(model, {})
    for data in ({"input_ids": 3.0}, {"input_ids": np.full((4, 8), np.nan)}, {"input_ids": np.zeros((0, 8))}):
        invalid("TX0009", lambda: thex.compile(model, data))
    invalid("TX0010", lambda: thex.compile(model, {"input_ids": "words"}))
    invalid("TX0011", lambda: thex.compile(model, 3))  # type: ignore[arg-type]
    with pytest.raises(thex.ThexError):
        thex.compile(model, DATA / "tiny_labels.txt")


def test_unknown_codes() -> None:
    assert "TX0001" in invalid("TX0011", lambda: thex.explain("TX9999"))


def test_exceptions_survive_pickling() -> None:
    error = refused("TX0011", thex.InvalidError, lambda: thex.explain("TX9999"))
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.code, again.help, str(again)) == (type(error), error.code, error.help, str(error))
    assert isinstance(error, ValueError)
