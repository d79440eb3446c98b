"""Released network weights: what they are, under which licence, and how they get onto the machine.

Nothing is downloaded as a side effect: `pull` downloads, everything else only looks. A file that is used is checked
against its SHA-256 when one is known (pinned here or in the hub's own metadata at download).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from .hub import hub_error
from .licences import allows_commercial_use
from .storage.listing import may_change_unseen
from .store import write_atomically
from .strict import Strict


class WeightsChoice(Strict):
    """Which file of a network's weights a recipe uses."""

    path: Path | None = None
    """A local file; null: the hub's cache, which `theodolite weights pull` fills."""
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    """Commit of the weights' repository; null: the pinned one (`theodolite weights list`)."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Expected digest of the file."""


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """One released checkpoint.

    Attributes:
        name: short name used in recipes and rows.
        repository, filename: place on the Hugging Face hub.
        revision: commit of the repository, 40 hex digits.
        sha256: of the file, or None while unknown.
        num_bytes: size; approximate where the card does not say.
        licence: of the weights, not of any code; a name of `dataset/licences.py`, by which publishing judges.
        licence_source: where that is said.
        beside: further files of the repository without which the first one is of no use.
        patterns: of names in the repository that are downloaded too; what an index of shards names must be there.
        loaded: what loaders take, a path in the repository; None: the file.
    """

    name: str
    repository: str
    filename: str
    revision: str
    sha256: str | None
    num_bytes: int
    licence: str
    licence_source: str
    beside: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    loaded: str | None = None

    @property
    def is_folder(self) -> bool:
        """Whether loaders take a folder."""
        return self.loaded is not None

    @property
    def commercial_use(self) -> bool:
        """False if the licence forbids it."""
        return allows_commercial_use(self.licence, ())


def _moge(variant: str, num_bytes: int, revision: str, sha256: str | None = None) -> WeightFile:
    return WeightFile(
        name=f"moge-2-{variant}",
        repository=f"Ruicheng/moge-2-{variant}",
        filename="model.pt",
        revision=revision,
        sha256=sha256,
        num_bytes=num_bytes,
        licence="MIT",
        licence_source="as third parties quote the model card",
    )


_BIDIRECTIONAL = ("Efficient-Large-Model/SANA-WM_bidirectional", "90e0ff3b8f1f9b54a92b4b707edeaa27073aec84")
_CHUNK_CAUSAL = ("Efficient-Large-Model/SANA-WM_chunk_causal", "f9178744c096dcf2a2ea773da183e341bcbeb044")
_STREAMING = ("Efficient-Large-Model/SANA-WM_streaming", "c7694938c854b1fcc29468e9514f1ea2d0c4ba8e")
_TAG = "Apache-2.0", "tag of the repository"
_LTX = "LTX-2-community", "the model card: refiner and video autoencoder keep LTX-2's licence"
_GEMMA = "Gemma-terms", "terms of the model that the file is a copy of"


def _sana(
    name: str,
    release: tuple[str, str],
    filename: str,
    num_bytes: int,
    licence: tuple[str, str],
    *,
    beside: tuple[str, ...] = (),
    patterns: tuple[str, ...] = (),
    loaded: str | None = None,
) -> WeightFile:
    return WeightFile(
        name=name,
        repository=release[0],
        filename=filename,
        revision=release[1],
        sha256=None,
        num_bytes=num_bytes,
        licence=licence[0],
        licence_source=licence[1],
        beside=beside,
        patterns=patterns,
        loaded=loaded,
    )


def _refiner(name: str, release: tuple[str, str], folder: str) -> WeightFile:
    weights, config = "diffusion_pytorch_model.safetensors", "config.json"
    return _sana(
        name,
        release,
        f"{folder}/transformer/{weights}",
        41_000_000_000,
        _LTX,
        beside=tuple(
            f"{folder}/{f}"
            for f in (f"transformer/{config}", f"connectors/{config}", f"connectors/{weights}")
        ),
        loaded=folder,
    )


def _language_model(name: str, release: tuple[str, str], folder: str, num_bytes: int) -> WeightFile:
    place = f"{folder}/" if folder else ""
    return _sana(
        name,
        release,
        f"{place}config.json",
        num_bytes,
        _GEMMA,
        beside=(f"{place}tokenizer_config.json",),
        patterns=tuple(f"{place}{p}" for p in ("*.json", "model*.safetensors", "tokenizer*")),
        loaded=folder or ".",
    )


def _generation() -> tuple[WeightFile, ...]:
    """What the world model and its neighbours were released as."""
    weights, config = "diffusion_pytorch_model.safetensors", "config.json"
    return (
        _sana(
            "sana-wm-bidirectional",
            _BIDIRECTIONAL,
            "dit/sana_wm_1600m_720p.safetensors",
            10_700_000_000,
            _TAG,
            beside=("config.yaml",),
        ),
        _sana(
            "sana-wm-chunk-causal",
            _CHUNK_CAUSAL,
            "dit/sana_wm_chunk_causal_1600m_720p.safetensors",
            10_700_000_000,
            _TAG,
            beside=("config.yaml",),
        ),
        _sana("sana-wm-streaming", _STREAMING, "sana_dit/model.pt", 32_000_000_000, _TAG),
        _sana(
            "ltx-2-vae",
            _BIDIRECTIONAL,
            f"vae/{weights}",
            2_000_000_000,
            _LTX,
            beside=(f"vae/{config}",),
            loaded="vae",
        ),
        _sana(
            "ltx-2-vae-causal",
            _STREAMING,
            f"ltx2_causal_vae/{weights}",
            5_000_000_000,
            _LTX,
            beside=(f"ltx2_causal_vae/{config}",),
            loaded="ltx2_causal_vae",
        ),
        _refiner("sana-wm-refiner", _BIDIRECTIONAL, "refiner"),
        _refiner("sana-wm-refiner-streaming", _STREAMING, "refiner_diffusers"),
        _language_model(
            "gemma-2-2b-it",
            ("Efficient-Large-Model/gemma-2-2b-it", "569d9809d0c8b6722d4d31b5a77a2ec7a400650a"),
            "",
            5_230_000_000,
        ),
        _language_model("gemma-3-12b-float32", _BIDIRECTIONAL, "refiner/text_encoder", 50_000_000_000),
        _language_model("gemma-3-12b", _STREAMING, "gemma3_12b", 24_000_000_000),
    )


WEIGHTS: Mapping[str, WeightFile] = {
    w.name: w
    for w in (
        WeightFile(
            name="pi3x",
            repository="yyfz233/Pi3X",
            filename="model.safetensors",
            revision="bb1deea4d7423de5b30691739cb451a3f57dc1d5",
            sha256="69972d6e1c4492cb4d737a84fe940e357087d81c52f5c9b7c160b49c1f41669a",
            num_bytes=5_440_325_620,
            licence="CC-BY-NC-4.0",
            licence_source="model card",
        ),
        _moge("vitl", 1_305_000_000, "39c4d5e957afe587e04eec59dc2bcc3be5ecd968"),
        _moge(
            "vitl-normal",
            1_323_815_904,
            "cb0e8bbd6b1e243589717c78e750b1ba4c093acf",
            "280741fd09bc3f403ccff9967784c2a391b52d2c0742ae3efdb21d9f90cc1a01",
        ),
        _moge("vitb-normal", 419_110_160, "54ad3a693e61907ea4633d13dec6ee682fa09419"),
        _moge("vits-normal", 140_550_416, "679230677b4d282c6f304189a93e98e14f085902"),
        *_generation(),
    )
}
"""Every checkpoint that a recipe or a command can name. Commits and digests are those that public projects pin and
record for these files (Pi3X and MoGe-2 ViT-L with normals: several of them, with one digest; the bidirectional world
model: two, without a digest; the others: one, without a digest, so that only the hub's own digest is checked). Sizes of
the world model and its neighbours are rounded, as users report them. Nothing was fetched from the hub here."""

CHAINS: Mapping[str, Mapping[str, str]] = {
    mode: {
        "world_model": world_model,
        "autoencoder": "ltx-2-vae-causal" if mode == "distilled" else "ltx-2-vae",
        "text_encoder": "gemma-2-2b-it",
        "refiner": "sana-wm-refiner-streaming" if mode == "distilled" else "sana-wm-refiner",
        "refiner_text_encoder": "gemma-3-12b",
    }
    for mode, world_model in (
        ("bidirectional", "sana-wm-bidirectional"),
        ("chunk-causal", "sana-wm-chunk-causal"),
        ("distilled", "sana-wm-streaming"),
    )
}
"""Weights of each part by the mode of generation, as they were released together. The refiner's language model is the
copy in bfloat16, half the size of the one that the bidirectional release brings."""


@dataclass(frozen=True, kw_only=True)
class ResolvedWeights:
    """A checkpoint on disk, checked.

    Attributes:
        path: the file, or the folder that loaders take.
        root: top of the repository's copy; the release's other files lie below it. Of a file that somebody brought, its
            folder.
        name, revision, sha256: what goes into the run record and into every row.
        licence: of the weights.
    """

    path: Path
    root: Path
    name: str
    revision: str
    sha256: str
    licence: str

    @property
    def label(self) -> str:
        """`name@revision#sha256-start`, the text stored in rows."""
        return f"{self.name}@{self.revision}#{self.sha256[:12]}"


def lookup(name: str) -> WeightFile:
    """The entry called `name`.

    Raises:
        ValueError: naming the known ones.
    """
    if name not in WEIGHTS:
        raise ValueError(f"unknown weights {name!r}; there are {', '.join(sorted(WEIGHTS))}")
    return WEIGHTS[name]


def names_of(asked: str) -> tuple[str, ...]:
    """Names of weights that a name stands for: one, or all of a chain (`CHAINS`).

    Raises:
        ValueError: naming what there is.
    """
    if asked in CHAINS:
        return tuple(CHAINS[asked].values())
    if asked not in WEIGHTS:
        raise ValueError(
            f"unknown weights {asked!r}; there are {', '.join(sorted(WEIGHTS))}, and all that a mode of generation "
            f"needs: {', '.join(CHAINS)}"
        )
    return (asked,)


def listing() -> list[dict[str, str]]:
    """One row per checkpoint for `theodolite weights list`: name, repository, size, licence, revision, local file."""
    rows = []
    for w in WEIGHTS.values():
        cached = _cached(w, w.revision)
        rows.append(
            {
                "name": w.name,
                "repository": _place(w),
                "size": f"{w.num_bytes / 1e9:.2f} GB",
                "licence": w.licence,
                "revision": w.revision,
                "local": str(cached) if cached else "-",
            }
        )
    return rows


def _place(w: WeightFile) -> str:
    return (
        f"{w.repository}/{w.filename}"
        if w.loaded is None
        else f"{w.repository}/{w.loaded}/".replace("/./", "/")
    )


def notice(name: str) -> str:
    """What a user must have read before a download starts: size and licence in one line each."""
    w = lookup(name)
    lines = [
        f"{w.name}: {_place(w)}, {w.num_bytes / 1e9:.2f} GB",
        f"licence of the weights: {w.licence} ({w.licence_source})",
    ]
    if not w.commercial_use:
        lines.append(
            "These weights may not be used commercially by everyone; what is made with them inherits that question."
        )
    return "\n".join(lines)


def pull(
    name: str,
    *,
    revision: str | None = None,
    sha256: str | None = None,
    show: Callable[[str], None],
    download: Callable[..., str] | None = None,
) -> ResolvedWeights:
    """Download a checkpoint at a fixed commit and check it.

    Args:
        name: see `WEIGHTS`.
        revision: full commit hash; default the pinned one.
        sha256: expected digest; default the pinned one.
        show: receives `notice(name)` before anything is downloaded.
        download: replaces `huggingface_hub.hf_hub_download`, for folders `snapshot_download` (tests).
    Raises:
        ValueError: unknown name, a revision that is not a full commit, or a file with another digest.
        OSError: no network, no such commit, disk full.
    """
    w = lookup(name)
    commit = _commit(w, revision)
    show(notice(name))
    try:
        path = _downloaded(w, commit, download)
    except Exception as error:
        if (reason := hub_error(error)) is None:
            raise
        raise OSError(
            f"weights {name} could not be downloaded from {w.repository} at {commit}: {reason}; what was brought by "
            "other means is used where its path is given"
        ) from error
    return _checked(w, path, commit, _digest(w, commit, sha256))


def _downloaded(w: WeightFile, commit: str, download: Callable[..., Any] | None) -> Path:
    """The file or the folder, all of it on this machine."""
    if download is None:
        import huggingface_hub

        download = huggingface_hub.snapshot_download if w.is_folder else huggingface_hub.hf_hub_download
    if w.is_folder:
        wanted = [w.filename, *w.beside, *w.patterns]
        root = Path(download(repo_id=w.repository, revision=commit, allow_patterns=wanted))
        return root / str(w.loaded)
    files = [
        Path(download(repo_id=w.repository, filename=name, revision=commit))
        for name in (w.filename, *w.beside)
    ]
    return files[0]


def resolve(
    name: str, *, path: Path | None = None, revision: str | None = None, sha256: str | None = None
) -> ResolvedWeights:
    """The checkpoint on this machine; never touches the network.

    Args:
        path: a local file, or folder where loaders take one, used instead of the hub's cache; the released one, unless
            `sha256` says otherwise.
        revision, sha256: as for `pull`.
    Raises:
        ValueError: the file is absent (with the command that brings it) or has another digest.
    """
    w = lookup(name)
    found = locate(name, path=path, revision=revision)
    if path is not None:
        if revision is None:
            # A file that somebody brought is the released one, unless its user says what else it is.
            revision = w.revision if sha256 is None and w.sha256 is not None else "local-file"
        return _checked(w, found, revision, _digest(w, revision, sha256))
    commit = _commit(w, revision)
    return _checked(w, found, commit, _digest(w, commit, sha256))


def expected_digest(name: str, choice: WeightsChoice) -> str | None:
    """Digest that a chosen file must have, or None where anything that fits is taken."""
    w = lookup(name)
    if choice.path is not None and choice.revision is None:
        return choice.sha256 or w.sha256
    return _digest(w, choice.revision or w.revision, choice.sha256)


def locate(name: str, *, path: Path | None = None, revision: str | None = None) -> Path:
    """Where a checkpoint lies on this machine; arguments as for `resolve`. Looks for it, reads nothing.

    Raises:
        ValueError: the file is absent (with the command that brings it).
    """
    w = lookup(name)
    if path is not None:
        if w.is_folder and not path.is_dir():
            what = "is a file; name the folder that it lies in" if path.is_file() else "no such folder"
            raise ValueError(f"weights {name}: {path}: {what}")
        if not w.is_folder and not path.is_file():
            what = "is a folder; name the file in it" if path.is_dir() else "no such file"
            raise ValueError(f"weights {name}: {path}: {what}")
        return path
    commit = _commit(w, revision)
    cached = _cached(w, commit)
    if cached is None:
        raise ValueError(
            f"weights {name} are not on this machine at {commit}; run: theodolite weights pull {name}"
            + (f" --revision {commit}" if commit != w.revision else "")
        )
    return cached


def _commit(w: WeightFile, revision: str | None) -> str:
    commit = revision or w.revision
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise ValueError(
            f"weights {w.name}: revision {commit!r} is no full commit (40 hex digits); branches move"
        )
    return commit


def _digest(w: WeightFile, revision: str, given: str | None) -> str | None:
    """Expected digest: the given one, else the pinned one if this is the pinned commit."""
    return given or (w.sha256 if revision == w.revision else None)


def _cached(w: WeightFile, commit: str) -> Path | None:
    """The file or the folder in the hub's cache, if everything that belongs to it is there."""
    from huggingface_hub import try_to_load_from_cache

    found: Any = try_to_load_from_cache(repo_id=w.repository, filename=w.filename, revision=commit)
    if not isinstance(found, str | os.PathLike):
        return None
    root = _root(w, Path(found))
    if any(not (root / name).is_file() for name in w.beside) or any(
        not file.is_file() for file in _shards(w, root)
    ):
        return None
    return Path(found) if w.loaded is None else root / w.loaded


def _root(w: WeightFile, main: Path) -> Path:
    """Top of the repository's copy that holds the main file."""
    return main.parents[w.filename.count("/")]


def _shards(w: WeightFile, root: Path) -> list[Path]:
    """Files of weights that no name here says: those in the loaders' folder, or what its index names.

    Raises:
        ValueError: the index is damaged.
    """
    if not w.patterns or w.loaded is None:
        return []
    folder = root / w.loaded
    files = set(folder.glob("model*.safetensors"))
    for index in folder.glob("*.safetensors.index.json"):
        try:
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        except (ValueError, KeyError, AttributeError, TypeError):
            raise ValueError(f"weights {w.name}: {index} is no index of safetensors shards") from None
        files |= {folder / str(name) for name in names}
    return sorted(files) or [folder / "model.safetensors"]


def _checked(w: WeightFile, path: Path, revision: str, expected: str | None) -> ResolvedWeights:
    if w.is_folder:
        root = path.parents[str(w.loaded).count("/")] if w.loaded != "." else path
        files = [*(root / name for name in (w.filename, *w.beside)), *_shards(w, root)]
        digests = [f"{file.relative_to(root)} {_file_checked(w, file, None)}" for file in files]
        found = hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()
        return ResolvedWeights(
            path=path, root=root, name=w.name, revision=revision, sha256=found, licence=w.licence
        )
    root = path.parent if revision == "local-file" or path.name != Path(w.filename).name else _root(w, path)
    found = _file_checked(w, path, expected)
    return ResolvedWeights(
        path=path, root=root, name=w.name, revision=revision, sha256=found, licence=w.licence
    )


def _file_checked(w: WeightFile, path: Path, expected: str | None) -> str:
    """Digest of a file, as expected or as the hub's cache says."""
    try:
        found = file_digest(path)
    except OSError as error:
        raise ValueError(f"weights {w.name}: {path} cannot be read: {error.strerror or error}") from None
    # The hub's cache links a large file to a blob named by its SHA-256.
    blob = path.resolve().name
    if expected is None and re.fullmatch(r"[0-9a-f]{64}", blob):
        expected = blob
    if expected is not None and found != expected.lower():
        raise ValueError(
            f"weights {w.name}: {path} has SHA-256 {found}, expected {expected}; the file is damaged or another version"
        )
    return found


# --- digests -----------------------------------------------------------------------------------


def file_digest(path: Path) -> str:
    """SHA-256 of a file, read once: it is remembered for as long as the file's times, size and inode stay.

    Several gigabytes take a minute, and the check before a run and each of its workers ask for the same.

    Raises:
        OSError: the file cannot be read.
    """
    path = path.resolve()
    state = path.stat()
    mark = [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
    for note in _digest_notes(path):
        try:
            known = json.loads(note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(known, dict) and known.get("file") == str(path) and known.get("mark") == mark:
            return str(known["sha256"])
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    found = digest.hexdigest()
    # A file that was written a moment ago may be written again within one tick of the system's clock.
    if not may_change_unseen(state.st_mtime_ns):
        _remember(path, {"file": str(path), "mark": mark, "sha256": found})
    return found


def _digest_notes(path: Path) -> Iterator[Path]:
    """Where a file's digest may be noted: the user's cache, or where that cannot be written, a temporary folder."""
    name = hashlib.sha256(str(path).encode()).hexdigest()[:32] + ".json"
    cache_home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if os.path.isabs(cache_home):  # without a home it is not
        yield Path(cache_home) / "theodolite" / "digests" / name
    yield Path(tempfile.gettempdir()) / f"theodolite-digests-{os.getuid()}" / name


def _remember(path: Path, known: dict[str, object]) -> None:
    for note in _digest_notes(path):
        try:
            note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if note.parent.stat().st_uid != os.getuid():
                continue  # somebody else's word is not taken
            write_atomically(note, json.dumps(known).encode())
            return
        except OSError:
            continue
