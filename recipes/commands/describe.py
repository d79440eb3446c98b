"""`theodolite caption` and `theodolite score`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..command import Outcome, say
from .options import Dataset, MediaRoot, one_of

if TYPE_CHECKING:
    from ...annotate.language.base import LanguageModel

KEY = "OPENAI_API_KEY"
"""Environment variable whose value is sent to a server that asks for a key; it is recorded nowhere."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Which vision-language model is asked, and with which pictures."""

    model: Annotated[
        str | None,
        typer.Option("--model", help="As the server calls it; a folder or a name on the hub with --runner."),
    ] = None
    server: Annotated[
        str | None,
        typer.Option(
            "--server",
            help=f"Server that speaks OpenAI's API, http://HOST:PORT/v1; key: {KEY} (environment).",
        ),
    ] = None
    runner: Annotated[
        str, typer.Option("--runner", help="server, or in this process transformers or vllm.")
    ] = "server"
    jobs: Annotated[
        int, typer.Option("--jobs", min=1, max=256, help="Requests at once, or of one batch.")
    ] = 8
    pictures: Annotated[int, typer.Option("--pictures", min=1, max=64, help="Frames of a clip.")] = 8
    longest_px: Annotated[
        int, typer.Option("--longest-px", min=64, max=4096, help="Longer side of a picture.")
    ] = 768
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens", min=16, max=32768, help="Longest answer; models that think aloud need more."
        ),
    ] = None
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto"


@dataclass(frozen=True, kw_only=True)
class Which:
    """Which clips are done."""

    rejected: Annotated[bool, typer.Option("--rejected", help="Also clips whose cameras were rejected.")] = (
        False
    )
    retry: Annotated[bool, typer.Option("--retry", help="Also clips that had a problem before.")] = False
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only so many clips.")] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how many; ask nothing.")] = False
    media_root: MediaRoot = None


def caption(
    path: Dataset,
    name: Annotated[
        str, typer.Option("--name", help="Of the table and of its captions in the rows.")
    ] = "scene",
    words: Annotated[int, typer.Option("--words", min=10, max=400, help="Longest caption.")] = 120,
    *,
    asked: Asked,
    which: Which,
) -> Outcome:
    """Caption a finished dataset's clips: what the scene holds, nothing of the camera; rows stay as they are.

    Example: theodolite caption runs/rgbd --server http://localhost:8000/v1 --model Qwen/Qwen3-VL-30B-A3B-Instruct
    """
    from ...annotate.language.tasks import Captions

    task = Captions(words=words, max_tokens=asked.max_tokens or max(256, 4 * words))
    return _by_language_model(path, name, "captions", task, asked, which)


def score(
    path: Dataset,
    measure: Annotated[str, typer.Option("--by", help="vlm (entities and quality), or dover.")],
    weights: Annotated[
        Path | None, typer.Option("--weights", help="DOVER's: TorchScript, or the authors' file.")
    ] = None,
    *,
    asked: Asked,
    which: Which,
) -> Outcome:
    """Add scores of networks to a finished dataset, for `theodolite filter`; rows stay as they are.

    Example: theodolite score runs/rgbd --by vlm --server http://localhost:8000/v1 --model Qwen/Qwen3-VL-8B-Instruct
    """
    if measure == "vlm":
        from ...annotate.language.tasks import Judgement

        task = Judgement() if asked.max_tokens is None else Judgement(max_tokens=asked.max_tokens)
        return _by_language_model(path, "vlm", "scores", task, asked, which)
    if measure != "dover":
        raise ValueError(
            f"--by {measure}: use vlm or dover; other scores come as tables (theodolite filter --scores)"
        )
    if weights is None:
        raise ValueError("--by dover: name the network (--weights FILE)")
    from ...annotate.frames.dover import load_network
    from ...annotate.networks.device import choose_device
    from ...dataset.weights import file_digest
    from ..describing import ByDover, run_describe

    device = choose_device(asked.device)
    network = load_network(weights, device)
    describer = ByDover(network, file_digest(weights), _media_root(path, which), device)
    return run_describe(path, describer, _options("dover", which), say=say)


def _by_language_model(path: Path, name: str, kind: Any, task: Any, asked: Asked, which: Which) -> Outcome:
    from ..describing import ByLanguageModel, run_describe

    describer = ByLanguageModel(
        kind=kind,
        task=task,
        model=language_model(asked, load=not which.dry_run),
        media_root=_media_root(path, which),
        pictures=asked.pictures,
        longest_px=asked.longest_px,
    )
    return run_describe(path, describer, _options(name, which), say=say)


def language_model(asked: Asked, *, load: bool = True) -> LanguageModel:
    """The model that the options name; one of this process is loaded.

    Args:
        load: False: only check the options.
    Raises:
        ValueError: options that do not go together, or a model that cannot be loaded.
    """
    if asked.model is None:
        raise ValueError("--model: name the model, such as Qwen/Qwen3-VL-8B-Instruct")
    if asked.runner == "server":
        from ...annotate.language.server import ChatServer

        if asked.server is None:
            raise ValueError(
                "--server: give the address of a server that speaks OpenAI's API (`vllm serve MODEL` starts one), or"
                " --runner transformers"
            )
        return ChatServer(url=asked.server, model=asked.model, key=os.environ.get(KEY), jobs=asked.jobs)
    if asked.server is not None:
        raise ValueError(f"--runner {asked.runner} asks no server: leave out --server, or --runner")
    one_of("--runner", asked.runner, ("server", "transformers", "vllm"))
    from ...annotate.language.local import TransformersModel, load_transformers, load_vllm

    if not load:
        return TransformersModel(asked.model, None, None, asked.jobs)
    if asked.runner == "vllm":
        return load_vllm(asked.model, pictures=asked.pictures, batch=8 * asked.jobs)
    from ...annotate.networks.device import choose_device

    return load_transformers(asked.model, device=str(choose_device(asked.device)), batch=asked.jobs)


def _media_root(path: Path, which: Which) -> Path:
    from ..loader import media_root_of_dataset

    return media_root_of_dataset(path) if which.media_root is None else which.media_root


def _options(name: str, which: Which) -> Any:
    from ..describing import DescribeOptions

    return DescribeOptions(
        name=name,
        rejected=which.rejected,
        retry=which.retry,
        limit=which.limit,
        dry_run=which.dry_run,
    )
