"""What a training asks of its clips before it begins."""

from __future__ import annotations

from ..dataset.encoded import EncodedDataset
from ..model.config import chunk_starts
from ..model.frame_parallel import FrameShare, split_frames
from ..model.network import WorldModel
from .recipe import TrainRecipe
from .start import autoencoder_of


def check_data(recipe: TrainRecipe, model: WorldModel, data: EncodedDataset) -> None:
    """Clips must be such that the network can learn from them.

    Raises:
        ValueError: with every mismatch found.
    """
    e, c = data.encoding, model.config
    problems = []
    if e.stand_in and not recipe.data.allow_stand_in:
        problems.append(
            "stand-in networks annotated or encoded them (data.allow_stand_in: true trains on them all the same)"
        )
    for what, theirs, mine in (
        ("latents of {} channels", e.latent_channels, c.latent_channels),
        ("text states of {} channels", e.text_width, c.text_width),
        ("captions of {} tokens", e.text_tokens, c.text_tokens),
    ):
        if theirs != mine:
            problems.append(f"they have {what.format(theirs)}, the network {mine}: another encoder's")
    before = None if recipe.start.weights is None else autoencoder_of(recipe.start.weights)
    if before not in (None, e.autoencoder) and recipe.start.latents == "keep":
        problems.append(
            f"they have latents of {e.autoencoder}, the weights were trained on those of {before} (start.grow: true "
            "and start.latents: anew start the layers anew that touch latents)"
        )
    if recipe.data.cameras != "none" and not any(w.cameras for w in data.windows):
        problems.append("none has cameras, but data.cameras is " + recipe.data.cameras)
    lengths = {w.num_frames for w in data.windows}
    chunk = recipe.chunk
    shortest = (min(lengths) - 1) // e.temporal_stride + 1
    if recipe.student is not None and shortest < recipe.student.frames:
        problems.append(
            f"the shortest has {shortest} latent frames, student.frames is {recipe.student.frames}: encode longer "
            "windows, or ask for fewer"
        )
    if shortest < 2 and recipe.flow_matching.image_condition_probability > 0:
        problems.append("some have one latent frame: conditioned on it, nothing is left to learn")
    if chunk is not None and (chunks := len(chunk_starts(shortest, chunk))) < recipe.parallel.context:
        problems.append(
            f"the shortest has {shortest} latent frames, {chunks} chunks, for {recipe.parallel.context} "
            "context-parallel ranks (parallel.context)"
        )
    if (context := recipe.parallel.context) > 1:
        try:
            frames = shortest if recipe.student is None else recipe.student.frames
            FrameShare(split_frames(frames, context), 0)
        except ValueError as error:
            problems.append(f"parallel.context: {error}")
    if problems:
        raise ValueError(
            f"{', '.join(map(str, data.folders))}: these clips do not fit: {'; '.join(problems)}"
        )
