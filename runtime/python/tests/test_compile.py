"""Compiling, reports, simulation."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import thex
from conftest import DATA, MODELS, Arrays, arrays


def test_the_program_and_the_package_write_the_same_bytes(text: thex.Compiled, program: str, tmp_path: Path) -> None:
    """Calibration data as int64 in a file, or as arrays: the same circuit and bundle."""
    command = [program, "compile", str(MODELS / "tiny_text.onnx"), "--calibration", str(DATA / "tiny_text_calibration.npz")]
    more = ["--tokenizer", str(DATA / "tiny_tokenizer.json"), "--labels", str(DATA / "tiny_labels.txt"), "-o", str(tmp_path / "cli")]
    subprocess.run(command + more, check=True, capture_output=True)
    text.save(tmp_path / "py")
    for suffix in (".circuit", ".client", ".graph"):
        assert (tmp_path / f"cli{suffix}").read_bytes() == (tmp_path / f"py{suffix}").read_bytes(), suffix


def test_bytes_and_files_are_the_same_model(text: thex.Compiled, words: Arrays) -> None:
    model = (MODELS / "tiny_text.onnx").read_bytes()
    again = thex.compile(model, DATA / "tiny_text_calibration.npz", name="tiny_text.onnx")
    assert again.circuit.digest == text.circuit.digest
    assert again.circuit.model == "tiny_text.onnx" and thex.compile(model, words).circuit.model == "model.onnx"


def test_saved_and_loaded(text: thex.Compiled, words: Arrays, tmp_path: Path) -> None:
    prefix = tmp_path / "folder.with.dots"
    text.save(prefix)
    assert sorted(p.name.removeprefix(prefix.name) for p in tmp_path.iterdir()) == [".circuit", ".client", ".graph", ".report.json"]
    loaded = thex.load(prefix)
    assert loaded.circuit.to_bytes() == text.circuit.to_bytes()
    x = words["input_ids"][:3]
    np.testing.assert_array_equal(loaded.simulate(x, seed=3)["logits"], text.simulate(x, seed=3)["logits"])
    assert "tiny_text.onnx" in loaded.html()
    Path(f"{prefix}.report.json").unlink()
    with pytest.raises(thex.InvalidError, match="no report file") as caught:
        thex.load(prefix).html()
    assert caught.value.code == "TX0011"


def test_report(text: thex.Compiled) -> None:
    report = text.report()
    assert report["pbs_count"] == text.circuit.pbs_count == 24
    assert report["digest"] == text.circuit.digest and report["security_bits"] == 132
    assert "24 PBS" in str(report) and "tiny_text.onnx (exact)" in str(report)
    assert report._repr_html_().startswith("<pre>") and "<!doctype html>" in text.html().lower()


def test_profiles_differ(digits: thex.Compiled) -> None:
    """Circuits say their profile, and compute something else."""
    data = arrays("digits_calibration.npz")
    exact = thex.compile(MODELS / "digits_vit.onnx", {"image": data["image"]})
    assert (exact.circuit.profile, digits.circuit.profile) == ("exact", "the-x")
    assert exact.circuit.pbs_count > digits.circuit.pbs_count
    image = data["image"][:4]
    assert np.abs(exact.clear(image)["logits"] - digits.clear(image)["logits"]).max() > 0.1


def test_simulations_spread_as_modelled_around_the_clear_run(text: thex.Compiled, words: Arrays) -> None:
    x = words["input_ids"]
    clear, noisy = text.clear(x), text.simulate(x, seed=5)
    errors = noisy["logits"] - clear["logits"]
    modelled = text.report()["predicted_output_error"]
    assert clear["logits"].shape == (len(x), 2) and not clear.rounded
    assert 0.3 * modelled < np.sqrt(np.mean(errors**2)) < 2 * modelled
    assert noisy.overflows == 0 and noisy.clamped == 0


def test_a_batch_is_its_samples(text: thex.Compiled, words: Arrays) -> None:
    x = words["input_ids"][:4]
    batch = text.clear(x)
    assert batch.labels is not None and len(batch.labels) == 4 and batch.label is None
    for i, sample in enumerate(x):
        one = text.clear(sample)
        np.testing.assert_array_equal(one["logits"][0], batch["logits"][i])
        assert one.label == batch.labels[i]
    np.testing.assert_array_equal(text.clear({"input_ids": x[:, None, :]})["logits"], batch["logits"])
    np.testing.assert_array_equal(text.clear(input_ids=x.astype(np.float32))["logits"], batch["logits"])


def test_a_simulation_depends_on_its_seed_alone(text: thex.Compiled, words: Arrays) -> None:
    x = words["input_ids"][:2]
    first, again, other = (text.simulate(x, seed=seed)["logits"] for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()


def test_auto_keeps_to_its_budget(text: thex.Compiled, words: Arrays) -> None:
    """At most one point of the sentences changes its class, and no more bootstraps than all nodes exact."""
    found = thex.compile(MODELS / "tiny_text.onnx", words, "auto", budget_accuracy=1.0)
    assert found.circuit.pbs_count <= text.circuit.pbs_count
    x = words["input_ids"]
    classes = [c.clear(x)["logits"].argmax(axis=-1) for c in (found, text)]
    assert np.mean(classes[0] == classes[1]) >= 0.99


def test_forms_of_single_nodes(digits: thex.Compiled) -> None:
    image = np.load(DATA / "digits_calibration.npz")["image"]
    mixed = thex.compile(MODELS / "digits_vit.onnx", {"image": image}, "the-x", approximate=["blocks.0.Softmax=exact"])
    assert mixed.circuit.pbs_count > digits.circuit.pbs_count
    with pytest.raises(thex.InvalidError) as caught:
        thex.compile(MODELS / "digits_vit.onnx", {"image": image}, approximate=["nothing=relu"])
    assert caught.value.code == "TX0016"


def test_options_reach_the_compiler(text: thex.Compiled, words: Arrays) -> None:
    model = MODELS / "tiny_text.onnx"
    wide = thex.compile(model, words, margin=2.0, labels=["no", "yes"], parameters="n=850,k=1,N=2048,ks=3x5,bs=15x2,pk=12x3")
    assert thex.Client(wide).labels == ["no", "yes"]
    x = words["input_ids"]
    errors = [np.abs(c.simulate(x)["logits"] - c.clear(x)["logits"]).max() for c in (text, wide)]
    assert errors[0] < errors[1]


def test_ctrl_c_leaves_a_compilation() -> None:
    image = np.load(DATA / "digits_calibration.npz")["image"]
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        thex.compile(MODELS / "digits_vit.onnx", {"image": image}, "auto")
    assert time.monotonic() - start < 5
    timer.join()


def test_other_threads_run_while_it_compiles() -> None:
    ticks, done = [0], threading.Event()

    def tick() -> None:
        while not done.wait(0.001):
            ticks[0] += 1

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        calibration = {"image": np.load(DATA / "digits_calibration.npz")["image"]}
        thex.compile(MODELS / "digits_vit.onnx", calibration)
    finally:
        done.set()
        thread.join()
    assert ticks[0] > 100
