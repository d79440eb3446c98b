"""Filters by the quality of the pictures: thresholds on measured columns, applied whenever a dataset is read.

Rows keep what was measured, not what was decided: other thresholds need no model and no media. A threshold on something
that was not measured keeps nothing, since a missing number is no good number.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, model_validator

from .strict import Strict

Bounds = tuple[float | None, float | None]
"""Smallest and largest value that is kept, both included; null: no bound on that side."""
_Threshold = Annotated[Bounds | None, Field(default=None)]


class Filters(Strict):
    """Thresholds of one source; what is left out is not looked at. Names are those of metrics in the rows."""

    vmaf_motion: _Threshold
    """Motion as libvmaf defines it, on the clip's frames (16 a second)."""
    flow_px: _Threshold
    """Mean length of the optical flow over half a second, pixels at the working width of the flow."""
    dover: _Threshold
    """DOVER's fused score, 0 to 1."""
    saturation: _Threshold
    """Mean saturation, 0 to 255."""
    num_cuts: _Threshold
    """Shot cuts inside the clip."""
    vlm_entities: _Threshold
    """People, vehicles and animals that a vision-language model counts."""
    vlm_quality: _Threshold
    """1 where a vision-language model finds the clip good, else 0."""

    @model_validator(mode="after")
    def _in_order(self) -> Filters:
        for name, (low, high) in self.items():
            if low is not None and high is not None and low > high:
                raise ValueError(f"{name}: the smallest value {low:g} is above the largest {high:g}")
        return self

    def items(self) -> Iterator[tuple[str, Bounds]]:
        """Metrics with a threshold."""
        for name in type(self).model_fields:
            if (bounds := getattr(self, name)) is not None:
                yield name, bounds
