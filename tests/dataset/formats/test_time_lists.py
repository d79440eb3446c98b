"""`rgb.txt` and `depth.txt` of TUM RGB-D and ETH3D SLAM."""

from pathlib import Path

import pytest
from theodolite.dataset.formats.time_lists import read_time_list

GOOD = """# color images
# file: 'rgbd_dataset_freiburg1_xyz.bag'
# timestamp filename
1305031102.175304 rgb/1305031102.175304.png
1305031102.211214 rgb/1305031102.211214.png
"""


def test_a_list_is_read_as_it_ships(tmp_path: Path) -> None:
    path = tmp_path / "rgb.txt"
    path.write_text(GOOD.replace("\n", "\r\n"))
    read = read_time_list(path)
    assert read.time_s.tolist() == [1305031102.175304, 1305031102.211214]
    assert read.names == ("rgb/1305031102.175304.png", "rgb/1305031102.211214.png")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("1305031103 rgb/a.png more", ":6: expected `time path`"),
        ("soon rgb/a.png", ":6: expected `time path`"),
        ("nan rgb/a.png", ":6: expected `time path`"),
        ("1305031102.1 rgb/a.png", "does not come after"),
        ("1305031103 ../../etc/passwd", "leads upwards"),
        ("1305031103 /etc/passwd", "is absolute"),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "rgb.txt"
    path.write_text(GOOD + line + "\n")
    with pytest.raises(ValueError, match=words) as caught:
        read_time_list(path)
    assert str(path) in str(caught.value)


def test_an_empty_list_is_none(tmp_path: Path) -> None:
    path = tmp_path / "rgb.txt"
    path.write_text("# timestamp filename\n")
    with pytest.raises(ValueError, match="lists no file"):
        read_time_list(path)
