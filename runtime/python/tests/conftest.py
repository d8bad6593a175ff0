"""Models that several tests use, compiled once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import thex

Arrays = dict[str, npt.NDArray[Any]]

ROOT = Path(__file__).resolve().parents[3]
MODELS = ROOT / "tests" / "models"
DATA = ROOT / "tests" / "data"


def arrays(name: str) -> Arrays:
    """The arrays of an .npz of the test data."""
    with np.load(DATA / name) as file:
        return {key: file[key] for key in file.files}


@pytest.fixture(scope="session")
def words() -> Arrays:
    """Calibration data of the tiny text model."""
    return arrays("tiny_text_calibration.npz")


@pytest.fixture(scope="session")
def text(words: Arrays) -> thex.Compiled:
    """The tiny text model: 24 bootstraps."""
    return thex.compile(MODELS / "tiny_text.onnx", words, tokenizer=DATA / "tiny_tokenizer.json", labels=DATA / "tiny_labels.txt")


@pytest.fixture(scope="session")
def client(text: thex.Compiled) -> thex.Client:
    """Its client, with keys."""
    return thex.Client(text).keygen()


@pytest.fixture(scope="session")
def digits() -> thex.Compiled:
    """The vision transformer, for runs that take a while."""
    calibration = arrays("digits_calibration.npz")
    calibration.pop("label", None)
    return thex.compile(MODELS / "digits_vit.onnx", calibration, "the-x")


@pytest.fixture(scope="session")
def digits_client(digits: thex.Compiled) -> thex.Client:
    """Its client, with keys."""
    return thex.Client(digits).keygen()


@pytest.fixture(scope="session")
def program() -> str:
    """The program `thex`: THEX_PROGRAM, the one that cargo built, or the PATH's."""
    built = ROOT / "target" / "release" / "thex"
    found = os.environ.get("THEX_PROGRAM") or (str(built) if built.exists() else shutil.which("thex"))
    if not found:
        pytest.skip("there is no program `thex`: build it with `cargo build --release`, or set THEX_PROGRAM")
    return found
