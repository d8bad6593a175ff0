"""Compiles transformers from ONNX to homomorphic-encryption circuits, and runs them on encrypted data.

A client encrypts; a server computes the whole model on ciphertexts, without a secret key; the client decrypts:

    compiled = thex.compile("model.onnx", {"x": samples})
    client = thex.Client(compiled).keygen()
    result = compiled.circuit.run(client.server_key, client.encrypt(x))
    print(client.decrypt(result))
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Literal, Optional, Union

import numpy.typing as npt

from ._errors import (
    InfeasibleError,
    InternalError,
    InvalidError,
    ServiceError,
    StoppedError,
    ThexError,
    UnsupportedError,
)
from ._results import Report, Result
from ._thex import (
    Circuit,
    Client,
    Compiled,
    EncryptedInput,
    EncryptedOutput,
    Remote,
    ServerKey,
    __version__,
    explain,
    load,
)
from ._thex import compile as _compile

__all__ = [
    "Circuit",
    "Client",
    "Compiled",
    "EncryptedInput",
    "EncryptedOutput",
    "InfeasibleError",
    "InternalError",
    "InvalidError",
    "Remote",
    "Report",
    "Result",
    "ServerKey",
    "ServiceError",
    "StoppedError",
    "ThexError",
    "UnsupportedError",
    "__version__",
    "compile",
    "explain",
    "load",
    "remote",
]

_Path = Union[str, "os.PathLike[str]"]


def compile(
    model: Union[_Path, bytes],
    calibration: Union[_Path, Mapping[str, npt.ArrayLike]],
    profile: Literal["exact", "the-x", "auto"] = "exact",
    *,
    name: Optional[str] = None,
    approximate: Sequence[str] = (),
    shapes: Optional[Mapping[str, Sequence[int]]] = None,
    output_error: Optional[float] = None,
    margin: Optional[float] = None,
    parameters: Optional[str] = None,
    freeze: Optional[Mapping[str, Optional[float]]] = None,
    pass_options: Sequence[str] = (),
    budget_accuracy: Optional[float] = None,
    budget_seconds: Optional[float] = None,
    tokenizer: Optional[_Path] = None,
    labels: Union[_Path, Sequence[str], None] = None,
    image_mean: Optional[Sequence[float]] = None,
    image_std: Optional[Sequence[float]] = None,
    image_invert: bool = False,
) -> Compiled:
    """Compiles an ONNX transformer. Options are those of ``thex compile``.

    model: the path of an ONNX file, or its bytes; ``name`` is what a model given as bytes is called.
    calibration: typical inputs, about 500 or more: an array for each input of the model, the first axis counting samples, or the path of an
        ``.npz`` with them. They fix the ranges that ciphertexts can hold.
    profile: ``exact`` looks every function up; ``the-x`` takes the approximations of THE-X; ``auto`` searches for the cheapest forms that
        lose at most ``budget_accuracy`` points (0.5), or the most accurate ones within ``budget_seconds``.
    approximate: forms of single nodes, each ``NODE=FORM``.
    shapes: shapes of inputs, batch included, where the calibration arrays do not say.
    output_error: goal for the modelled error of the outputs, relative to their spread.
    margin: widening of calibrated ranges, as a fraction of their width.
    parameters: cryptographic parameters, such as ``n=850,k=1,N=2048,ks=3x5,bs=15x2,pk=12x3``, if they are not to be chosen.
    freeze: inputs to make public constants: a number to fill them with, or None for their value in the calibration data.
    pass_options: settings of passes, each ``pass:option=value``.
    tokenizer: a ``tokenizer.json``, so that clients can encrypt texts.
    labels: names of the classes, or the path of a file with one a line.
    image_mean, image_std, image_invert: how clients normalise pictures.

    Other Python threads run meanwhile. Ctrl-C raises KeyboardInterrupt at once; the compiler then ends by itself, unheard.
    """
    options = {
        "profile": profile,
        "name": name,
        "approximate": list(approximate),
        "shapes": None if shapes is None else {key: list(shape) for key, shape in shapes.items()},
        "output_error": output_error,
        "margin": margin,
        "parameters": parameters,
        "freeze": None if freeze is None else dict(freeze),
        "pass_options": list(pass_options),
        "budget_accuracy": budget_accuracy,
        "budget_seconds": budget_seconds,
        "tokenizer": tokenizer,
        "labels": labels,
        "image_mean": image_mean,
        "image_std": image_std,
        "image_invert": image_invert,
    }
    data = dict(calibration) if isinstance(calibration, Mapping) else calibration
    return _compile(model, data, options)


def remote(url: str, token: Optional[str] = None, ca: Optional[_Path] = None, *, patience: float = 60.0) -> Remote:
    """A server of circuits, as ``thex serve`` runs it; nothing is sent yet.

    ``token`` is a bearer token; ``ca`` the path of PEM certificates to trust in place of the public ones; ``patience`` how many seconds the
    server may be away.
    """
    return Remote(url, token, ca, patience=patience)
