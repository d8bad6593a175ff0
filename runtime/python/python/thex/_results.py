"""What calls return besides numpy arrays: dictionaries that know a little more."""

from __future__ import annotations

import html
from typing import Any, Optional

import numpy as np
import numpy.typing as npt


class Result(dict[str, npt.NDArray[np.float64]]):
    """The model's outputs: arrays of float64 by name.

    ``rounded`` says whether a decrypted result was rounded to its modelled precision. ``labels`` are the names of the best classes, one for
    each row of the labelled output, or None where the model has no names; ``label`` is the only one. ``overflows`` and ``clamped`` are
    counts of a simulation, None otherwise: values that left their range, and inputs that were clamped to theirs.
    """

    rounded: bool
    labels: Optional[list[str]]
    overflows: Optional[int]
    clamped: Optional[int]

    def __init__(
        self,
        outputs: dict[str, npt.NDArray[np.float64]],
        *,
        rounded: bool = False,
        labels: Optional[list[str]] = None,
        overflows: Optional[int] = None,
        clamped: Optional[int] = None,
    ) -> None:
        super().__init__(outputs)
        self.rounded = rounded
        self.labels = labels
        self.overflows = overflows
        self.clamped = clamped

    @property
    def label(self) -> Optional[str]:
        """The name of the best class, if there is one row and the model has names."""
        return self.labels[0] if self.labels is not None and len(self.labels) == 1 else None


class Report(dict[str, Any]):
    """What a circuit is and costs: what ``thex inspect --format json`` prints, which shows as text."""

    def __init__(self, values: dict[str, Any], text: str) -> None:
        super().__init__(values)
        self._text = text

    def __str__(self) -> str:
        return self._text

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self._text)}</pre>"
