"""`theodolite benchmark`: a public set through `theodolite annotate`, scored by the set's own protocol."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ...annotate.sources.entries import ReleaseSource
from ...dataset.benchmarks.influx import check_submission
from ...dataset.benchmarks.output import Findings, TableStyle, tables, write_findings
from ...dataset.benchmarks.protocols import PROTOCOLS, Protocol, SetName
from ...dataset.benchmarks.record import SequenceScore, Status
from ...dataset.benchmarks.score import Scored, lenses_of_row, score_lenses, score_poses
from ...dataset.benchmarks.truth import as_camera_0
from ...dataset.camera_files.load import cameras_of_row, load_cameras
from ...dataset.camera_files.record import CameraSet
from ...dataset.reading import open_dataset
from ...dataset.reasons import status_of
from ...dataset.rows import Row
from ..loader import Recipe, load_recipe, now_iso, recipe_hash, surroundings
from ..run import RunOptions, run_annotate
from .look import Found, look
from .submit import source_size, submit_lenses, write_trajectories

DATASET = "dataset"
_PACKAGES = ("torch", "numpy", "scipy", "opencv-python-headless", "av")
_DEPTH = ("mode=given_depth", "annotate.geometry.sequence=given", "annotate.geometry.anchor=none")


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """What is run, and how.

    Attributes:
        root: folder of the set as it unpacks.
        out: folder for everything that comes of it; an earlier run of the same recipe is continued.
        depth: give the set's own depth to the run instead of asking networks.
        every: also sequences without a published truth, for the set's server.
        sequences: ids that are wanted; empty: those of the protocol.
        with_rejected: cameras of rejected clips go into what is made for the set's server, too.
        predictions: cameras that somebody else made, scored instead of a run.
        recipe, overrides, workers: as of `theodolite annotate`.
        method: name of the method on the set's server.
        style: of the table.
    """

    root: Path
    out: Path
    depth: bool = False
    every: bool = False
    sequences: tuple[str, ...] = ()
    with_rejected: bool = False
    predictions: Path | None = None
    recipe: str | None = None
    overrides: tuple[str, ...] = ()
    workers: int | None = None
    method: str = "theodolite"
    style: TableStyle = "text"

    def command(self, name: SetName) -> str:
        """The command that does the same again."""
        words = ["theodolite", "benchmark", name, "--root", str(self.root), "--out", str(self.out)]
        words += ["--depth"] if self.depth else []
        words += ["--every"] if self.every else []
        words += ["--sequences", ",".join(self.sequences)] if self.sequences else []
        words += ["--with-rejected"] if self.with_rejected else []
        words += ["--predictions", str(self.predictions)] if self.predictions is not None else []
        words += ["--recipe", self.recipe] if self.recipe is not None else []
        words += [part for item in self.overrides for part in ("--set", item)]
        words += ["--method", self.method] if self.method != "theodolite" else []
        return shlex.join(words)


def run_benchmark(
    name: SetName, options: BenchmarkOptions, *, say: Callable[[str], None] = lambda text: None
) -> tuple[str, int]:
    """Annotate the sequences of a set that the protocol counts, and score them.

    Args:
        say: told what the annotation itself came to.
    Returns:
        The tables; 0, or 1 if a sequence failed or is missing.
    Raises:
        ValueError: the set, the recipe or the predictions cannot be read, or the recipe cannot run here; nothing has
            been annotated.
    """
    recipe, source = _recipe(name, options)
    found = look(name, source, asked=options.sequences, every=options.every)
    protocol = PROTOCOLS[name]
    if name == "influx" and options.every:
        check_submission(found.partitions, method=options.method)  # before hours of work
    submission: Mapping[str, str | int] | None = None
    if options.predictions is not None:
        scores = _score_cameras(name, found, load_cameras(options.predictions), str(options.predictions))
        given = f"predictions in {options.predictions}"
    else:
        rows = _annotated(recipe, source, found, options, say)
        scores = {one: _score_row(found, one, rows.get(one), protocol) for one in found.wanted}
        given = "pixels and depth" if recipe.mode == "given_depth" else "pixels"
        usable = [row for row in rows.values() if _usable(row, with_rejected=options.with_rejected)]
        if name == "influx" and options.every:
            submission = submit_lenses(found, usable, options.out, method=options.method)
        elif protocol.trajectories is not None:
            submission = write_trajectories(found, usable, options.out, protocol=protocol)
    every = {**found.rows, **scores}
    result = Findings(
        name=name,
        layout=source.layout,
        scores=tuple(every[one] for one in sorted(every)),
        input=given,
        command=options.command(name),
        surroundings={
            "recipe": recipe.name,
            "recipe_hash": recipe_hash(recipe),
            "date": now_iso(),
            **surroundings(_PACKAGES),
        },
        submission=submission,
    )
    write_findings(result, options.out)
    incomplete = any(score.status in ("failed", "missing") for score in result.scores)
    return tables(result, style=options.style), 1 if incomplete else 0


def _recipe(name: SetName, options: BenchmarkOptions) -> tuple[Recipe, ReleaseSource]:
    """The set's recipe with what the options say, and its source.

    Raises:
        ValueError: the recipe reads another set, or depth is wanted of a set that ships none.
    """
    protocol = PROTOCOLS[name]
    if options.depth and not protocol.ships_depth:
        raise ValueError(f"--depth: {protocol.title} ships no depth")
    if options.predictions is not None and name == "influx":
        raise ValueError("--predictions: InFlux is about lenses, which files of poses do not hold")
    chosen = options.recipe or protocol.recipe
    given = _DEPTH if options.depth else ()
    recipe = load_recipe(chosen, [f"source.root={options.root}", *given, *options.overrides])
    source = recipe.source
    if not isinstance(source, ReleaseSource) or source.layout not in protocol.layouts:
        raise ValueError(
            f"{chosen}: reads another source; theodolite benchmark {name} needs the kind release with the layout"
            f" {' or '.join(protocol.layouts)}"
        )
    return recipe, source


def _annotated(
    recipe: Recipe,
    source: ReleaseSource,
    found: Found,
    options: BenchmarkOptions,
    say: Callable[[str], None],
) -> dict[str, Row]:
    """Rows of the wanted sequences by id, made as `theodolite annotate` makes them."""
    chosen = source.model_copy(update={"only": tuple(found.wanted)})
    out = options.out / DATASET
    options.out.mkdir(parents=True, exist_ok=True)
    text, _code = run_annotate(
        recipe.model_copy(update={"source": chosen}), out, RunOptions(workers=options.workers)
    )
    say(text)
    dataset = open_dataset(out)
    there = set(dataset.to_table(["clip_id"])["clip_id"].to_pylist())
    return {one: dataset.row(one) for one in found.wanted if one in there}


def _usable(row: Row, *, with_rejected: bool) -> bool:
    """Whether a row's cameras may leave: never random ones, rejected ones where that was asked for."""
    if row.stand_in or not len(row.camera_to_world):
        return False
    return row.verdict == "accepted" or with_rejected


_BY_VERDICT: dict[str, Status] = {"accepted": "scored", "rejected": "rejected", "failed": "failed"}


def _score_row(found: Found, one: str, row: Row | None, protocol: Protocol) -> SequenceScore:
    """Of one sequence, whatever became of it."""
    if row is None:
        status, reasons, detail = "failed", (), "the run left no row of it"
    else:
        status = _BY_VERDICT[status_of(row.verdict, row.reasons)]
        reasons, detail = row.reasons, "; ".join(row.reason_details)
    base = SequenceScore(
        sequence=one,
        status=status,
        reasons=reasons,
        detail=detail,
        counts=found.num_truth(one),
    )
    if not found.has_truth(one):
        return replace(base, status="no_truth")
    if row is None or status == "failed" or row.stand_in:  # random numbers have no figures
        return base
    try:
        return _with(base, _scored(found, row, protocol))
    except ValueError as error:
        if status == "rejected" and not len(row.camera_to_world):
            return base  # its reasons say why there are none
        return replace(base, status="failed", detail=str(error))


def _scored(found: Found, row: Row, protocol: Protocol) -> Scored:
    """Figures of a row.

    Raises:
        ValueError: it has no cameras, or none that fit.
    """
    one = row.clip_id
    if one in found.lenses:
        scored = score_lenses(lenses_of_row(row, source_size(found.clips[one])), found.lenses[one])
        listed = next(v.num_frames for p in found.partitions for v in p.videos if p.clip_id(v) == one)
        if row.num_frames == listed:
            return scored
        note = f"{row.num_frames} frames were decoded, {listed} are listed"
        return replace(scored, notes=(*scored.notes, note))
    cameras = cameras_of_row(row)
    if cameras is None:
        raise ValueError("the row has no cameras")
    if protocol.trajectories == "kitti":
        media = found.clips[one].media_path
        cameras = replace(cameras, camera_to_world=as_camera_0(cameras.camera_to_world, media))
    return score_poses(one, cameras, found.poses[one], protocol)


def _with(base: SequenceScore, scored: Scored) -> SequenceScore:
    detail = "; ".join([*([base.detail] if base.detail else []), *scored.notes])
    counts = {**base.counts, **scored.counts}
    return replace(base, detail=detail, counts=counts, values=scored.values, frames=scored.frames)


def _score_cameras(
    name: SetName, found: Found, predictions: CameraSet, where: str
) -> dict[str, SequenceScore]:
    """Of cameras that somebody else made."""
    scores: dict[str, SequenceScore] = {}
    for one in found.wanted:
        base = SequenceScore(sequence=one, status="scored", counts=found.num_truth(one))
        if not found.has_truth(one):
            scores[one] = replace(base, status="no_truth")
            continue
        try:
            if one in predictions.unreadable:
                raise ValueError(predictions.unreadable[one])
            if one in predictions.without_cameras:
                raise ValueError(f"{where}: without cameras: {', '.join(predictions.without_cameras[one])}")
            if one not in predictions:
                raise ValueError(f"{where}: has no cameras of it")
            cameras = predictions[one]
            scored = score_poses(one, cameras, found.poses[one], PROTOCOLS[name])
            status: Status = "rejected" if cameras.rejection else "scored"
            scores[one] = _with(replace(base, status=status, reasons=cameras.rejection), scored)
        except ValueError as error:
            scores[one] = replace(base, status="failed", detail=str(error))
    return scores
