"""Given depth against the images: do the two belong together, as they are?

A folder of depth maps says neither which way up they are, nor which frames they belong to, nor what their numbers mean,
and a wrong reading often gives a plausible path. So readings compete. Over pairs of frames a little apart, tracked
points are back-projected with the depth of the first frame; the motion that brings them nearest to where the second
frame shows them is found anew for every reading (six numbers, a focal length and its change); and the depth that the
motion predicts is compared with that of the second frame. A reading is as good as what remains of both, measured on the
pairs themselves: depth that is noisy by 10 % is noisy in every reading, so noise makes the comparison blunt, not wrong.

The depth is refused when another reading fits better by a margin in units of its own uncertainty, when it explains no
more of the parallax than one depth for all points would, or when frames contradict each other. Nothing is repaired: the
row says what fits, and the recording is mended by hand. Where the pairs hold too little to tell, nothing is said and
other gates judge.

A lens that distorts makes points move as if the depth were read wrongly. So before depth is refused, it is seen through
bent lenses, too: the one that fits it best has to be better for certain, and then every other reading has to fail
beside it, with that lens, without it, and with the lens that suits the reading best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from ...dataset.arrays import FloatArray, IntArray
from ..geometry.base import DepthMaps
from ..sfm.records import KnownLens
from ..sources.clip import DepthKind
from ..tracks.records import ImageMeasurements, TracksConfig
from .depth_pairs import FEW_PAIRS, MAX_POINTS, Pairs, Wanted, choose_pairs
from .depth_scene import BENT_LENSES, FOCAL, LEAST_PARALLAX_PX2, WORKING_PX, BentLens, Fits, Scene
from .depth_view import UNSEEN, WANTED, ViewFound, ViewLook, look_at_view, measure_view
from .leads import FITTED_PX, LEAST_PAIRS, SURE, Lead, lead_of
from .readings import (
    CONSTANT,
    GIVEN,
    SLOWER_RATES,
    TURNS,
    VIEWS,
    Reading,
    order_readings,
    rate_reading,
    rate_readings,
    shifted_reading,
    value_readings,
)

_RIGID_PX = 3.0
"""What a rigid scene may leave of a pair, whatever its depth (pixels of a 640 px image); more is mismatched."""
_SURE_ORDER, _SURE_FAR = 4.0, 5.0
"""Standard errors that count as certainty among orders, and for the best of all places in time."""
_FLAT_LOG = 1e-4
"""Spread of depth over points below which it is one number for all."""
_LOST_TRACK = 0.25
"""Unexplained parallax from which on the depth may belong to other frames altogether."""
_NUM_ENDS = 16
"""Maps whose largest values are compared."""
_MOST_AT_END = 0.02
"""Share of a map at its largest value above which its range is cut off there (as `depth_noise.cut_off`)."""
_APART = 2
"""Frames by which maps of another rate must come to lie apart."""
_REPEATED, _NUM_REPEATS = 0.1, 24
"""Share of maps that are the one before once more, to the bit, from which on it is asked whether maps are of another
rate; and of how many it is counted. What a sensor measures anew differs."""
_SURE_REPEATED = 2.5
"""Standard errors that are certainty then: the files themselves show that they are fewer than the pictures. Whether
they keep up with them (each map used until the next one is there) or fall behind, the images say."""
_NEAR, _MAX_SHIFT = 4, 64
"""Frames by which depth may be late or early: always in question, and at most."""


@dataclass(frozen=True, kw_only=True)
class DepthCheck:
    """How given depth fits the images; medians and means over pairs of frames.

    Attributes:
        num_pairs: pairs that were compared; with fewer than four nothing is said (the other numbers are NaN).
        misfit_px: median distance between where the motion takes a point and where it was seen, stored pixels.
        unexplained: share of the parallax that the depth leaves unexplained for certain: its own noise does not account
            for it, nor do tracks that err twice as much along the epipolar lines as across. 0 for depth that fits,
            about half and more for that of something else; NaN where there is too little parallax.
        inconsistency_log: median absolute log difference between the depth that the motion predicts in the second
            frame and the depth there, after a factor for each pair.
        unit_step_log: median absolute log of that factor: by how much the unit changes between frames.
        same_end: whether all maps end at one and the same value although few pixels have it and they show different
            things: so do maps that were normalised one by one, and no sensor.
        margin_log: how much better the depth fits as it is than in any other reading, at its least within the
            uncertainty; below zero another reading is better for certain.
        better_reading: words of that other reading where it is better, else empty.
        better_log, better_sigma_log: its mean advantage and standard error.
        view_look: the field of view that the maps show, at a look: depth of a camera of its own that nobody registered
            has another one than the images.
        view: that field of view by more pairs, where a look finds it likely: the maps are laid onto the images by it
            where it is clear.
        laid_by: the same of these maps before they were laid.
    """

    num_pairs: int
    misfit_px: float = float("nan")
    unexplained: float = float("nan")
    inconsistency_log: float = float("nan")
    unit_step_log: float = float("nan")
    same_end: bool = False
    margin_log: float = float("nan")
    better_reading: str = ""
    better_log: float = float("nan")
    better_sigma_log: float = float("nan")
    view_look: ViewLook = UNSEEN
    view: ViewFound | None = None
    laid_by: ViewFound | None = None

    @property
    def view_log(self) -> float:
        """Log of the width of the field of view that the maps show over the images', where it is not the same for
        certain; else 0."""
        # A look compares points that have no depth at some sizes: what was measured says more.
        if self.view is not None:
            return self.view.log if self.view.clear or self.view.sure else 0.0
        return self.view_look.log if self.view_look.sure else 0.0

    def fits_better_than(self, other: DepthCheck) -> bool:
        """Whether the maps show the images' field of view, and fit in both ways no worse than in another check."""
        return (
            self.view_log == 0
            and self.misfit_px <= other.misfit_px
            and self.inconsistency_log <= other.inconsistency_log
        )

    @property
    def view_doubt_log(self) -> float:
        """What is wrong with the field of view that depth is taken to show (log): all that it shows too much where that
        was not made good, the error of what was found where it was."""
        return abs(self.view_log) if self.view_log or self.laid_by is None else self.laid_by.sigma_log

    def explain(self, gate: str) -> str:
        """What a failed gate of this check means for the recording, in a clause."""
        if gate == "depth_reading":
            return (
                f"the depth fits the images better {self.better_reading} (log misfit {self.better_log:.2f} +-"
                f" {self.better_sigma_log:.2f} lower over {self.num_pairs} pairs of frames); nothing was changed"
            )
        if gate == "depth_parallax":
            return "the depth says no more of how points move against each other than one depth for all would"
        if gate == "depth_consistency":
            return (
                "the depth of one frame contradicts that of the next: another clip's, or numbers read wrongly"
            )
        if self.same_end:
            return (
                "the unit of the depth changes between frames, and every map ends at the same value: they were"
                " normalised one by one"
            )
        return "the unit of the depth jumps between frames: maps that were normalised one by one, or in another order"


_NO_PAIRS = DepthCheck(num_pairs=0)


def check_depth(
    measured: ImageMeasurements,
    depth: DepthMaps,
    *,
    tracks_config: TracksConfig,
    kind: DepthKind = "z",
    lens: KnownLens | None = None,
    pixel_aspect: float = 1.0,
) -> DepthCheck:
    """Compare the depth as it is with what it would be in other readings.

    Turns, values and neighbours in time are always tried. Maps further away in time are tried until one is worse for
    certain; where none is, or where the depth leaves much of the parallax unexplained, all within `_MAX_SHIFT` frames
    are, and other orders and rates.

    Args:
        measured: tracks of the clip.
        depth: as the source gives it, in any unit.
        tracks_config: for matching descriptors, where pictures are too far apart for tracks.
        kind: what the source says its numbers are; used for words only.
        lens: known intrinsics; None: a focal length is found for each pair.
        pixel_aspect: width over height of a stored pixel.
    """
    pairs = choose_pairs(measured, tracks_config)
    if len(pairs) < LEAST_PAIRS:
        return replace(_NO_PAIRS, num_pairs=len(pairs))
    scene, px = _scene(measured, depth, pairs, lens, pixel_aspect)
    early = _early_scenes(measured, depth, tracks_config, lens, pixel_aspect)
    found = _check(scene, kind, px, early=early)
    if found.view_look.likely:
        more = choose_pairs(measured, tracks_config, WANTED)
        view = measure_view(_rigid(_scene(measured, depth, more, lens, pixel_aspect)[0]))
        found = replace(found, view=view)
    if lens is not None or not (found.margin_log < 0 or found.unexplained > _LOST_TRACK):
        return found
    bent = _through_bent_lens(scene, GIVEN)
    if not lead_of(bent.fits([GIVEN]).cost()[0], scene.fits([GIVEN]).cost()[0]).won:
        return found
    # A lens of its own may suit another reading.
    rivals = [scene, *(_through_bent_lens(scene, reading) for reading in value_readings(kind)[1:])]
    return _check(bent, kind, px, rivals=rivals, early=early)


def _through_bent_lens(scene: Scene, reading: Reading) -> Scene:
    """The scene through the lens with which a reading fits best."""

    def cost(lens: BentLens) -> float:
        costs = scene.through(lens).fits([GIVEN, reading]).cost()[1]
        return float(np.nanmean(costs)) if np.isfinite(costs).any() else np.inf

    best = min(BENT_LENSES, key=cost)
    return scene.through(min([best, *best.near()], key=cost))


def _check(
    scene: Scene,
    kind: DepthKind,
    px: float,
    *,
    rivals: Sequence[Scene] = (),
    early: Sequence[tuple[Reading, Scene]] = (),
) -> DepthCheck:
    """`check_depth` of a scene; `px` are stored pixels of one of its own. Other readings compete in `rivals`, too: the
    same through other lenses; and some in scenes of their own (`_early_scenes`)."""
    depth, free = scene.depth, _free_misfit(scene)
    rigid = np.flatnonzero(free < _RIGID_PX)
    if len(rigid) < LEAST_PAIRS:
        return replace(_NO_PAIRS, num_pairs=len(rigid))
    scene, free = scene.some(rigid), free[rigid]
    readings = [GIVEN, CONSTANT, *TURNS, *VIEWS, *value_readings(kind)]
    readings += [shifted_reading(-1), shifted_reading(1)]
    fits = scene.fits(readings)
    told = int(np.isfinite(fits.cost()[0]).sum())
    if told < LEAST_PAIRS:
        return replace(_NO_PAIRS, num_pairs=told)
    plain = DepthCheck(
        num_pairs=len(scene.pairs),
        misfit_px=float(np.nanmedian(fits.misfit_px[0])) * px,
        inconsistency_log=float(np.nanmedian(fits.inconsistency[0])),
        unit_step_log=float(np.nanmedian(np.abs(fits.gain[0]))),
        same_end=_end_alike(depth),
    )
    if np.nanmedian(fits.relief[0]) < _FLAT_LOG:
        return replace(plain, unexplained=1.0)  # one number for all points, however it is read
    plain = replace(plain, unexplained=_unexplained(fits, free, unseen=1.0))
    plain = replace(plain, view_look=look_at_view(scene, fits))
    left = _unexplained(fits, free, unseen=0.0)
    own = _Competition(scene, readings, fits, num_frames=len(depth), unexplained=left)
    own.look_at_repeats(early)
    judged = own.held(plain)
    for rival in (one.some(rigid) for one in rivals):
        competition = _Competition(
            rival,
            readings,
            rival.fits(readings),
            given=fits.cost()[0],
            num_frames=len(depth),
            unexplained=left,
        )
        judged = min(judged, competition.held(plain), key=lambda check: check.margin_log)
    return judged


class _Competition:
    """Readings against the depth as it is.

    Attributes:
        leads: of each reading that was tried.
        neighbours: of the readings furthest away in time, earlier and later.
        unexplained: share of the parallax that the depth leaves at most.
    """

    def __init__(
        self,
        scene: Scene,
        readings: Sequence[Reading],
        fits: Fits,
        *,
        num_frames: int,
        unexplained: float,
        given: FloatArray | None = None,
    ) -> None:
        """`readings` begin with the depth as it is and end with one frame earlier and one later; `fits` are theirs.
        `given` (P,) are costs of the depth as it is where they come from elsewhere."""
        self.scene, self.num_frames, self.unexplained = scene, num_frames, unexplained
        self._given = fits.cost()[0] if given is None else given
        # Misfit of the best reading of each pair: where none fits, none is better.
        self._least = np.full(len(scene.pairs), np.inf)
        leads = self._leads_of(readings, fits)
        self.leads = {r: lead for r, lead in leads.items() if r not in (GIVEN, CONSTANT)}
        self.neighbours = tuple(leads[r] for r in readings[-2:])

    def _leads_of(self, readings: Sequence[Reading], fits: Fits) -> dict[Reading, Lead]:
        best = fits.misfit_px.min(0, where=np.isfinite(fits.misfit_px), initial=np.inf)
        np.fmin(self._least, best, out=self._least)
        costs = np.where(self._least < FITTED_PX, fits.cost(), np.nan)
        return {r: lead_of(self._given, c) for r, c in zip(readings, costs, strict=True)}

    def _compete(self, readings: Sequence[Reading]) -> dict[Reading, Lead]:
        readings = [r for r in readings if not _same_frames(r, self.scene.pairs)]
        return self._leads_of(readings, self.scene.fits(readings))

    def held(self, plain: DepthCheck) -> DepthCheck:
        """The check with what the other readings say, as many as it takes."""
        self.look_nearby()
        self.look_at_rates()
        if self.in_doubt:
            self.look_everywhere()
        return self.judge(plain)

    def look_nearby(self) -> None:
        """Maps further away in time, until one is worse for certain."""
        k = 1
        while not all(lead.won for lead in self.neighbours) and 2 * k <= min(
            _MAX_SHIFT, self.num_frames // 2
        ):
            k *= 2
            sure = SURE if k <= _NEAR else _SURE_FAR
            found = self._compete([shifted_reading(-k), shifted_reading(k)])
            found = {r: replace(lead, sure=sure) for r, lead in found.items()}
            self.leads |= found
            self.neighbours = tuple(found.values())

    def look_at_rates(self) -> None:
        """Maps of another rate come later and later, or earlier and earlier: no place in time is better than any
        other, so that those alone cast no doubt. What is a frame apart at the end of a short clip is no rate: devices
        are late by as much."""
        frames = np.concatenate([self.scene.pairs.first, self.scene.pairs.second])
        self._look_at([r for r in rate_readings() if _farthest(r, frames) >= _APART])

    def look_at_repeats(self, early: Sequence[tuple[Reading, Scene]]) -> None:
        """Rates of maps that repeat themselves, each on the pairs on which it says something."""
        for reading, scene in early:
            given, other = scene.fits([GIVEN, reading]).cost()
            lead = replace(lead_of(given, other), sure=_SURE_REPEATED)
            if lead.num_pairs > LEAST_PAIRS and lead.lost:
                self.leads[reading] = lead

    def _look_at(self, readings: Sequence[Reading]) -> None:
        """Of maps that fall behind the images only the first pairs can be compared: few, and to be surer."""
        third = len(self.scene.pairs) / 3
        self.leads |= {
            r: replace(lead, sure=_SURE_ORDER if lead.num_pairs >= third else _SURE_FAR)
            for r, lead in self._compete(readings).items()
            if r not in self.leads and lead.num_pairs > LEAST_PAIRS
        }

    @property
    def in_doubt(self) -> bool:
        """Whether the depth may belong to other frames altogether."""
        lost = any(lead.lost for lead in self.leads.values())
        return lost or self.unexplained > _LOST_TRACK or not all(lead.won for lead in self.neighbours)

    def look_everywhere(self) -> None:
        """All places in time, other orders and rates."""
        least = len(self.scene.pairs)
        self.leads |= {
            r: lead
            for r, lead in self._best_in_time().items()
            if r not in self.leads and 3 * lead.num_pairs >= least
        }
        self._look_at(order_readings(self.num_frames))

    def _best_in_time(self) -> dict[Reading, Lead]:
        """Half of the pairs, half of their points find the place in time; all of them judge it."""
        half = self.scene.some(np.arange(0, len(self.scene.pairs), 2), MAX_POINTS // 2)
        reach = min(_MAX_SHIFT, self.num_frames // 2)
        far = [shifted_reading(k) for k in range(-reach, reach + 1) if abs(k) > 1]
        if not far:
            return {}
        tried = half.fits([GIVEN, *far]).cost()
        means = np.array([lead_of(tried[0], c).mean for c in tried[1:]])
        if not np.isfinite(means).any():
            return {}
        best = int(np.nanargmin(means))
        near = {shifted_reading(k) for k in range(-_NEAR, _NEAR + 1)}
        return {
            r: lead if r in near else replace(lead, sure=_SURE_FAR)
            for r, lead in self._compete(far[max(0, best - 1) : best + 2]).items()
        }

    def judge(self, plain: DepthCheck) -> DepthCheck:
        """The check with what the best of the other readings says."""
        known = {r: lead for r, lead in self.leads.items() if np.isfinite(lead.margin)}
        margin = min((lead.margin for lead in known.values()), default=float("nan"))
        better, lead = "", Lead(float("nan"), float("nan"), 0)
        if margin < 0:
            better_ones = [r for r in known if known[r].lost]
            reading = min(better_ones, key=lambda r: known[r].mean)
            # The plain mistake before the far-fetched: over few pairs another place in time may seem a little better.
            plain_ones = [
                r for r in better_ones if r.place in {t.place for t in TURNS} and r.place is not None
            ]
            reading = next((r for r in plain_ones if known[r].mean < 0.7 * known[reading].mean), reading)
            better, lead = reading.words, known[reading]
        return replace(
            plain,
            margin_log=margin,
            better_reading=better,
            better_log=-lead.mean,
            better_sigma_log=lead.sigma,
        )


def _early_scenes(
    measured: ImageMeasurements,
    depth: DepthMaps,
    tracks_config: TracksConfig,
    lens: KnownLens | None,
    pixel_aspect: float,
) -> list[tuple[Reading, Scene]]:
    """Rates that maps which repeat themselves may have, each with pairs of frames whose maps it has; none where maps
    do not. The map that belongs to a late frame of maps that fall behind is not there, and pairs of a slow clip reach
    over much of it: of those of the whole clip hardly one would be left.
    """
    if _repeated_share(depth) < _REPEATED:
        return []
    found = []
    for rate in SLOWER_RATES:
        reading, end = rate_reading(rate), int(np.floor((len(depth) - 1) / rate)) + 1
        if _farthest(reading, np.arange(end)) < _APART:
            continue
        pairs = choose_pairs(measured, tracks_config, Wanted(end=end))
        if len(pairs) > LEAST_PAIRS:
            scene = _rigid(_scene(measured, depth, pairs, lens, pixel_aspect)[0])
            found.append((reading, scene))
    return found


def _repeated_share(depth: DepthMaps) -> float:
    """Share of maps that are the one before once more; 0 where too few say so. Which are looked at is drawn: at equal
    distances they would all be first uses, or all second ones."""
    told, same = 0, 0
    first = np.random.default_rng(20261128).permutation(len(depth) - 1)[:_NUM_REPEATS]
    for frame in np.sort(first).tolist():
        a, b = depth.read(frame), depth.read(frame + 1)
        if a is not None and b is not None and (np.isfinite(a) & (a > 0)).any():
            told += 1
            same += bool(np.array_equal(a, b, equal_nan=True))
    return same / told if told >= _NUM_REPEATS // 3 else 0.0


def _end_alike(depth: DepthMaps) -> bool:
    """Whether some maps spread over the clip have one largest value in common, which few pixels of each have."""
    ends: list[float] = []
    middles: list[float] = []
    for frame in np.unique(np.linspace(0, len(depth) - 1, _NUM_ENDS).round().astype(int)).tolist():
        z = depth.read(frame)
        if z is None:
            continue
        known = z[np.isfinite(z) & (z > 0)]
        if len(known) < 100:
            continue
        end = float(known.max())
        if np.mean(known == known.max()) > _MOST_AT_END:
            return False  # what lies beyond the range of a sensor reads its end
        ends.append(end)
        middles.append(float(np.median(known)))
    if len(ends) < _NUM_ENDS // 2:
        return False
    # The unit may be multiplied in afterwards, in single precision.
    alike = max(ends) - min(ends) <= 1e-5 * max(ends)
    return alike and max(middles) > 1.02 * min(middles)


def _farthest(reading: Reading, frames: IntArray) -> int:
    """Frames by which a reading takes other maps than the files give, at most."""
    return 0 if reading.frame is None else int(np.abs(reading.frame(frames) - frames).max())


def _same_frames(reading: Reading, pairs: Pairs) -> bool:
    """Whether an order takes the very maps that the files give (ten files are sorted alike by text and by number)."""
    if reading.frame is None:
        return False
    return all(np.array_equal(reading.frame(frame), frame) for frame in (pairs.first, pairs.second))


def _scene(
    measured: ImageMeasurements, depth: DepthMaps, pairs: Pairs, lens: KnownLens | None, pixel_aspect: float
) -> tuple[Scene, float]:
    """Pairs in square pixels of an image whose longer side has 640; and one of those in stored pixels."""
    size = np.array([measured.flow.width, measured.flow.height])
    if lens is not None:
        pixel_aspect = lens.pixel_aspect
    square = np.array([pixel_aspect, 1.0])
    px = float((size * square).max()) / WORKING_PX

    def working(places: FloatArray, frame: IntArray) -> FloatArray:
        centre = size / 2 if lens is None else lens.principal_point_px[frame][:, None]
        return (places * size - centre) * square / px

    count = len(pairs)
    focal, change = np.full(count, FOCAL * WORKING_PX), np.zeros(count)
    if lens is not None:
        # Where to begin, no more: a wrong lens is another fault than wrong depth, and has a gate of its own.
        focal = lens.focal_px[pairs.first, 1] / px
        change = np.log(lens.focal_px[pairs.second, 1]) - np.log(lens.focal_px[pairs.first, 1])
    return Scene(
        depth=depth,
        pairs=pairs,
        a=working(pairs.a, pairs.first),
        b=working(pairs.b, pairs.second),
        focal=focal,
        change=change,
    ), px


def _rigid(scene: Scene) -> Scene:
    """The pairs that a rigid scene explains."""
    return scene.some(np.flatnonzero(_free_misfit(scene) < _RIGID_PX))


def _free_misfit(scene: Scene) -> FloatArray:
    """(P,) what any rigid scene would leave: median distance to the epipolar lines, as if of two coordinates."""
    out = np.full(len(scene.pairs), np.nan)
    for p, there in enumerate(scene.pairs.there):
        a, b = scene.a[p][there], scene.b[p][there]
        try:
            matrix, _ = cv2.findFundamentalMat(a, b, cv2.USAC_MAGSAC, 1.0, 0.999, 1000)
        except cv2.error:
            continue
        if matrix is None or matrix.shape != (3, 3):
            continue
        line = np.concatenate([a, np.ones((len(a), 1))], 1) @ matrix.T
        off = np.abs((line[:, :2] * b).sum(1) + line[:, 2]) / np.maximum(
            np.hypot(line[:, 0], line[:, 1]), 1e-12
        )
        out[p] = 1.5 * np.median(off)
    return out


def _unexplained(fits: Fits, free: FloatArray, *, unseen: float) -> float:
    """Share of the parallax that the first reading leaves and the second (one depth for all) has, beyond its noise.

    `free` is what tracks err across the epipolar lines, as if of two coordinates; along them they err more, by a
    variance of `unseen` times that. Where parallax is less than three times that one, nothing is said.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        parallax = fits.misfit_px[1] ** 2 - free**2
        left = fits.misfit_px[0] ** 2 - (1 + unseen) * free**2
        noise = 1 - np.clip(fits.signal[0], 0, 1)
    use = np.isfinite(parallax + left + noise) & (parallax > 0)
    if use.sum() < FEW_PAIRS:
        return float("nan")
    # Tracks err along the epipolar lines, too, which `free` does not see.
    if np.median(parallax[use]) < max(LEAST_PARALLAX_PX2, 3 * float(np.median(free[use] ** 2))):
        return float("nan")
    weight = np.minimum(parallax[use], 4 * np.median(parallax[use]))
    share = np.clip(left[use] / parallax[use], 0, 1.5)
    return max(0.0, float(np.average(share, weights=weight) - np.average(noise[use], weights=weight)))
