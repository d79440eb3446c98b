"""Every command of README and of the pages is run as it stands, page by page in their order, in a folder with what the
pages name. What lies outside is made here: recordings and videos are rendered, the networks of annotation simulated,
released weights tiny, hubs, caption servers, object stores and schedulers on this machine."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from theodolite.annotate.geometry.base import Provenance
from theodolite.annotate.geometry.estimators import Estimators
from theodolite.annotate.rendered.cameras import RenderConfig
from theodolite.annotate.rendered.files import write_clip
from theodolite.annotate.rendered.render import RenderedClip, render_clip
from theodolite.dataset import weights
from theodolite.dataset.media.write import VideoWriter

from .annotate.fetch.server import Site, serving
from .annotate.language.chat_server import SCENE, Chat, chatting
from .annotate.simulator import Errors, rendered_truth, simulated
from .object_store import needs_object_store, object_store, root_of
from .recipes import test_corpus as corpora
from .recipes.benchmarks import trees
from .support import Done, needs_packages, run_here
from .test_house import ROOT
from .test_pages import HAND_WRITTEN, blocks, commands, ids
from .typed import wrong

NOT_RUN = {
    r"make|git|python|pytest|dask|export|\. ": "sets a machine up, or measures on it",
    r"pip": "the network; that the extras exist is looked at (tests/test_pages.py)",
    r"torchrun|sbatch": "several machines; what they start is run without them",
    r"theodolite render": "Open3D (tests/recipes/test_rendering.py)",
    r"theodolite benchmark tum --root tum": "recordings that are not in the repository",
    r"theodolite benchmark (?!tum|.*--predictions)": "as that of tum (tests/recipes/benchmarks)",
    r".*--scheduler": "a test of its own",
    r".*s3://": "a test of its own",
}
NEEDS = {
    "docs/corpus.md": ("docs/training.md",),  # weights that are pulled there
    "docs/evaluating.md": ("docs/annotating.md", "docs/corpus.md"),
}
"""Pages whose commands take what others made."""
SMALL = (
    "--set",
    "height=64",
    "--set",
    "width=96",
    "--set",
    "frames=25",
    "--set",
    "shortest=9",
    "--device",
    "cpu",
)
SHORT = tuple(
    word
    for item in (
        "steps=1",
        "data.workers=0",
        "data.held_out=0",
        "parallel.context=1",
        "validation.every=0",
        "validation.sample_clips=0",
    )
    for word in ("--set", item)
)
BESIDES: dict[str, tuple[str, ...]] = {
    r"annotate (?!.*--scheduler)": ("--workers", "0"),
    r"annotate corpus": tuple(
        word
        for item in ("source.windows={frames: 32, most: 1}", *corpora.LIGHT[:2])
        for word in ("--set", item)
    ),
    r"benchmark (?!.*--predictions)": ("--workers", "0", "--set", corpora.LIGHT[0]),
    r"generate": ("--dry-run",),
    r"encode": SMALL,
    r"score .*dover": ("--device", "cpu"),
    r"pairs": ("--device", "cpu", "--set", "allow_stand_in=true"),
    r"trajectories": (
        "--device",
        "cpu",
        "--set",
        "student.frames=3",
        "--set",
        "student.chunk=1",
        "--set",
        "steps=4",
    ),
    r"train finetune_lora": (*SHORT, "--accelerator", "cpu"),
    r"train (?!finetune_lora)": (*SHORT, "--dry-run"),
    r"train stage": ("--set", "model={depth: 4, width: 48, heads: 2, latent_channels: 8, text_width: 16}"),
    r"train .*(?:ode_init|self_forcing)": ("--set", "student.frames=3", "--set", "student.chunk=1"),
}
"""Added to what a page says, so that it stays cheap here: sizes, and for what takes long --dry-run, which reads all
that it needs; tests/recipes runs the whole of generating and training."""


def besides(words: list[str]) -> list[str]:
    line = " ".join(words[1:])
    return [word for pattern, more in BESIDES.items() if re.match(pattern, line) for word in more]


def left_out(line: str) -> bool:
    return any(re.match(rf"(?:{pattern})", line) for pattern in NOT_RUN)


def theodolite_of(words: list[str]) -> list[str]:
    """What a batch system starts."""
    if words[0] == "sbatch":
        words = shlex.split(words[words.index("--wrap") + 1])
    return words[words.index("theodolite") :] if words[0] in ("torchrun", "srun") else words


@dataclass
class Desk:
    """A folder with what the pages name, and which pages were run there."""

    folder: Path
    replaced: dict[str, str]
    site: Site
    done: dict[str, list[tuple[str, Done]]] = field(default_factory=dict)

    def run(self, words: list[str]) -> Done:
        """A command of a page within this process; addresses are those of here."""
        line = [*words[1:], *besides(words)]
        for old, new in self.replaced.items():
            line = [word.replace(old, new) for word in line]
        return run_here(*line, cwd=self.folder)

    def run_page(self, page: str) -> list[tuple[str, Done]]:
        """Its commands in their order, once, after those of the pages that it needs."""
        for other in NEEDS.get(page, ()):
            self.run_page(other)
        if page not in self.done:
            ran: list[tuple[str, Done]] = []
            self.done[page] = ran
            for words in map(theodolite_of, commands(ROOT / page)):
                if not left_out(" ".join(words)):
                    ran.append((" ".join(words), self.run(words)))
        return self.done[page]


# --- what lies outside ----------------------------------------------------------------------------------------


def video_of(rendered: RenderedClip, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    config = rendered.config
    with VideoWriter(path, width=config.width, height=config.height, fps=config.fps) as out:
        for frame in rendered:
            out.write(frame.rgb)
    return path


def simulate_networks(patch: pytest.MonkeyPatch, clips: dict[str, RenderedClip], usual: RenderedClip) -> None:
    """Answers of Pi3X and MoGe-2 for clips by the beginnings of their ids."""
    real = Estimators.of

    class Simulated:
        def start(self, clip: Any, frames: Any, config: Any, *, poses_suffice: bool) -> Any:
            rendered = next((r for name, r in clips.items() if clip.clip_id.startswith(name)), usual)
            truth = rendered_truth(rendered, frames.timing.frame_index)
            truth = replace(truth, height=frames.height, width=frames.width)
            errors = Errors(outlier_frames=0.0, metric_outliers=0.0, metric_frame=0.02)
            made = simulated(truth, errors)
            for network in (vars(made.sequence)["network"], vars(made.anchor)["network"]):
                network.provenance = Provenance(("simulated",), ("none",), stand_in=False)
            return made.start(clip, frames, config, poses_suffice=poses_suffice)

    def chosen(config: Any) -> Any:
        return Simulated() if config.sequence == "pi3x" else real(config)

    patch.setattr(Estimators, "of", staticmethod(chosen))
    patch.setattr("theodolite.recipes.run.check_estimators", lambda config: None)  # the files are tiny


def save_tiny_world_model(path: Path) -> None:
    """Random weights under the released names, as a torch file or as safetensors."""
    from safetensors.torch import save_file
    from theodolite.model.checkpoint import save_world_model
    from theodolite.model.network import WorldModel
    from theodolite.model.parts import TINY

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = WorldModel(TINY)
    if path.suffix == ".pt":
        save_world_model(model, path)
    else:
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)


def pull_tiny_weights(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """`theodolite weights pull` finds tiny weights where the hub has the released ones."""
    from .model.release import write_release

    parts = {False: write_release(folder / "two-way"), True: write_release(folder / "causal", distilled=True)}

    def bring(w: weights.WeightFile, root: Path) -> None:
        place = (root / w.filename).parent
        place.parent.mkdir(parents=True, exist_ok=True)
        release = parts[w.name in ("ltx-2-vae-causal",)]
        if w.filename.endswith("config.json"):
            gemma_3 = w.name.startswith("gemma-3")
            shutil.copytree(
                release / ("refiner/text_encoder" if gemma_3 else "text_encoder"), place, dirs_exist_ok=True
            )
        elif "refiner" in w.name:
            shutil.copytree(release / "refiner", root / str(w.loaded), dirs_exist_ok=True)
        elif w.loaded is not None:
            shutil.copytree(release / w.loaded, root / w.loaded, dirs_exist_ok=True)
        else:
            place.mkdir(parents=True, exist_ok=True)
            (root / "config.yaml").write_text((release / "config.yaml").read_text())
            save_tiny_world_model(root / w.filename)

    def download(*, repo_id: str, revision: str, filename: str | None = None, **_: object) -> str:
        snapshot = folder / "cache" / f"models--{repo_id.replace('/', '--')}" / "snapshots" / revision
        for w in weights.WEIGHTS.values():
            if w.repository == repo_id and not (snapshot / w.filename).exists():
                bring(w, snapshot)
        return str(snapshot if filename is None else snapshot / filename)

    patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "cache"))
    patch.setattr("huggingface_hub.hf_hub_download", download)
    patch.setattr("huggingface_hub.snapshot_download", download)
    tiny = {name: replace(w, sha256=None) for name, w in weights.WEIGHTS.items()}
    patch.setattr(weights, "WEIGHTS", tiny)  # their digests are not the released files'


class Mean(torch.nn.Module):
    """In place of DOVER's network."""

    def forward(self, technical: torch.Tensor, aesthetic: torch.Tensor):
        return technical.mean() * 0.01, aesthetic.mean() * 0.01


def judged(messages: list[dict[str, Any]]) -> str:
    """A caption, or the answer of the judgement's second question."""
    if "quality_pass" in str(messages):
        return '{"people": 2, "vehicles": 1, "animals": 0, "quality_pass": true}'
    return SCENE


def write_data(data: Path, office: RenderedClip, on_sets: RenderedClip) -> None:
    """/data of the pages: recordings by the index of docs/annotating.md as it stands, true cameras, videos, sets."""
    files = write_clip(office, data / "office")
    (index,) = blocks(ROOT / "docs/annotating.md", "yaml")
    (data / "office" / "poses.txt").symlink_to(files.camera_to_world_path)
    (data / "clips.yaml").write_text(index, encoding="utf-8")
    (data / "truth").mkdir()
    shutil.copy(files.camera_to_world_path, data / "truth" / "office.txt")
    (data / "videos").mkdir()
    shutil.copy(files.media_path, data / "videos" / "office.mp4")
    trees.write_tum_sequence(data / "tum" / "rgbd_dataset_freiburg1_xyz", on_sets)
    for place in ("kitti", "orb-slam3"):  # pictures are not looked at where cameras are there
        (data / place).mkdir()
    poses = on_sets.camera_to_world
    for number in range(11):
        trees.write_kitti_sequence(data / "kitti", f"{number:02d}", poses)
        trees.write_kitti(data / "orb-slam3" / f"{number:02d}.txt", poses)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    import cv2

    folder = tmp_path_factory.mktemp("desk")
    data = folder / "data"
    office = render_clip(RenderConfig(width=320, height=192, num_frames=24, seed=3, moving_object=False))
    on_sets = trees.clip_of()
    walk = render_clip(corpora.WALK)
    write_data(data, office, on_sets)
    shot = corpora.Shot(walk, video_of(walk, folder / "hub/shot.mp4"))
    for name, build in (("sekai", corpora.sekai_game), ("sv", corpora.spatialvid)):
        (folder / "hub" / name).mkdir()
        build(folder / "hub" / name, shot)
    (data / "DL3DV-GS-renders").mkdir()
    corpora.dl3dv_gs(data / "DL3DV-GS-renders", shot)  # in place of `theodolite render`
    (folder / "hub/sekai/train").mkdir()
    (folder / "hub/sekai/train/sekai-game-walking.csv").write_text("videoFile,caption\n")
    (folder / "hub/sekai/sekai-game-drone.zip").write_bytes(b"PK\5\6" + bytes(18))  # an archive of nothing
    cv2.imwrite(
        str(folder / "street.jpg"), next(iter(trees.clip_of(width=1280, height=704, num_frames=1))).rgb
    )
    torch.jit.script(Mean()).save(str(folder / "DOVER.pth"))
    (folder / "scores.csv").write_text("clip_id,dover\n00100100001_0008250_0008298,0.6\n")
    with (
        pytest.MonkeyPatch.context() as patch,
        serving(Site()) as site,
        chatting(Chat(answer=judged)) as chat,
    ):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            patch.delenv(name, raising=False)
        patch.setenv("HF_ENDPOINT", site.url)
        for name, repository in (("sekai", "Lixsp11/Sekai-Project"), ("sv", "SpatialVID/SpatialVID-HQ")):
            root = folder / "hub" / name
            files = {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}
            site.add_repository(repository, files)
        simulate_networks(patch, {"office": office, "rgbd_dataset": on_sets}, walk)
        pull_tiny_weights(patch, folder)
        made = Desk(folder, {"/data": str(data), "http://localhost:8000/v1": chat.url}, site)
        # What the trainings write whose commands only look here what they would take.
        for path in set(re.findall(r"runs/\S+\.safetensors", (ROOT / "docs/training.md").read_text())):
            save_tiny_world_model(folder / path)
        (readme,) = (w for w in commands(ROOT / "README.md") if w[:2] == ["theodolite", "annotate"])
        assert made.run(readme).returncode == 0
        yield made


PAGES_WITH_COMMANDS = [
    page
    for page in map(ids, HAND_WRITTEN)
    if any(not left_out(" ".join(theodolite_of(words))) for words in commands(ROOT / page))
]


@pytest.mark.slow(about_s=5)
@needs_packages("diffusers", "transformers", "lightning", "peft", extra="dev")
@pytest.mark.parametrize("page", PAGES_WITH_COMMANDS)
def test_commands_run(desk: Desk, page: str) -> None:
    wrong = [f"{line}\n{said.stdout}\n{said.stderr}" for line, said in desk.run_page(page) if said.returncode]
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.slow
def test_python_on_pages_reads_the_dataset(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader's example is run by tests/dataset/test_loading.py."""
    monkeypatch.chdir(desk.folder)
    code = [body for path in HAND_WRITTEN for body in blocks(path, "python")]
    reading = [body for body in code if '"runs/rgbd"' in body and "ClipStream" not in body]
    assert len(reading) == 3
    for body in reading:
        names: dict[str, Any] = {}
        exec(body, names)
        assert names["row"].clip_id == "office"
        assert names["row"].camera_to_world.shape == (24, 4, 4)


@pytest.mark.slow
def test_commands_behind_a_scheduler_with_keys(desk: Desk) -> None:
    import dask
    from distributed import LocalCluster
    from distributed.security import Security

    security = Security.temporary()
    keys = {
        "distributed.comm.tls.ca-file": security.tls_ca_file,
        "distributed.comm.tls.client.cert": security.tls_client_cert,
        "distributed.comm.tls.client.key": security.tls_client_key,
    }
    (words,) = (w for p in HAND_WRITTEN for w in commands(p) if "--scheduler" in w)
    cluster: Any = LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        processes=False,
        dashboard_address=wrong(None),
        protocol="tls://",
        security=security,
    )
    with dask.config.set(keys), cluster:
        address = {"tls://scheduler:8786": str(cluster.scheduler_address), "runs/rgbd": "runs/scheduled"}
        there = Desk(desk.folder, desk.replaced | address, desk.site)
        said = there.run(words)
    assert said.returncode == 0, said
    assert "1 accepted" in said.stdout


@needs_object_store
@pytest.mark.slow
def test_commands_with_an_object_store(desk: Desk) -> None:
    lines = [w for p in HAND_WRITTEN for w in commands(p) if any("s3://" in word for word in w)]
    assert len(lines) == 2
    with object_store() as store:
        there = Desk(
            desk.folder, desk.replaced | {"s3://bucket/rgbd": str(root_of(store, "rgbd"))}, desk.site
        )
        for words in lines:
            said = there.run(words)
            assert said.returncode == 0, said
