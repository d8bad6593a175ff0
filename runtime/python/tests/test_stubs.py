"""Types: the stubs say what the extension has, and the package and its tests are typed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import thex

HERE = Path(__file__).resolve().parent


def check(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, cwd=HERE.parent)
    assert done.returncode == 0, done.stdout + done.stderr


def test_stubs_say_what_the_extension_has() -> None:
    check("mypy.stubtest", "thex")


def test_the_package_is_typed() -> None:
    check("mypy", "--strict", "-p", "thex")


def test_users_are_typed() -> None:
    check("mypy", "--strict", str(HERE), str(HERE.parent / "examples"))


def test_everything_is_documented() -> None:
    things = [getattr(thex, name) for name in thex.__all__ if name != "__version__"]
    members = [
        (thing, name) for thing in things if isinstance(thing, type) for name in vars(thing) if not name.startswith("_") and thing is not dict
    ]
    bare = [thing for thing in things if not thing.__doc__] + [m for m in members if not getattr(*m).__doc__ and m[1] not in ANNOTATED]
    assert not bare, bare


# Attributes that are documented with their class.
ANNOTATED = {"rounded", "labels", "overflows", "clamped", "code", "help"}
