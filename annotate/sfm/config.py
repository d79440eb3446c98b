"""What a recipe says of the bundle: noise levels, priors, limits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ...dataset.strict import Strict


class BundleConfig(Strict):
    """Noise levels, priors and limits of the bundle."""

    reprojection_sigma_px: Annotated[float, Field(gt=0)] = 0.6
    """Standard deviation of a flow observation, in pixels of a 640-pixel-long image (scaled to the stored size)."""
    descriptor_sigma_px: Annotated[float, Field(gt=0)] = 0.9
    """The same for descriptor matches."""
    robust_scale: Annotated[float, Field(gt=0)] = 1.0
    """Cauchy scale in standard deviations, for reprojection and depth alike."""
    depth_sigma_log: Annotated[float, Field(gt=0)] | None = None
    """Relative depth error per observation; None takes what the geometry source declares."""
    focal_model: Literal["auto", "constant", "smooth", "piecewise"] = "auto"
    """`auto` chooses by the Bayesian information criterion."""
    focal_floor: Annotated[float, Field(ge=0)] = 0.002
    """A focal whose logarithm varies by less than this (standard deviation) is called constant. What varies by more
    must be worth its freedom by the likelihood."""
    focal_smoothness: Annotated[float, Field(gt=0)] = 0.004
    """Standard deviation of the second difference of log focal per frame (model `smooth`), robust."""
    focal_prior_sigma: Annotated[float, Field(gt=0)] = 0.7
    """Weak prior on log focal around a 60 degree field of view; it decides only where the data say nothing."""
    principal_point_sigma: Annotated[float, Field(ge=0)] = 0.005
    """Prior on the principal point's offset from the centre, in image diagonals; 0 keeps it at the centre. Where the
    data ask for more they are heard (`lens_model`)."""
    aspect_sigma: Annotated[float, Field(ge=0)] = 0.0
    """Prior on log(fy / fx) around square pixels; 0 ties fy to fx."""
    radial_sigma: Annotated[float, Field(ge=0)] = 0.02
    """Prior on the radial term k1 around a pinhole; 0 switches it off."""
    second_radial_sigma: Annotated[float, Field(ge=0)] = 0.0
    """Prior on the second radial term k2; 0 switches it off, as it is where the lens is near a pinhole."""
    lens_model: Literal["auto", "near_pinhole"] = "auto"
    """`auto` tries a principal point well off the centre, strong distortion (two radial terms) and a fisheye where a
    lens near a pinhole does not fit."""
    max_observations: Annotated[int, Field(ge=30)] = 160
    """Flow observations used in a frame between keyframes."""
    max_descriptor_observations: Annotated[int, Field(ge=30)] = 350
    """Descriptor observations used in a keyframe."""
    band_frames: Annotated[int, Field(ge=4, le=256)] = 16
    """Width of the factorised band; longer connections are handled by the conjugate gradients."""
    covariance_band_frames: Annotated[int, Field(ge=4, le=256)] = 31
    """The same for the uncertainty, which sees no connection that is longer."""
    moving_masks: bool = False
    """Say where in each picture something moves on its own (column `moving_mask`), where cameras are solved for."""
    max_iterations: Annotated[int, Field(ge=1, le=200)] = 30
    device: Literal["cpu", "auto", "cuda"] = "cpu"
    """Where bundles are solved: by sparse matrices on the processor, or in batches on a GPU. Auto: on this worker's GPU
    if there is one."""
    derivatives: Literal["float64", "float32"] = "float64"
    """On a GPU: precision of derivatives, and of the products of pairs of them, which are most of the arithmetic.
    Residuals, sums, factorisation and conjugate gradients are float64 always. For GPUs that are slow in float64."""

    def with_held_lens(self) -> BundleConfig:
        """The same with all terms of the lens held where they begin; its focal length is another matter."""
        terms = ("principal_point_sigma", "aspect_sigma", "radial_sigma", "second_radial_sigma")
        return self.model_copy(update=dict.fromkeys(terms, 0.0))
