"""Which estimators a recipe uses.

Those with networks are imported where they are chosen: torch costs two seconds, and a command that only checks a recipe
without networks has no other use for it.
"""

from __future__ import annotations

from ...dataset.weights import locate, resolve
from ..networks.device import choose_device
from .base import MetricAnchor, SequenceGeometry
from .config import GeometryConfig, MoGe2Config
from .given import GivenAnchor, GivenGeometrySource
from .rendered import RenderedAnchor, RenderedGeometrySource


def sequence_geometry(config: GeometryConfig) -> SequenceGeometry:
    """The configured sequence estimator; networks are loaded once a process.

    Raises:
        ValueError: weights are absent, damaged or do not fit; the device is not there.
    """
    match config.sequence:
        case "given":
            return GivenGeometrySource(config.given)
        case "rendered":
            return RenderedGeometrySource(config.rendered)
        case "pi3x":
            from .pi3x import Pi3XGeometry, pi3x_network

            network = pi3x_network(
                config.pi3x, weights=config.weights, size=config.stand_in_size, device=config.device
            )
            return Pi3XGeometry(network, config.keyframes)


def metric_anchor(config: GeometryConfig) -> MetricAnchor | None:
    """The configured anchor, or None; networks are loaded once a process.

    Raises:
        ValueError: as `sequence_geometry`.
    """
    match config.anchor:
        case "given":
            return GivenAnchor()
        case "rendered":
            return RenderedAnchor(config.rendered)
        case "moge2":
            from .moge2 import MoGe2Anchor, moge2_network

            network = moge2_network(
                config.moge2, weights=config.weights, size=config.stand_in_size, device=config.device
            )
            return MoGe2Anchor(network, config.moge2)
        case "none":
            return None


def check_estimators(config: GeometryConfig) -> None:
    """Make sure, before any work, that what the recipe needs is on this machine and fits; loads no network.

    Of weights the headers are compared with the networks' layouts. Their digests are taken the first time that a file
    is used (`file_digest`).

    Raises:
        ValueError: one message with everything that is missing: weights with the command that brings them, files that
            are damaged, do not fit or have another digest, the device.
    """
    problems = []
    networks = {
        name: choice
        for name, choice, used in (
            ("pi3x", config.pi3x, config.sequence == "pi3x"),
            (f"moge-2-{config.moge2.variant}", config.moge2, config.anchor == "moge2"),
        )
        if used
    }
    if networks:
        try:
            choose_device(config.device)
        except ValueError as error:
            problems.append(str(error))
    if networks and config.weights == "released":
        from ..networks.checkpoint import check_moge2, check_pi3x

        for name, choice in networks.items():
            try:
                path = locate(name, path=choice.path, revision=choice.revision)
                if isinstance(choice, MoGe2Config):
                    check_moge2(path, choice.variant)
                else:
                    check_pi3x(path)
                resolve(name, path=choice.path, revision=choice.revision, sha256=choice.sha256)
            except (ValueError, OSError) as error:
                problems.append(str(error))
    if problems:
        raise ValueError("\n  ".join(["this recipe cannot run here:", *problems]))
