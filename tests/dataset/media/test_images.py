"""Folders of images: the files that are frames, in order, shown as viewers show them."""

import os
import struct
import time
import zlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from theodolite.dataset.inputs import InputError
from theodolite.dataset.media import images, read
from theodolite.dataset.media.errors import MediaError
from theodolite.dataset.media.images import decode_image, images_in, list_images, load_image, read_image
from theodolite.dataset.media.orientation import ORIENTATIONS
from theodolite.dataset.report.pictures import pictures_from_media
from theodolite.dataset.rows import rows_from_table, rows_to_table

HEIGHT, WIDTH = 48, 64
QUARTERS = {"R": (220, 30, 30), "G": (30, 200, 30), "B": (30, 30, 220), "W": (230, 230, 230)}
SHOWN = ("RGBW", "GRWB", "WBGR", "BWRG", "RBGW", "BRWG", "WGBR", "GWRB")
"""Quarters of the picture under EXIF orientation 1 to 8 as Pillow's `exif_transpose` and browsers show it."""


def picture() -> np.ndarray:
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[: HEIGHT // 2, : WIDTH // 2], image[: HEIGHT // 2, WIDTH // 2 :] = QUARTERS["R"], QUARTERS["G"]
    image[HEIGHT // 2 :, : WIDTH // 2], image[HEIGHT // 2 :, WIDTH // 2 :] = QUARTERS["B"], QUARTERS["W"]
    return image


def quarters(image: np.ndarray) -> str:
    height, width = image.shape[:2]
    colours = np.array(list(QUARTERS.values()))
    return "".join(
        list(QUARTERS)[int(np.abs(colours - image[y * height // 4, x * width // 4]).sum(1).argmin())]
        for y, x in ((1, 1), (1, 3), (3, 1), (3, 3))
    )


def exif(value: int, order: str = "<", kind: int = 3) -> bytes:
    """A TIFF structure with a camera's name and the orientation, a SHORT as it should be or a LONG."""
    start = b"II*\0" if order == "<" else b"MM\0*"
    number = struct.pack(f"{order}{'HH' if kind == 3 else 'I'}", *((value, 0) if kind == 3 else (value,)))
    entries = struct.pack(f"{order}HHI4s", 0x010F, 2, 4, b"cam\0") + struct.pack(
        f"{order}HHI4s", 274, kind, 1, number
    )
    return start + struct.pack(f"{order}IH", 8, 2) + entries + struct.pack(f"{order}I", 0)


def encoded(suffix: str, image: np.ndarray, *options: int) -> bytes:
    ok, data = cv2.imencode(suffix, image[..., ::-1] if image.ndim == 3 else image, options)
    assert ok
    return data.tobytes()


def turned(suffix: str, value: int, order: str = "<", kind: int = 3) -> bytes:
    """The test picture as a file that asks for EXIF orientation `value`."""
    tag = exif(value, order, kind)
    if suffix == ".jpg":
        data = encoded(".jpg", picture())
        body = b"Exif\0\0" + tag
        # After JFIF's own segment, as cameras and editors leave it.
        end = 4 + struct.unpack(">H", data[4:6])[0]
        return data[:end] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[end:]
    if suffix == ".png":
        data = encoded(".png", picture())
        chunk = b"eXIf" + tag
        chunk = struct.pack(">I", len(tag)) + chunk + struct.pack(">I", zlib.crc32(chunk))
        return data[:33] + chunk + data[33:]
    if suffix == ".webp":
        data = encoded(".webp", picture(), cv2.IMWRITE_WEBP_QUALITY, 100)
        head = b"VP8X" + struct.pack("<IB3x", 10, 8)
        head += (WIDTH - 1).to_bytes(3, "little") + (HEIGHT - 1).to_bytes(3, "little")
        body = head + data[12:] + b"EXIF" + struct.pack("<I", len(tag)) + tag + b"\0" * (len(tag) % 2)
        return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body
    pixels = picture().tobytes()  # an uncompressed TIFF: nine entries, then the samples' bits, then pixels
    directory = 8 + 2 + 9 * 12 + 4
    fields = [(256, 3, 1, WIDTH), (257, 3, 1, HEIGHT), (258, 3, 3, directory), (259, 3, 1, 1), (262, 3, 1, 2)]
    fields += [(273, 4, 1, directory + 6), (274, kind, 1, value), (277, 3, 1, 3), (279, 4, 1, len(pixels))]
    entries = b"".join(
        struct.pack(f"{order}HHI", tag, kind, count)
        + (struct.pack(f"{order}HH", v, 0) if kind == 3 and count == 1 else struct.pack(f"{order}I", v))
        for tag, kind, count, v in fields
    )
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, 9)
    return start + entries + struct.pack(f"{order}I", 0) + struct.pack(f"{order}HHH", 8, 8, 8) + pixels


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize(("value", "shown"), list(enumerate(SHOWN, start=1)))
def test_all_orientations_of_photographs(tmp_path, suffix, value, shown):
    for order in "<>":
        path = tmp_path / f"a{suffix}"
        path.write_bytes(turned(suffix, value, order))
        stored, orientation = load_image("c", path)
        assert quarters(stored) == "RGBW"
        assert orientation == ORIENTATIONS[value - 1]
        assert quarters(read_image("c", path)) == shown


def test_odd_tags(tmp_path):
    path = tmp_path / "a.jpg"
    for order in "<>":
        path.write_bytes(turned(".jpg", 6, order, kind=4))
        assert quarters(read_image("c", path)) == SHOWN[5]
    for value in (0, 9, 200):  # no orientation that the standard knows: as stored
        path.write_bytes(turned(".jpg", value))
        assert quarters(read_image("c", path)) == SHOWN[0]
    whole = turned(".jpg", 6)
    at = whole.index(b"II*\0")
    path.write_bytes(whole[: at + 4] + b"\xff\xff\xff\x7f" + whole[at + 8 :])  # a directory beyond the file
    assert quarters(read_image("c", path)) == SHOWN[0]


def test_kinds_of_pixels(tmp_path):
    ramp = np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1))
    for name, image, expected in (
        ("grey.png", ramp, ramp),
        ("grey16.png", ramp.astype(np.uint16) * 257, ramp),
        ("alpha.png", np.dstack([ramp, ramp, ramp, np.full_like(ramp, 7)]), ramp),
    ):
        cv2.imwrite(str(tmp_path / name), image)
        rgb = read_image("c", tmp_path / name)
        assert (rgb.shape, rgb.dtype) == ((48, 64, 3), np.uint8)
        assert np.abs(rgb.astype(int) - expected[..., None]).max() <= 1, name


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp"])
def test_cut_and_foreign_files(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    data = encoded(suffix, noise)
    path = tmp_path / f"a{suffix}"
    for content in (data[: len(data) // 2], b"", b"<html>", data[:3]):
        path.write_bytes(content)
        if suffix == ".bmp" and len(content) > 100:
            continue  # OpenCV fills what is missing of a BMP
        with pytest.raises(MediaError, match=rf"clip c: .*a{suffix}: ") as caught:
            read_image("c", path)
        assert caught.value.reason == "unreadable_image"
    with pytest.raises(MediaError, match="No such file"):
        read_image("c", tmp_path / "none.png")


def test_a_cut_jpeg_whose_orientation_leads_nowhere_is_told():
    data = encoded(".jpg", picture())
    tag = b"Exif\0\0MM\0*\0\0\xff\xff"
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(tag) + 2) + tag + data[2:]
    assert decode_image(data, "a.jpg").shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(InputError, match=r"^a\.jpg: ends before its picture does$"):
        decode_image(data[:-300], "a.jpg")


@pytest.mark.parametrize("tagged", [False, True])
@pytest.mark.parametrize("as_stored", [False, True])
def test_a_part_that_says_more_than_the_file_holds_is_not_made_room_for(as_stored, tagged):
    data = bytearray(encoded(".png", np.zeros((HEIGHT, WIDTH, 3), np.uint8)))
    if tagged:  # with an orientation that leads nowhere
        data[33:33] = struct.pack(">I", 8) + b"eXIfMM\0*\0\0\xff\xff" + bytes(4)
    at = data.index(b"IDAT")
    for place, value in (
        (at - 4, 0x40),
        (at + 2, ord("C")),
    ):  # a gigabyte; no pixels at all, looked for beyond the end
        damaged = data[:place] + bytes([value]) + data[place + 1 :]
        with pytest.raises(InputError, match=r"^a\.png: ends before its picture does$"):
            decode_image(bytes(damaged), "a.png", as_stored=as_stored)


# --- which files ---------------------------------------------------------------------------------


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def numbered(form: str, count: int = 20) -> list[str]:
    return [form.format(i) for i in range(count)]


def test_order_and_what_is_no_image(tmp_path):
    touch(tmp_path, *numbered("IMG_{}.JPG", 12), "._IMG_3.JPG", ".hidden.jpg", "Thumbs.db", "poses.txt")
    touch(tmp_path / "images_4", "IMG_0.JPG")
    assert [p.name for p in list_images("c", tmp_path)] == numbered("IMG_{}.JPG", 12)
    assert images_in(tmp_path) == list(list_images("c", tmp_path))


@pytest.mark.parametrize(
    "forms",
    [
        ("{:06d}.jpg", "{:06d}_mask.png"),
        ("frame-{:06d}.color.png", "frame-{:06d}.depth.png"),
        ("rgb_{:04d}.png", "depth_{:04d}.png"),
        ("{:04d}.jpg", "{:04d}.png"),
        ("cam0_{:04d}.png", "cam1_{:04d}.png"),
        ("{:04d}_0.png", "{:04d}_1.png"),
        ("{:04d}_left.png", "{:04d}_right.png", "{:04d}_disp.tiff"),
    ],
)
def test_several_kinds_are_refused_or_chosen(tmp_path, forms):
    for form in forms:
        touch(tmp_path, *numbered(form))
    with pytest.raises(MediaError, match="images of several kinds") as caught:
        list_images("c", tmp_path)
    assert caught.value.reason == "mixed_images"
    assert str(tmp_path) in str(caught.value)
    # Each kind is named by a glob that chooses it and nothing else.
    globs = [g.split("' (20)")[0] for g in str(caught.value).split("several kinds: ")[1].split("'")[1::2]][
        : len(forms)
    ]
    chosen = [tuple(p.name for p in list_images("c", tmp_path, g)) for g in globs]
    assert sorted(chosen) == sorted(tuple(numbered(form)) for form in forms)


@pytest.mark.parametrize(
    ("names", "meant"),
    [
        (("{:04d}_depth.png", "{:04d}_mask.png", "{:04d}_rgb.png"), "*[0-9]_rgb.png"),
        (("{:04d}-16.png", "{:04d}-8.png", "{:04d}-colour.png"), "*[0-9]-colour.png"),
        (("{:04d}_a.png", "{:04d}_b.png"), "*[0-9]_a.png"),
        (tuple(f"{{:04d}}_{a}depth.png" for a in "abcde") + ("{:04d}_view.png",), "*[0-9]_view.png"),
    ],
)
def test_the_example_of_a_pattern_is_that_of_pictures(tmp_path, names, meant):
    for form in names:
        touch(tmp_path, *numbered(form))
    for path in tmp_path.glob("*-*.png"):  # the header tells what such names do not
        shape, kind = {"16": ((2, 2), np.uint16), "8": ((2, 2), np.uint8)}.get(
            path.stem.split("-")[1], ((2, 2, 3), np.uint8)
        )
        cv2.imwrite(str(path), np.zeros(shape, kind))
    touch(tmp_path, "cover.jpg")
    with pytest.raises(MediaError, match="images of several kinds") as caught:
        list_images("c", tmp_path)
    assert str(caught.value).endswith(f"media_pattern: {meant!r}")
    assert all(repr(form.replace("{:04d}", "*[0-9]")) in str(caught.value) for form in names)


def test_a_few_foreign_files_are_seen_too(tmp_path):
    touch(tmp_path, *numbered("{:06d}.png", 40), "overview.png")
    with pytest.raises(MediaError, match=r"'\*\[0-9\]\.png' \(40\), 'overview\.png' \(1\)"):
        list_images("c", tmp_path)
    assert len(list_images("c", tmp_path, "*[0-9].png")) == 40


@pytest.mark.parametrize(
    "names",
    [
        [f"{1305031102 + i}.{i * 33 % 1000:06d}.png" for i in range(20)],  # TUM: seconds and fractions
        ["a.png", "b.png", "c.jpg"],
        ["0001.JPG", "0002.jpg", "0003.jpeg", "0004.jpg"],
        [f"scan_3_{i:04d}.png" for i in range(20)],
        [f"20240102_{100000 + i}.jpg" for i in range(20)],
        ["one.png"],
        [f"2024-01-02_10-{i // 60:02d}-{i % 60:02d}.png" for i in range(200)],
        [f"{i / 2:.1f}.png" for i in range(40)],
    ],
)
def test_one_kind_is_not_taken_for_several(tmp_path, names):
    touch(tmp_path, *names)
    assert sorted(p.name for p in list_images("c", tmp_path)) == sorted(names)


def test_folders_without_images_say_what_there_is(tmp_path):
    with pytest.raises(MediaError, match="no such folder of images"):
        list_images("c", tmp_path / "none")
    with pytest.raises(MediaError, match=r"holds no image \(\.png"):
        list_images("c", tmp_path)
    touch(tmp_path / "images_8", "1.png")
    with pytest.raises(MediaError, match="its folder images_8 does: name that one"):
        list_images("c", tmp_path)
    touch(tmp_path, "1.HEIC", "2.heic")
    with pytest.raises(MediaError, match=r"2 \.heic are not read: convert them"):
        list_images("c", tmp_path)
    with pytest.raises(MediaError, match=r"no image matches media_pattern '\*\.tif'"):
        list_images("c", tmp_path, "*.tif")


# --- folders of many, and of strangers ------------------------------------------------------------


def test_looking_at_names_takes_time_by_their_number_alone(tmp_path):
    """Each form was looked for among all names: a hundred thousand names of fifty thousand forms took minutes."""

    def seconds(count):
        letters = str.maketrans("0123456789", "qrstuvwxyz")
        names = [Path(f"{i // 2}".translate(letters) + f"_{i % 2}.png") for i in range(count)]
        start = time.process_time()
        assert len(images._kinds(names)) == count // 2
        return time.process_time() - start

    assert seconds(24_000) < 12 * max(seconds(4000), 0.01)


def image_row(make_row, folder, count):
    """A row whose frames are the first images of a folder of 24x16 pictures."""
    numbers = np.arange(count, dtype=np.int32)
    row = replace(make_row(0, frames=count), media_kind="images", frame_index=numbers, height=16, width=24)
    return replace(row, media=folder.name)


def test_a_folder_is_listed_once_for_many_pictures_and_anew_where_it_changed(tmp_path, make_row, monkeypatch):
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(5):
        cv2.imwrite(str(folder / f"{i}.png"), np.full((16, 24, 3), 10 * i, np.uint8))
    listed = []
    whole = read.list_images
    monkeypatch.setattr(read, "list_images", lambda *a: listed.append(a) or whole(*a))
    row = image_row(make_row, folder, 5)
    os.utime(folder, ns=(1, 1))
    for i in (3, 0, 4):
        assert read.read_frames(row, tmp_path, positions=[i]).mean() == 10 * i
    assert len(listed) == 1
    cv2.imwrite(str(folder / "00.png"), np.full((16, 24, 3), 99, np.uint8))  # its time of change is now
    for _ in range(2):
        assert read.read_frames(row, tmp_path, positions=[1]).mean() == 99
    assert len(listed) == 3, "what changed a moment ago may change again within a tick of the clock"


def test_images_that_are_links_stay_below_the_root(tmp_path, make_row):
    """A stranger's folder of links does not show, publish or learn from pictures of this machine."""
    private = tmp_path / "private.png"
    cv2.imwrite(str(private), np.full((16, 24, 3), 200, np.uint8))
    root = tmp_path / "root"
    folder = root / "many"
    folder.mkdir(parents=True)
    cv2.imwrite(str(root / "own.png"), np.full((16, 24, 3), 50, np.uint8))
    (folder / "0.png").symlink_to(root / "own.png")
    (folder / "1.png").symlink_to(private)
    row = image_row(make_row, folder, 2)
    assert read.read_frames(row, root, positions=[0]).mean() == 50
    for reading in (lambda: read.read_frames(row, root), lambda: read.image_paths(row, root)):
        with pytest.raises(ValueError, match=r"1\.png is a link that leads out of"):
            reading()
    shown = pictures_from_media(root)(row, [0, 1])
    assert list(shown) == [0]


def test_names_that_are_no_utf_8_are_frames_and_can_be_told_of(tmp_path, make_row, make_rejected):
    folder = tmp_path / "many"
    folder.mkdir()
    good = cv2.imencode(".png", np.full((16, 24, 3), 70, np.uint8))[1].tobytes()
    for i in range(3):
        with open(os.fsencode(folder) + b"/im\xfe_%d.png" % i, "wb") as stream:
            stream.write(good if i < 2 else good[:-20])
    row = image_row(make_row, folder, 3)
    assert read.read_frames(row, tmp_path, positions=[0, 1]).mean() == 70
    with pytest.raises(MediaError, match="ends before its picture does") as error:
        read.read_frames(row, tmp_path)
    # The message names the file as Python does, which no table takes.
    told = replace(make_rejected(0), reasons=("unreadable_image",), reason_details=(error.value.detail,))
    (stored,) = rows_from_table(
        rows_to_table([replace(told, error=error.value.detail, captions={"a": "\ud800"})])
    )
    assert "im\\udcfe_2.png" in stored.reason_details[0]
    assert stored.error == stored.reason_details[0]
    assert stored.captions == {"a": "\\ud800"}
