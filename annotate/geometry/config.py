"""What a recipe says of geometry: which estimators, and how each of them works."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ...dataset.strict import Strict
from ...dataset.weights import WeightsChoice
from ..networks.variants import Variant

LEAST_OVERLAP = 4
"""Keyframes that neighbouring windows have in common at least: one in ten may be wrong altogether."""


class AlignConfig(Strict):
    """How windows are brought together."""

    scale_prior_sigma: Annotated[float, Field(gt=0, le=10)] = 0.05
    """Expected spread of log scale between windows of one clip; large values leave the scale free."""
    point_sigma: Annotated[float, Field(gt=0, le=1)] = 0.03
    """Expected relative error of a good point: residuals are divided by this times the depth."""
    min_points: Annotated[int, Field(ge=10)] = 50
    """Fewer common points make no edge."""
    iterations: Annotated[int, Field(ge=1, le=100)] = 20
    """Reweighting rounds of an edge, and Gauss-Newton steps of the graph."""
    cauchy: Annotated[float, Field(gt=0)] = 2.0
    """Residual, in sigmas, at which a point or an edge counts half."""


class KeyframesConfig(Strict):
    """Which frames the sequence network sees, in which windows, and which of its pixels count."""

    fps: Annotated[float, Field(gt=0, le=60)] = 4.0
    """Keyframes per second of video; the bundle gives the frames between them their cameras."""
    max_one_pass: Annotated[int, Field(ge=2)] = 96
    """A clip with at most so many keyframes is one window: nothing has to be joined."""
    window: Annotated[int, Field(gt=LEAST_OVERLAP)] = 64
    """Keyframes in a window of longer clips. Cost grows with the square; published accuracy falls below about 60.
    Longer ones start the bundle from a better place for up to 1.7 times the cost (`estimate_simulated.py windows`)."""
    step: Annotated[int, Field(ge=1)] = 32
    """Keyframes from one window's start to the next, at most."""
    spread_window: bool = True
    """One more window of `window` keyframes from all over the clip: a loop edge to every other window."""
    min_confidence: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Pixels whose confidence is below this are not used."""
    edge_depth_ratio: Annotated[float, Field(gt=0)] = 0.03
    """A pixel lies on an edge if depth in its 3x3 neighbourhood varies by more than this share of it, and ..."""
    edge_angle_deg: Annotated[float, Field(gt=0, lt=180)] = 5.0
    """... normals next to it differ by more than this."""
    far_ratio: Annotated[float, Field(gt=1)] = 30.0
    """Further than this times the frame's median depth counts as sky."""
    kept_side_px: Annotated[int, Field(ge=32)] = 336
    """Long side of the depth that is kept."""
    align: AlignConfig = AlignConfig()

    @model_validator(mode="after")
    def _windows_overlap(self) -> KeyframesConfig:
        if self.step > self.window - LEAST_OVERLAP:
            raise ValueError(
                f"step {self.step}: windows of {self.window} must overlap by at least {LEAST_OVERLAP} keyframes to be"
                " joined"
            )
        return self


class GivenConfig(Strict):
    """How far shipped geometry is trusted."""

    depth_sigma_log: Annotated[float, Field(gt=0, le=1)] = 0.02
    """Expected relative error of a valid depth (structured-light and time-of-flight cameras: 1 to 3 % indoors)."""


class RenderedConfig(Strict):
    """Which truth about a rendered clip is passed on, and how wrong the anchor is."""

    metres_per_unit: Annotated[float, Field(gt=0)] = 1.0
    """What one unit of the sequence depth is worth."""
    declare_metric: bool = False
    """Tell the scale stage; allowed at 1.0 metres per unit only, as a recording that ships metric depth."""
    anchor_sigma_log: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Standard deviation of each anchor frame's common relative error."""
    anchor_pixel_sigma_log: Annotated[float, Field(ge=0, le=1)] = 0.03
    """Standard deviation of the error that varies over the pixels of an anchor frame."""
    anchor_invalid_share: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """Share of the pixels without value, in patches."""
    anchor_seed: Annotated[int, Field(ge=0)] = 0


class MoGe2Config(WeightsChoice):
    """Which network, and how it is run."""

    variant: Variant = "vitl-normal"
    resolution_level: Annotated[int, Field(ge=0, le=9)] = 9
    """0 to 9: 1200 to 3600 patches an image."""
    batch: Annotated[int, Field(ge=1, le=256)] = 16
    """Images that pass the network at once."""
    kept_side_px: Annotated[int, Field(ge=32)] = 336
    """Long side of the depth that is kept."""


class Pi3XConfig(WeightsChoice):
    """Where the weights are, and how large the images."""

    max_pixels: Annotated[int, Field(ge=196 * 4)] = 255_000
    """Pixels of an image at most, aspect kept in multiples of 14: 1280x720 becomes 672x378."""


class GeometryConfig(Strict):
    """Estimators of structure and of metric scale."""

    sequence: Literal["given", "rendered", "pi3x"] = "given"
    """Source of depth that is consistent over the clip."""
    anchor: Literal["none", "given", "rendered", "moge2"] = "none"
    """Source of metric depth on single frames; `none` where the sequence declares its unit."""
    anchor_fps: Annotated[float, Field(gt=0, le=60)] = 1.0
    """Anchor frames per second of video: scale has one degree of freedom, more frames only cost time ..."""
    min_anchor_frames: Annotated[int, Field(ge=1)] = 20
    """... but a short clip gets at least so many, as far as it has frames: single ones may be wrong altogether."""
    weights: Literal["released", "stand_in"] = "released"
    """`stand_in`: networks of random numbers, to time a machine or try a recipe. Their answers mean nothing, every row
    is marked, and such rows are never exported, published or trained on."""
    stand_in_size: Literal["released", "tiny"] = "released"
    """Size of stand-in networks: that of the released ones, or one that runs anywhere."""
    device: str = "auto"
    """Where networks run: auto, cpu, cuda, cuda:N."""
    keyframes: KeyframesConfig = KeyframesConfig()
    pi3x: Pi3XConfig = Pi3XConfig()
    moge2: MoGe2Config = MoGe2Config()
    given: GivenConfig = GivenConfig()
    rendered: RenderedConfig = RenderedConfig()
