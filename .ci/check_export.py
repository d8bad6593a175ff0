#!/usr/bin/env python3
"""Compiles models, exports what thex made of them, and checks the files with onnx and onnxruntime.

    check_export.py THEX MODEL.onnx=DATA.npz[=CALIBRATION.npz]…

Every exported file must pass onnx's full check, be the same when exported twice, keep the names of inputs and outputs, and give
in onnxruntime what thex's interpreter gives. Needs onnx, onnxruntime and numpy.
"""

import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime

TOLERANCE = 1e-4


def thex(program, *arguments):
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"thex {' '.join(map(str, arguments))}\n{done.stderr}")


def names(ports):
    return [port.name for port in ports]


def run(model, data):
    """Outputs sample by sample, each with its batch of one."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    ports = names(session.get_inputs())
    outputs = names(session.get_outputs())
    samples = len(data[ports[0]])
    results = [session.run(outputs, {name: data[name][i : i + 1] for name in ports}) for i in range(samples)]
    return {name: [result[k] for result in results] for k, name in enumerate(outputs)}


def check(program, folder, original, data, calibration, profile):
    prefix, approximated = folder / profile, folder / f"{profile}.onnx"
    thex(program, "compile", original, "--calibration", calibration, "--profile", profile, "-o", prefix)
    thex(program, "export", prefix, "-o", folder / "again.onnx")
    thex(program, "export", prefix, "-o", approximated, "--expected", data)
    assert approximated.read_bytes() == (folder / "again.onnx").read_bytes(), "two exports differ"
    model, source = onnx.load(str(approximated)), onnx.load(str(original))
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}, "operators that are not standard"
    constants = set(names(source.graph.initializer))
    assert names(model.graph.input) == [n for n in names(source.graph.input) if n not in constants]
    assert names(model.graph.output) == names(source.graph.output)
    arrays = np.load(approximated.with_suffix(".npz"))
    worst = 0.0
    for name, results in run(approximated, arrays).items():
        for ours, theirs in zip(arrays[f"expected_{name}"], results):
            theirs = theirs.reshape(ours.shape)
            worst = max(worst, np.abs(ours - theirs).max() / max(1.0, np.abs(ours).max()))
    print(f"{original.stem:32} {profile:6} {len(model.graph.node):4} nodes, difference {worst:.1e}")
    assert worst < TOLERANCE


def main(program, cases):
    for case in cases:
        original, data, *calibration = (pathlib.Path(part) for part in case.split("="))
        for profile in ("exact", "the-x"):
            with tempfile.TemporaryDirectory() as folder:
                check(program, pathlib.Path(folder), original, data, (calibration or [data])[0], profile)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
