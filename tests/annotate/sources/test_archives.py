"""Archives into trees: one pass, prefixes that vary, and members that are hostile or cut off."""

from __future__ import annotations

import gzip
import io
import os
import random
import resource
import tarfile
import zipfile
from pathlib import Path
from typing import Literal

import pytest
from theodolite.annotate.frames.base import DecodeConfig
from theodolite.annotate.frames.open import open_clip
from theodolite.annotate.sources import archives
from theodolite.annotate.sources.archives import Limits, find_archives, ledger_path, unpack
from theodolite.annotate.sources.clip import ClipRejection
from theodolite.annotate.sources.entries import ReleaseLayout
from theodolite.annotate.sources.releases import LAYOUTS, release_clips
from theodolite.annotate.sources.tree import Release
from theodolite.dataset.formats.webdataset import read_webdataset

from ...typed import known


def tar_of(
    path: Path, members: dict[str, bytes], *, mode: Literal["w:gz", "w:bz2", "w:xz", "w"] = "w:gz"
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def files(root: Path) -> list[str]:
    return sorted(
        p.relative_to(root).as_posix()
        for p in root.rglob("*")
        if p.is_file() and p.parts[len(root.parts)] != ".unpacked" and p.suffix not in (".gz", ".tar", ".zip")
    )


def unpack_all(layout: ReleaseLayout, root: Path, limits: Limits | None = None):
    place = known(LAYOUTS[layout].place)
    return [unpack(path, root, place, limits) for path in find_archives(root, LAYOUTS[layout])]


@pytest.mark.parametrize("prefix", ["SpatialVID/videos", "SpatialVid/HQ/videos", "./videos", "videos"])
def test_prefixes_of_spatialvid_do_not_matter(tmp_path: Path, prefix: str) -> None:
    tar_of(tmp_path / "videos/group_0001.tar.gz", {f"{prefix}/group_0001/0a00-11.mp4": b"v"})
    tar_of(
        tmp_path / "annotations/group_0001.tar.gz",
        {f"{prefix.replace('videos', 'annotations')}/group_0001/0a00-11/poses.npy": b"p"},
    )
    done = unpack_all("spatialvid-hq", tmp_path)
    assert [u.written for u in done] == [1, 1]
    assert files(tmp_path) == ["annotations/group_0001/0a00-11/poses.npy", "videos/group_0001/0a00-11.mp4"]
    (clip,) = release_clips("spatialvid-hq", Release(root=tmp_path, source="test"))
    assert clip.given.cameras_path == tmp_path / "annotations/group_0001/0a00-11"


def test_members_of_omniworld_get_their_scene(tmp_path: Path) -> None:
    uid = "b04f88d1f85a"
    tar_of(tmp_path / f"videos/OmniWorld-Game/{uid}/{uid}_rgb_0000.tar.gz", {"color/000000.png": b"a"})
    tar_of(tmp_path / f"annotations/OmniWorld-Game/{uid}/{uid}_depth_0000.tar.gz", {"depth/000000.png": b"b"})
    tar_of(
        tmp_path / f"annotations/OmniWorld-Game/{uid}/{uid}_others.tar.gz",
        {"split_info.json": b'{"split": []}'},
    )
    unpack_all("omniworld-game", tmp_path)
    assert files(tmp_path) == [
        f"annotations/OmniWorld-Game/{uid}/depth/000000.png",
        f"annotations/OmniWorld-Game/{uid}/split_info.json",
        f"videos/OmniWorld-Game/{uid}/color/000000.png",
    ]


@pytest.mark.parametrize("nesting", ["", "{scene}/", "{scene}/{scene}/", "1K/{scene}/"])
def test_zips_of_dl3dv_nest_differently(tmp_path: Path, nesting: str) -> None:
    scene = "0" * 63 + "a"
    path = tmp_path / f"1K/{scene}.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(nesting.format(scene=scene) + "transforms.json", "{}")
        archive.writestr(nesting.format(scene=scene) + "images_4/frame_00001.png", "x")
    unpack_all("dl3dv", tmp_path)
    assert files(tmp_path) == [f"1K/{scene}/images_4/frame_00001.png", f"1K/{scene}/transforms.json"]


def test_zip64_in_parts_is_read_without_joining_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)  # a large file's records, without a large file
    whole = tmp_path / "whole"
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("sekai-game-walking/00100100001_0008250_0010050.mp4", bytes(range(256)) * 50)
        archive.writestr("sekai-game-walking/00100100001_0008250_0010050.npz", b"cameras")
    content = whole.read_bytes()
    assert b"PK\x06\x06" in content  # the Zip64 end record
    whole.unlink()
    for name, part in (("aa", content[:5000]), ("ab", content[5000:])):
        (tmp_path / f"sekai-game-walking.zip.part_{name}").write_bytes(part)
    (done,) = unpack_all("sekai-game", tmp_path)
    assert (done.written, done.problems, done.damage) == (2, [], None)
    video = tmp_path / "sekai-game-walking/00100100001_0008250_0010050.mp4"
    assert video.read_bytes() == bytes(range(256)) * 50


def test_walks_whose_ids_begin_with_dashes(tmp_path: Path) -> None:
    name = "--Rwt95Vkw0_0003750_0005550.mp4"
    tar_of(tmp_path / "sekai-real-walking/sekai-real-walking_part001.tar", {name: b"v"}, mode="w")
    (done,) = unpack_all("sekai-walking", tmp_path)
    assert done.written == 1
    assert files(tmp_path) == [f"sekai-real-walking/{name}"]


# --- hostile and damaged ------------------------------------------------------------------------------


def reason_of(root: Path, clip_id: str) -> str:
    clips = {clip.clip_id: clip for clip in release_clips("spatialvid-hq", Release(root=root, source="test"))}
    with pytest.raises(ClipRejection) as caught:
        open_clip(clips[clip_id], DecodeConfig())
    return caught.value.reason


def test_nothing_leaves_the_folder(tmp_path: Path) -> None:
    root = tmp_path / "root"
    archive = root / "videos/group_0001.tar.gz"
    archive.parent.mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    with tarfile.open(archive, "w:gz") as tar:

        def add(name: str, **fields) -> None:
            info = tarfile.TarInfo(name)
            for key, value in fields.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(b"x" * info.size))

        add("../../group_0001/../../../outside/escape.mp4", size=3)
        add("/group_0001/absolute.mp4", size=3)
        add("videos/group_0001/link.mp4", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add("videos/group_0001/hard.mp4", type=tarfile.LNKTYPE, linkname="../../../outside/x")
        add("videos/group_0001/device.mp4", type=tarfile.CHRTYPE)
        # A link to a folder, and a file through it.
        add("videos/group_0001/away", type=tarfile.SYMTYPE, linkname=str(outside))
        add("videos/group_0001/away/through.mp4", size=3)
        add("videos/group_0001/good.mp4", size=3)
    (root / "videos/group_0001").mkdir()
    (root / "videos/group_0001/away").symlink_to(outside)  # and one that was there before
    (done,) = unpack_all("spatialvid-hq", root)
    assert list(outside.iterdir()) == []
    assert done.written == 1
    assert {m.reason for m in done.problems} == {"archive_member_unsafe"}
    assert (root / "videos/group_0001/good.mp4").read_bytes() == b"xxx"
    for name in ("link", "hard", "device"):
        assert not (root / f"videos/group_0001/{name}.mp4").exists()
        assert reason_of(root, name) == "archive_member_unsafe"


def test_names_that_clash_or_that_no_disk_takes(tmp_path: Path) -> None:
    """A file where a folder is wanted, a folder where a file is, a name of 300 letters: each costs itself alone."""
    member = "videos/group_0001/{}.mp4".format
    tar_of(
        tmp_path / "videos/group_0001.tar.gz",
        {
            member("a"): b"1",
            member("a") + "/b.mp4": b"2",
            member("c") + "/d.mp4": b"3",
            member("c"): b"4",
            member("x" * 300): b"5",
            member("bad\udcff"): b"6",
            member("last"): b"7",
        },
    )
    (done,) = unpack_all("spatialvid-hq", tmp_path)
    assert done.damage is None
    assert done.written == 4
    assert [m.reason for m in done.problems] == ["archive_member_unsafe"] * 3
    assert (tmp_path / member("last")).read_bytes() == b"7"
    assert not list(tmp_path.rglob("*.part"))
    clips = {
        clip.clip_id: clip for clip in release_clips("spatialvid-hq", Release(root=tmp_path, source="t"))
    }
    assert clips["a"].problem is None
    with pytest.raises(ClipRejection, match="file_name_not_utf8"):
        open_clip(clips["bad_"], DecodeConfig())


@pytest.mark.slow
def test_a_bomb_is_the_reason_of_its_own_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("theodolite.annotate.sources.archives._BOMB_FROM", 1 << 20)
    tar_of(
        tmp_path / "videos/group_0001.tar.gz",
        {"videos/group_0001/bomb.mp4": bytes(64 << 20), "videos/group_0001/good.mp4": b"v"},
    )
    (done,) = unpack_all("spatialvid-hq", tmp_path)
    assert done.written == 1
    assert not (tmp_path / "videos/group_0001/bomb.mp4").exists()
    assert reason_of(tmp_path, "bomb") == "archive_member_too_large"


def test_a_member_that_is_too_large_or_finds_no_room(tmp_path: Path) -> None:
    tar_of(
        tmp_path / "videos/group_0001.tar.gz", {"videos/group_0001/a.mp4": b"12345", "group_0001/b.mp4": b"1"}
    )
    (done,) = unpack_all("spatialvid-hq", tmp_path, Limits(max_member_bytes=4))
    assert (done.written, [m.reason for m in done.problems]) == (1, ["archive_member_too_large"])
    (done,) = unpack_all("spatialvid-hq", tmp_path, Limits(free_bytes=1 << 62))
    assert {m.reason for m in done.problems} == {"archive_member_too_large"}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (tarfile.GNUTYPE_LONGNAME, "a name or header of 400000000 bytes"),
        (tarfile.XHDTYPE, "a name or header of 400000000 bytes"),
        (tarfile.GNUTYPE_SPARSE, "sparse files in a tar are not read"),
        (tarfile.REGTYPE, "sparse files in a tar are not read"),
    ],
)
def test_headers_of_a_tar_that_unfold_are_refused(tmp_path: Path, kind: bytes, message: str) -> None:
    """A name of a gigabyte takes a megabyte in gzip, and a map of holes that never ends takes hours."""
    bomb = tarfile.TarInfo("videos/x.mp4")
    bomb.type, bomb.size = kind, 400_000_000
    path = tar_of(tmp_path / "videos/group_0001.tar.gz", {"videos/group_0001/0a00-11.mp4": b"v"}, mode="w")
    content = bytearray(path.read_bytes()[:1024])
    if kind == tarfile.REGTYPE:
        bomb.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
        content += bomb.tobuf(tarfile.PAX_FORMAT)
    else:
        content += bomb.tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(gzip.compress(bytes(content) + b"1" * (8 << 20)))
    (done,) = unpack_all("spatialvid-hq", tmp_path)
    assert done.written == 1
    assert done.damage is not None
    assert message in done.damage
    plain = tmp_path / "x.tar"
    plain.write_bytes(bytes(content[1024:]) + bytes(4096))
    with pytest.raises(ValueError, match=message):
        list(read_webdataset(plain))


def test_members_that_lie_over_each_other_are_no_more_than_their_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "_BOMB_FROM", 1 << 16)
    path = tmp_path / "videos/group_0001.tar.gz"
    tar_of(path, {f"videos/group_0001/{i:04x}-11.mp4": bytes(1 << 15) for i in range(200)})
    (done,) = unpack_all("spatialvid-hq", tmp_path)
    assert done.bytes <= max(1 << 16, 200 * path.stat().st_size)
    assert {m.reason for m in done.problems} == {"archive_member_too_large"}
    assert "over 200 times its size" in done.problems[-1].detail


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_archive_keeps_what_came_before(tmp_path: Path, share: float) -> None:
    noise = random.Random(0)
    members = {f"videos/group_0001/{i:03d}.mp4": noise.randbytes(20_000) for i in range(20)}
    path = tar_of(tmp_path / "videos/group_0001.tar.gz", members)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    (done,) = unpack_all("spatialvid-hq", tmp_path)
    assert done.damage
    assert 0 < done.written < 20
    for name in list(members)[: done.written]:
        assert (tmp_path / name).read_bytes() == members[name]
    assert not list(tmp_path.rglob("*.part"))
    if done.problems:
        cut_off = Path(known(done.problems[0].place)).stem
        assert reason_of(tmp_path, cut_off) == "archive_damaged"
    assert not ledger_path(tmp_path, path).is_file()  # not done
    path.write_bytes(whole)
    (done,) = unpack_all("spatialvid-hq", tmp_path)
    assert (done.written, done.damage) == (20, None)
    assert ledger_path(tmp_path, path).is_file()
    clips = list(release_clips("spatialvid-hq", Release(root=tmp_path, source="test")))
    assert len(clips) == 20
    assert all(clip.problem is None for clip in clips)


def test_one_damaged_member_of_a_zip_costs_its_own_clip(tmp_path: Path) -> None:
    path = tmp_path / "sekai-game-drone.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("a", "b"):
            archive.writestr(f"sekai-game-drone/{name}.mp4", name.encode() * 1000)
    content = bytearray(path.read_bytes())
    at = content.index(b"a" * 100)
    content[at + 50] ^= 1
    path.write_bytes(content)
    (done,) = unpack_all("sekai-game", tmp_path)
    assert (done.written, [m.reason for m in done.problems]) == (1, ["archive_damaged"])
    clips = {
        clip.clip_id: clip for clip in release_clips("sekai-game", Release(root=tmp_path, source="test"))
    }
    assert clips["b"].problem is None
    assert known(clips["a"].problem)[0] == "archive_damaged"


def test_what_is_no_archive_says_so(tmp_path: Path) -> None:
    path = tmp_path / "sekai-game-drone.zip"
    path.write_bytes(b"<html>404</html>")
    (done,) = unpack_all("sekai-game", tmp_path)
    assert "damaged or incomplete" in known(done.damage)


@pytest.mark.slow
def test_many_members_in_one_pass_and_constant_memory(tmp_path: Path) -> None:
    """Of 64 KiB each: together twice what the process may grow by."""
    noise = random.Random(0)
    names = [f"videos/group_0001/{i:05d}.mp4" for i in range(1200)]
    noise.shuffle(names)
    content = 64 * noise.randbytes(1024)
    tar_of(tmp_path / "videos/group_0001.tar.gz", dict.fromkeys(names, content))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (done,) = unpack_all("spatialvid-hq", tmp_path)
    assert done.written == 1200
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 40_000, f"{grown_kib} KiB"


@pytest.mark.parametrize("one_by_one", [True, False])
def test_an_archive_is_done_once_its_files_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_by_one: bool
) -> None:
    """Many together, where the system can; and all of them before the ledger says so."""
    monkeypatch.setattr(archives, "_FLUSHED_TOGETHER", 8)
    names = [f"SpatialVID/videos/group_0001/{i}.mp4" for i in range(20)]
    tar_of(tmp_path / "videos/group_0001.tar.gz", {name: b"v" for name in names})
    flushed: set[int] = set()
    fsync, write, whole = os.fsync, archives.write_atomically, archives._file_system_flushed

    def seen(descriptor: int) -> None:
        flushed.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def together(folder: Path) -> bool:
        if one_by_one or not whole(folder):
            return False
        flushed.update(p.stat().st_ino for p in (*folder.iterdir(), folder))
        return True

    def told(path: Path, content: bytes) -> None:
        folder = tmp_path / "videos/group_0001"
        assert {p.stat().st_ino for p in (*folder.iterdir(), folder)} <= flushed
        write(path, content)

    monkeypatch.setattr(os, "fsync", seen)
    monkeypatch.setattr(archives, "_file_system_flushed", together)
    monkeypatch.setattr(archives, "write_atomically", told)
    (done,) = unpack_all("spatialvid-hq", tmp_path)
    assert (done.written, done.unflushed) == (20, [])
    assert ledger_path(tmp_path, tmp_path / "videos/group_0001.tar.gz").is_file()
