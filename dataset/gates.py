"""What each gate of a row measures, and how far a value is from its bounds: for pages and tables."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping

from .rows import Gate

GATE_MEANINGS: Mapping[str, str] = {
    "finite": "1 if every number of the cameras is finite.",
    "fov_min": "Narrowest field of view of a frame, horizontal or vertical.",
    "fov_max": "Widest field of view of a frame, horizontal or vertical.",
    "fisheye": "1 if the lens was found to be a fisheye, which readers would take for a pinhole.",
    "focal_axis_gap": "Largest difference of fx and fy in a frame, over their mean.",
    "scale_cov": "Standard deviation of the raw scale series over its mean.",
    "rigid": "Largest deviation of a rotation from orthonormal.",
    "jump": "Largest step of the camera from frame to frame, over the 90th percentile of all steps.",
    "lone_frame": "Largest distance of a camera from the middle between its neighbours, over the usual step.",
    "infilled": "Share of frames whose camera was bridged for want of tracks.",
    "inliers": "Share of observations that agree with the cameras.",
    "tracks_lost": "Share of frames that hardly any track joins to those before.",
    "joined": "Fewest points that hold what lies before a frame and from it on together: few, where two places "
    "dissolve into each other.",
    "held": "Of what agrees with the cameras before a frame or from it on, the least share that agrees with both, "
    "median of three frames: little, where they begin to follow something that moves on its own.",
    "motion": "Image motion over the clip, as a share of the diagonal: below, the camera stands still.",
    "parallax": "Median angle under which tracks are seen: without it no translation can be checked.",
    "rest_error": "Usual reprojection error of the best camera that stays in one place, over that of the solved ones: "
    "near 1, the images show no path.",
    "scale_sweep": "Factor on depth at which depth and path agree best; 1 where the scale is right.",
    "scene_depth": "Median distance of what is tracked: metres that are millimetres, or the other way round, show.",
    "speed": "Usual speed of the camera; above, no metre is meant.",
    "position_sigma": "Largest standard deviation of a camera centre, as a share of the median depth of the scene.",
    "path_sigma": "Error of the path that is to be expected from what measurements have wrong in common, over its "
    "length: a lens that zooms looks like a camera that comes closer.",
    "shifted_path": "What shifts of the picture, as stabilisers make them, do to the path, over its length; asked "
    "where the picture shifts.",
    "focal_sigma": "What the focal length is wrong by where all measurements err alike, which a short path hardly "
    "tells, and of a constant one what it would rather change by.",
    "depth_scale": "Standard deviation of the log of the unit that the clip takes from its depth.",
    "depth_residual": "Median log difference between the depth that the cameras give and the measured one.",
    "depth_reading": "How much worse other readings of the given depth (turned, late, inverse) fit the images; "
    "below 0, one fits better.",
    "depth_parallax": "Share of the parallax between frames that the given depth leaves unexplained.",
    "depth_consistency": "Median log difference between given depth and what the frame before lets expect.",
    "depth_unit": "Median step of the given depth's unit from frame to frame.",
    "given_focal": "Focal length that images and depth, or images under the given poses, ask for, over the given one.",
    "given_aspect": "Ratio of fy to fx that the images ask for under the given poses, over the given one.",
    "given_centre": "Offset of the principal point that they ask for, as a share of the diagonal.",
    "given_focal_order": "By how much the focal lengths of single frames err beside the others (log).",
    "given_rotation": "Median angle between given and solved relative rotations.",
    "given_turn": "The same as a share of what the camera turned.",
    "given_direction": "Median angle between given and solved directions of travel.",
    "given_scale": "Length of the path by depth over that of the given one.",
    "given_noise": "By how much a given pose's own error moves the picture, usually.",
    "given_noise_m": "Distance of a given camera from where its neighbours and the measured motion put it.",
    "given_path": "Distance of the given path from the measured one, once a similarity lays them onto each other.",
    "given_worst": "By how much the error of the worst given pose moves the picture.",
    "given_reprojection": "Median reprojection error of the tracks under the given poses.",
    "given_time_offset": "By how much the given poses come late against the images.",
    "given_gap": "Longest time without a given pose.",
    "bridge_spread": "By how much windows along the clip differ in the metres of a given unit (log).",
    "bridge_network": "By how much they differ in the network's unit alone: above, no one similarity holds (log).",
    "bridge_change": "Change of that unit from the clip's first third to its last (log).",
}
"""One sentence a gate, by the name that rows store. A row of another version may hold gates that are not here."""


YES_OR_NO = ("finite", "fisheye")
"""Gates whose value is 1 or 0: there is nothing between passing and failing."""


def gate_margin(gate: Gate) -> float | None:
    """How far a value is inside its bounds, as a share of the bound (of half their distance where there are two): 0 at
    the bound, negative outside, None without a value or bounds, and of gates that ask for yes or no.

    Between two bounds above 0 distances are those of logs, but of angles: what else is bounded like that is a factor or
    a length, of which half and double are equally far, and most scenes lie near the lower end of 2 cm to 2 km.
    """
    if gate.value is None or gate.name in YES_OR_NO:
        return None
    value, lower, upper = gate.value, gate.lower, gate.upper
    if lower is not None and upper is not None:
        if lower > 0 and gate.unit not in ("deg", "rad"):
            value, lower, upper = (math.log(max(x, sys.float_info.min)) for x in (value, lower, upper))
        room = 0.5 * (upper - lower)
        inside = min(value - lower, upper - value)
    elif upper is not None:
        room, inside = abs(upper), upper - value
    elif lower is not None:
        room, inside = abs(lower), value - lower
    else:
        return None
    return inside / room if room > 0 else inside
