"""The guide's snippets, executed in order."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from serving import Server


def test_the_guide(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "PYTHON.md").read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    local, remote = [s for s in snippets if "thex.remote" not in s], [s for s in snippets if "thex.remote" in s]
    assert len(local) >= 6 and len(remote) == 1
    for snippet in local:
        exec(snippet, names)
    with Server(program, tmp_path, names["compiled"]) as server:
        exec(remote[0].replace("http://127.0.0.1:7843", server.url), names)
    printed = capsys.readouterr().out
    assert "24/24 PBS" in printed and "negative" in printed and "TX0010" in printed
