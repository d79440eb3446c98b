"""A stranger's dataset reads and writes nothing outside, runs nothing, and takes no more room than its size allows."""

from __future__ import annotations

import io
import json
import os
import resource
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import theodolite.dataset
from theodolite.annotate.sources.clip import ClipRef
from theodolite.annotate.sources.entries import IndexSource
from theodolite.annotate.sources.read import read_clips
from theodolite.dataset.card import dataset_card
from theodolite.dataset.compact import compact
from theodolite.dataset.escape import for_line, for_markdown, for_terminal
from theodolite.dataset.evaluation.tables import format_table
from theodolite.dataset.export import export_dataset
from theodolite.dataset.formats.base import camera_clip
from theodolite.dataset.formats.lerobot import read_lerobot, write_lerobot
from theodolite.dataset.formats.sana import read_sana_zip, write_sana_zip
from theodolite.dataset.formats.webdataset import read_webdataset
from theodolite.dataset.index import refresh_index, write_index
from theodolite.dataset.inputs import Archive, InputError, parse_json, parse_yaml, read_csv, read_npy
from theodolite.dataset.limits import FREE_BYTES, MAX_NAME_LENGTH
from theodolite.dataset.media.container import holds_video
from theodolite.dataset.media.errors import MediaError
from theodolite.dataset.media.images import read_image
from theodolite.dataset.media.read import image_paths, iterate_frames, read_frames
from theodolite.dataset.media.video import open_video
from theodolite.dataset.media.write import VideoWriter
from theodolite.dataset.names import below, fill_pattern, is_name
from theodolite.dataset.parquet import read_table
from theodolite.dataset.publish import stage_publication
from theodolite.dataset.reading import open_dataset
from theodolite.dataset.report.inspect import inspect_text
from theodolite.dataset.report.pictures import pictures_from_media
from theodolite.dataset.report.write import write_report
from theodolite.dataset.schema import COLUMNS, SCHEMA_VERSION
from theodolite.dataset.store import list_parts, write_table
from theodolite.dataset.validate import validate_dataset

ESCAPE = "\x1b]0;owned\x07\x1b[2J"


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """A private video beside the folder of media."""
    (tmp_path / "media").mkdir()
    path = tmp_path / "private.mp4"
    with VideoWriter(path, width=64, height=32, fps=16) as writer:
        for i in range(40):
            writer.write(np.full((32, 64, 3), 5 * i, np.uint8))
    return path


def pointers(tmp_path: Path, video: Path) -> list[str]:
    """Every way to point at the private video."""
    media = tmp_path / "media"
    (media / "link.mp4").symlink_to(video)
    (media / "up").symlink_to(tmp_path)
    return [
        str(video),
        "../private.mp4",
        "a/../../private.mp4",
        "link.mp4",
        "up/private.mp4",
        "..\\private.mp4",
    ]


def test_media_pointers_stay_below_their_root(tmp_path, video, make_row, make_dataset) -> None:
    media = tmp_path / "media"
    for pointer in pointers(tmp_path, video):
        row = make_row(0, media=pointer, frame_index=np.arange(33), height=32, width=64)
        with pytest.raises(ValueError, match="clip clip_0000: media"):
            next(iter(iterate_frames(row, media)))
        with pytest.raises(ValueError, match="clip clip_0000: media"):
            image_paths(replace(row, media_kind="images"), media)
        assert pictures_from_media(media)(row, [0]) == {}
        out = make_dataset(tmp_path / f"d{zlib.crc32(pointer.encode())}", {"a": [row]})
        write_report(out, tmp_path / "r.html", pictures=pictures_from_media(media))
        assert "data:image/jpeg" not in (tmp_path / "r.html").read_text()
        assert "clip_0000" in inspect_text(out, clip_id="clip_0000", media_root=media)
        with pytest.raises(ValueError, match=r"media|upwards"):
            stage_publication(out, tmp_path / "pub", media_root=media)
        assert not (tmp_path / "pub").exists()
    inside = make_row(1, media="sub/ok.mp4", frame_index=np.arange(33), height=32, width=64)
    (media / "sub").mkdir()
    os.link(video, media / "sub" / "ok.mp4")
    assert len(read_frames(inside, media, positions=[0, 3])) == 2
    (media / "sub" / "again.mp4").symlink_to("ok.mp4")  # a link that stays inside
    assert below(media, "sub/again.mp4").is_file()
    with pytest.raises(ValueError, match="fetch it first"):
        next(iter(iterate_frames(replace(inside, media="file:///etc/passwd"), media)))


def test_published_pointers_say_nothing_of_this_machine(tmp_path, make_row, make_dataset) -> None:
    rows = [
        make_row(0, media="file:///private/secret.mp4"),
        make_row(1, media="https://me:password@example.org/a.mp4"),
        make_row(2, media="https://example.org/a.mp4"),
    ]
    stage_publication(make_dataset(tmp_path / "d", {"a": rows}), tmp_path / "pub")
    found = theodolite.dataset.open(tmp_path / "pub").to_table(["media"])["media"].to_pylist()
    assert found == ["demo:original 0.mp4", "demo:original 1.mp4", "https://example.org/a.mp4"]


def test_playlists_and_pipes_are_no_video(tmp_path, video) -> None:
    """FFmpeg follows what a playlist names, and waits for a pipe that nobody fills."""
    (tmp_path / "hls.mp4").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{video}\n#EXT-X-ENDLIST\n"
    )
    (tmp_path / "concat.mp4").write_text("ffconcat version 1.0\nfile private.mp4\n")
    os.mkfifo(tmp_path / "pipe.mp4")
    for name in ("hls.mp4", "concat.mp4", "pipe.mp4"):
        start = time.perf_counter()
        with pytest.raises(MediaError, match=name) as caught:
            open_video("c", tmp_path / name)
        assert caught.value.reason == "unreadable_video"
        assert not holds_video(tmp_path / name)
        assert time.perf_counter() - start < 5
    assert open_video("c", video).height == 32


BAD_NAMES = ["../../x", "/etc/x", "a/b", "a.b", "", "a b", "\x1b[2J", "a\n", "x" * (MAX_NAME_LENGTH + 1), "ü"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_one_rule_for_clip_ids(tmp_path, name, make_row) -> None:
    """Where clips are made, by whatever reader."""
    clip = camera_clip(make_row(0, frames=5))
    assert not is_name(name)
    for make in (
        lambda: replace(clip, name=name),
        lambda: make_row(0, clip_id=name),
        lambda: make_row(0, source=name),
        lambda: ClipRef(clip_id=name, source="s", original_id="o", media_kind="video", media_path=Path("x")),
    ):
        with pytest.raises(ValueError, match=r"at most 120"):
            make()
    (tmp_path / "i.json").write_text(json.dumps({"clips": [{"clip_id": name, "media_path": "a.mp4"}]}))
    with pytest.raises(ValueError, match="entry 1"):
        read_clips(IndexSource(kind="index", name="s", index=tmp_path / "i.json"))


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "x" * 300])
def test_archives_bring_no_other_ids(tmp_path, name, make_row) -> None:
    clip = camera_clip(make_row(0, frames=5))
    stand_in = replace(clip, name="good")
    (zip_path, camera, *_rest) = write_sana_zip([stand_in], tmp_path / "s.zip")
    with zipfile.ZipFile(zip_path) as archive:
        content = archive.read("good.json")
    with zipfile.ZipFile(zip_path, "w") as archive:
        archive.writestr(f"{name}.json", content)
    with np.load(camera) as arrays:
        found: dict[str, Any] = dict(arrays) | {"ids": np.array([name])}
    np.savez(camera, **found)
    with pytest.raises(ValueError, match=r"s\.zip"):
        read_sana_zip(zip_path)
    write_lerobot([stand_in], tmp_path / "robot", fps=16)
    (episodes,) = (tmp_path / "robot" / "meta" / "episodes").rglob("*.parquet")
    table = pq.read_table(episodes)
    named = table.set_column(table.schema.get_field_index("clip_id"), "clip_id", pa.array([name]))
    pq.write_table(named, episodes)
    with pytest.raises(ValueError, match="robot"):
        read_lerobot(tmp_path / "robot")


def test_an_id_that_is_too_long_stops_an_export_before_it_begins(tmp_path, make_row, make_dataset) -> None:
    out = make_dataset(tmp_path / "d", {"a": [make_row(0), make_row(1)]})
    (part,) = list_parts(out)
    table = pq.ParquetFile(part).read()
    ids = pa.array(["clip_0000", "x" * 130])
    write_table(
        table.set_column(table.schema.get_field_index("clip_id"), table.schema.field("clip_id"), ids),
        part,
        row_group_size=10,
    )
    for style in ("colmap", "tum", "sana-zip", "webdataset", "huggingface"):
        with pytest.raises(ValueError, match="at most 120"):
            export_dataset(out, tmp_path / "e", format=style)
        assert not (tmp_path / "e").exists()
    assert [v.rule for v in validate_dataset(out)[1]] == ["clip_id_characters"]


def test_everybody_sees_the_same_parts(tmp_path, make_row, make_dataset) -> None:
    out = make_dataset(tmp_path / "d", {"a": [make_row(0)]})
    evil = make_dataset(tmp_path / "e", {"a": [make_row(1, camera_to_world=np.zeros((33, 4, 4)))]})
    for place in ("evil.parquet", "demo/evil.parquet", "demo/deeper/part-x.parquet"):
        target = out / "data" / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(list_parts(evil)[0].read_bytes())
    write_index(out)
    assert theodolite.dataset.open(out).counts("clip_id") == {("clip_0000",): 1}
    assert [row.clip_id for row in theodolite.dataset.open(out).rows()] == ["clip_0000"]
    export_dataset(out, tmp_path / "x", format="tum")
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["clip_0000.tum"]
    num_rows, violations = validate_dataset(out)
    assert num_rows == 1
    assert sorted(v.part for v in violations) == [
        "data/demo/deeper/part-x.parquet",
        "data/demo/evil.parquet",
        "data/evil.parquet",
    ]
    assert {v.rule for v in violations} == {"parts_only"}


# --- text -----------------------------------------------------------------------------------------


def test_text_is_escaped_for_where_it_goes(tmp_path, make_rejected, make_row, make_dataset) -> None:
    html = "<script>alert(1)</script> ![x](https://evil.example/x.png) [l](javascript:x) | **b** `c` @you"
    bad = make_rejected(
        1,
        reasons=("unreadable_video",),
        reason_details=(f"{ESCAPE}\rfine\u202e {html}",),
        original_id=f"{ESCAPE}{html}",
        media=f"a{ESCAPE}.mp4",
        data_licence="CC0-1.0",
        package_version=html,
    )
    out = make_dataset(tmp_path / "d", {"a": [make_row(0), bad]})
    for text in (inspect_text(out), inspect_text(out, clip_id="clip_0001", media_root=tmp_path)):
        assert not {"\x1b", "\x07", "\r", "\u202e"} & set(text)
    card = dataset_card(open_dataset(out), name=f"My <b>{html}")
    assert "<script" not in card
    assert "](https://evil" not in card
    assert "[l](javascript" not in card
    assert "&lt;script&gt;" in card
    write_report(out, tmp_path / "r.html")
    assert "<script>alert" not in (tmp_path / "r.html").read_text()
    assert "<script" not in format_table(["clip"], [[html]], style="markdown")


def test_escapes() -> None:
    assert for_terminal(f"a\tb\n{ESCAPE}") == "a\tb\n\\x1b]0;owned\\x07\\x1b[2J"
    assert for_line("a\nb\u2028\x9b\u200b\u202e") == "a\\nb\\u2028\\x9b\\u200b\\u202e"
    assert for_terminal("Straße 東京 –") == "Straße 東京 –"
    assert for_markdown("a_b 1.5 (c)") == "a_b 1.5 (c)"
    assert for_markdown("<a|b>\n#") == "&lt;a\\|b&gt;\\\\n\\#"


@pytest.mark.slow
def test_the_command_lets_nothing_through_to_the_terminal(tmp_path) -> None:
    from theodolite.recipes.cli import app
    from typer.testing import CliRunner

    runner = CliRunner()
    for arguments in (
        ["validate", str(tmp_path / f"no{ESCAPE}")],
        ["annotate", "rgbd", "--out", str(tmp_path / "o"), "--set", f"a{ESCAPE}=1"],
        ["inspect", str(tmp_path / f"no{ESCAPE}")],
    ):
        done = runner.invoke(app, arguments)
        assert done.exit_code == 2
        assert "\x1b" not in done.output
        assert "\\x1b" in done.output


# --- room and time --------------------------------------------------------------------------------


@pytest.fixture
def frugal() -> Any:
    """Fails if the test makes this process grow by more than half a gigabyte, or takes ten seconds of processor time
    (making a bomb takes some)."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 19
    assert time.process_time() - start < 10


def repeated(count: int) -> bytes:
    """Parquet with a list of `count` equal floats, of some kilobytes: written small, with what says how many enlarged
    nowhere, so made of many row groups that share nothing but their smallness."""
    values = pa.array(np.zeros(1 << 22, np.float32))
    column = pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)
    sink = pa.BufferOutputStream()
    others = {c.name: pa.nulls(1, c.type) for c in COLUMNS if not c.nullable and c.name != "clip_id"}
    table = pa.table(
        {"clip_id": ["a"], "x": column} | others, metadata={"theodolite.schema_version": str(SCHEMA_VERSION)}
    )
    with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        for _ in range(count >> 22):
            writer.write_table(table)
    return sink.getvalue().to_pybytes()


@pytest.mark.slow
def test_a_part_that_unfolds_is_refused_before_it_does(tmp_path, frugal, make_row, make_dataset) -> None:
    bomb = repeated(5 << 24)  # a third of a gigabyte
    assert len(bomb) < 400_000
    out = make_dataset(tmp_path / "d", {"a": [make_row(0)]})
    for path in (out / "data" / "demo" / "part-b.parquet", tmp_path / "x.parquet"):
        path.write_bytes(bomb)
    for read in (
        lambda: read_table(tmp_path / "x.parquet"),
        lambda: theodolite.dataset.open(out),
        lambda: write_index(out),
    ):
        with pytest.raises(InputError, match=r"parquet: row group \d+, column x.*would become"):
            read()
    assert [v.rule for v in validate_dataset(out)[1]] == ["part_readable"]


def test_a_footer_that_lies_about_its_pages_is_refused(tmp_path, frugal) -> None:
    """Whole pages, and a footer that says they hold little: decoders follow the pages."""
    content = bytearray(repeated(1 << 22))
    metadata = pq.read_metadata(pa.BufferReader(bytes(content)))
    footer = len(content) - 8 - metadata.serialized_size
    groups = [metadata.row_group(g).column(1) for g in range(metadata.num_row_groups)]
    for true in {c.num_values for c in groups} | {c.total_uncompressed_size for c in groups}:
        encoded = varint(2 * true)
        small = bytes([18 | 128, *[128] * (len(encoded) - 2), 0])  # nine, as long as the true number
        assert content.count(encoded, footer)
        content[footer:] = content[footer:].replace(encoded, small)
    path = tmp_path / "x.parquet"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"its pages hold \d+ values in \d+ bytes, the footer says 9 in 9"):
        read_table(path)
    clips = theodolite.dataset.open(path)
    for read in (
        lambda: clips.arrow,
        lambda: clips.to_table(["x"]),
        lambda: clips.where(pc.field("x").is_valid()).to_table(["clip_id"]),
        lambda: len(clips.where(pc.field("x").is_valid())),
        lambda: next(clips.batches(["x"])),
        lambda: clips.row("a"),
    ):
        with pytest.raises(InputError, match=r"its pages hold \d+ values"):
            read()


@pytest.mark.slow
@pytest.mark.parametrize("nested", [False, True])
def test_a_dictionary_of_long_texts_is_refused_before_it_unfolds(tmp_path, frugal, nested) -> None:
    """A kilobyte: one text, and two hundred thousand times its number."""
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(200_000, np.int32)), pa.array(["x" * 100_000]))
    values: pa.Array = (
        pa.ListArray.from_arrays(pa.array(range(200_001), pa.int32()), text) if nested else text
    )
    path = tmp_path / "x.parquet"
    options = {"compression": "zstd", "dictionary_pagesize_limit": 1 << 30, "write_statistics": False}
    # Without Arrow's own schema it is read as text, not as a dictionary.
    pq.write_table(pa.table({"error": values}), path, store_schema=False, **options)
    with pytest.raises(InputError, match=r"row group 0, column error.*would become 19073 MiB"):
        read_table(path)
    short = pa.array([f"text {i % 7}" for i in range(20_000)])
    pq.write_table(pa.table({"error": short, "clip_id": [f"c{i}" for i in range(20_000)]}), path)
    assert read_table(path)["error"].equals(pa.chunked_array([short]))
    fixed = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(10_000, np.int32)), pa.array([bytes(50_000)], pa.binary(50_000))
    )
    pq.write_table(pa.table({"error": fixed}), path, store_schema=False, **options)
    with pytest.raises(InputError, match=r"column error.*would become 477 MiB"):
        read_table(path)


@pytest.mark.slow
def test_what_texts_unfold_into_is_counted_without_pandas(tmp_path) -> None:
    """Arrow loads it to give numbers to numpy, which took `inspect` of a large dataset half a second."""
    names = pa.DictionaryArray.from_arrays(
        pa.array(np.ones(50_000, np.int32)), pa.array(["x" * 100_000, "a"])
    )
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"error": names}), path, store_schema=False, dictionary_pagesize_limit=1 << 30)
    code = """
import sys
from theodolite.dataset import parquet
counted = parquet._unfolded_bytes
parquet._unfolded_bytes = lambda values: print(counted(values)) or counted(values)
parquet.read_table(sys.argv[1])
print("pandas" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["50000", "False"]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html><title>404</title>", "a web page"),
        (b"", "empty"),
        (bytes(500), "zeros"),
    ],
)
def test_what_came_instead_of_a_file_is_said(tmp_path, content, what) -> None:
    for name, read in (
        ("x.parquet", read_table),
        ("x.tar", lambda path: list(read_webdataset(path))),
        ("x.mp4", lambda path: open_video("c", path)),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match=what):
            read(path)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


@pytest.mark.slow
def test_archives_and_arrays_are_judged_before_they_unfold(tmp_path, frugal) -> None:
    huge = FREE_BYTES + (1 << 26)
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("z.npy", "w") as member,
    ):
        header = np.lib.format
        header.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": (huge,)})
        for _ in range(huge >> 24):
            member.write(bytes(1 << 24))
    assert (tmp_path / "a.npz").stat().st_size < 1 << 20
    with (
        Archive(tmp_path / "a.npz") as archive,
        pytest.raises(InputError, match=r"a\.npz: z: .*would become"),
    ):
        archive.array("z")
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "<f8", "fortran_order": False, "shape": (10**7, 10**6)}
    )
    (tmp_path / "a.npy").write_bytes(stream.getvalue())
    with pytest.raises(InputError, match=r"a\.npy: .*promises"):
        read_npy(tmp_path / "a.npy")


def png(width: int, height: int) -> bytes:
    """A grey PNG of zeros."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer = zlib.compressobj(6)
    body = b"".join(packer.compress(bytes(width // 8 + 1) * 64) for _ in range(height // 64)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_pictures_are_judged_by_their_headers(tmp_path, frugal) -> None:
    (tmp_path / "a.png").write_bytes(png(24_000, 24_000))
    assert (tmp_path / "a.png").stat().st_size < 1 << 20
    with pytest.raises(MediaError, match=r"a\.png: is 24000x24000") as caught:
        read_image("c", tmp_path / "a.png")
    assert caught.value.reason == "image_too_large"
    (tmp_path / "c.png").write_bytes(png(64, 4096))  # small, but not as a strip of one width for all
    with pytest.raises(
        MediaError, match=r"c\.png: is 64x4096, one side at most 50 times the other"
    ) as caught:
        read_image("c", tmp_path / "c.png")
    assert caught.value.reason == "image_too_large"
    (tmp_path / "b.png").write_bytes(b"P6 60000 60000 255\n" + bytes(100))  # another format under its name
    with pytest.raises(MediaError, match=r"b\.png: no readable image"):
        read_image("c", tmp_path / "b.png")


def test_sizes_in_rows_are_judged(make_row, tmp_path) -> None:
    row = make_row(0, height=90_000, width=90_000)
    with pytest.raises(ValueError, match="clip clip_0000: its stored size is 90000x90000"):
        read_frames(row, tmp_path)


def test_patterns_of_others_are_no_format_strings(tmp_path, frugal, make_row) -> None:
    assert fill_pattern("a{frame}_{frame:06d}_{frame:3d}", frame=7) == "a7_000007_  7"
    for pattern in (
        "{frame:01000000000d}",
        "{frame.__class__}",
        "{frame!r}",
        "{0}",
        "{}",
        "{frame:f}",
        "{other}",
        "{",
    ):
        with pytest.raises(ValueError, match="pattern"):
            fill_pattern(pattern, frame=7)
    write_lerobot([camera_clip(make_row(0, frames=5))], tmp_path / "robot", fps=16)
    info = tmp_path / "robot" / "meta" / "info.json"
    content = json.loads(info.read_text())
    for pattern in (
        "{chunk_index:01000000000d}",
        "../../{file_index}",
        "/etc/passwd",
        "{chunk_index.__class__}",
    ):
        info.write_text(json.dumps(content | {"data_path": pattern}))
        with pytest.raises(ValueError, match="robot"):
            read_lerobot(tmp_path / "robot")


def test_yaml_that_unfolds_or_is_odd(tmp_path, frugal) -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
    )
    merges = "a0: &a0 {x: 1}\n" + "".join(
        f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12)
    )
    for text, words in (
        (bomb, "aliases unfold"),
        (merges, "aliases unfold"),
        ("a: &a [*a]", "holds itself"),
        ("[" * 100_000, "f.yaml"),
        ("[" * 80 + "]" * 80, "nested deeper"),
        ("- " * 100_000, "nested deeper"),
        ("a: !!python/object/apply:os.system [ls]", r"line 1"),
        ("x: 1\na: !!binary aGk=", r"line 2"),
        ("? [a, b]\n: 1", "key must be a single value"),
        ("a: 1\n\tb: 2", "line 2"),
        ("a: !!int 99" + "9" * 5000, "f.yaml"),
        ("a: 1\n---\nb: 2", "line 2"),
        ("a: \x00", "f.yaml"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            parse_yaml(text, "f.yaml")
        assert str(caught.value).startswith("f.yaml: ")
    assert parse_yaml("d: 2026-13-45\ne: 2026-01-01", "f") == ({"d": "2026-13-45", "e": "2026-01-01"}, [])
    assert parse_yaml("b: &b {x: 1}\nc: {<<: *b, y: 2}\nc: 3", "f")[1] == ["c: given twice (lines 2 and 3)"]
    assert parse_yaml("b: &b {x: 1}\nc: {<<: *b, y: 2}", "f")[0]["c"] == {"x": 1, "y": 2}


def test_json_and_csv(tmp_path, frugal) -> None:
    for text in ("[" * 100_000, "{" * 10, "[" * 90 + "]" * 90, "9" * 5000, "\ud800"):
        with pytest.raises(InputError, match=r"f\.json: "):
            parse_json(text, "f.json")
    path = tmp_path / "a.csv"
    for text, words in (
        ("a,a\n1,2", "occurs twice"),
        ("a,b\n1,2\n1", r"a\.csv:3: "),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=words):
            read_csv(path)


def test_numbers_without_end_and_tables_of_many_columns(tmp_path, frugal) -> None:
    for text in ("a: 0x" + "f" * 100_000, "a: " + ":".join(["59"] * 50_000), "a: " + "9" * 100_000):
        with pytest.raises(InputError, match=r"x\.yaml: .*digits"):
            parse_yaml(text, "x.yaml")
    assert parse_yaml("a: 0xff\nb: 1:30\nc: -12", "x.yaml")[0] == {"a": 255, "b": 90, "c": -12}
    wide = [f"c{i}" for i in range(60_000)]
    (tmp_path / "x.csv").write_text(",".join([*wide, "c7"]) + "\n")
    with pytest.raises(InputError, match=r"x\.csv:1: column 'c7' occurs twice"):
        read_csv(tmp_path / "x.csv")


def test_tars_are_not_unpacked(tmp_path, frugal) -> None:
    import gzip

    (tmp_path / "a.tar").write_bytes(gzip.compress(bytes(1 << 26)))
    with pytest.raises(ValueError, match=r"a\.tar: not a readable tar"):
        list(read_webdataset(tmp_path / "a.tar"))


@pytest.mark.parametrize("name", ["data/demo/part-000000-x.parquet", "data/other.parquet"])
def test_a_pipe_among_the_parts_is_not_waited_for(tmp_path, name):
    (tmp_path / "data" / "demo").mkdir(parents=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=f"{name}: is no file"):
        theodolite.dataset.open(tmp_path)


@pytest.mark.parametrize("target", ["gone.parquet", "part-000001-b.parquet"])  # the link itself
def test_a_part_that_is_a_link_to_nowhere_is_named_by_all(target, tmp_path, make_row, make_dataset) -> None:
    out = make_dataset(tmp_path / "run", {"000000-a": [make_row(0, frames=4)]})
    write_index(out)
    (out / "data" / "demo" / "part-000001-b.parquet").symlink_to(target)
    for look in (theodolite.dataset.open, inspect_text, compact, refresh_index, write_index):
        with pytest.raises(InputError, match=r"data/demo/part-000001-b\.parquet"):
            look(out)
    (violation,) = validate_dataset(out)[1]
    assert "part-000001-b.parquet" in str(violation)


def test_a_pipe_in_place_of_a_shard_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "000000.tar")
    with pytest.raises(InputError, match=r"000000\.tar: is no file"):
        list(read_webdataset(tmp_path / "000000.tar"))
