"""`thex serve` as a process of its own."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Optional

import thex


class Server:
    """Serves compiled models, named after their files, while it is open."""

    def __init__(self, program: str, folder: Path, *models: thex.Compiled) -> None:
        served = folder / "models"
        served.mkdir()
        for model in models:
            model.save(served / model.circuit.model.removesuffix(".onnx"))
        command = [program, "serve", str(served), "--data", str(folder / "data"), "--listen", "127.0.0.1:0", "--client-keys", "16"]
        with open(folder / "log", "wb") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        address = re.search(r"http://\S+", self.process.stdout.readline())
        if not address:
            self.close()
            raise RuntimeError((folder / "log").read_text())
        self.url = address.group()

    def close(self) -> None:
        """Ends it, gracefully."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        self.close()
