"""One file from a server that breaks off, stalls, lies, and sends other bytes: byte-equal, or a reason."""

from __future__ import annotations

import errno
import hashlib
import io
import random
from pathlib import Path

import pytest
from theodolite.annotate.fetch.ledger import Entry, FetchError, Ledger
from theodolite.annotate.fetch.transfer import Policy, Room, download
from theodolite.annotate.fetch.web import is_plain, why

from .server import Site, serving

CONTENT = random.Random(0).randbytes(300_000)
SHA = hashlib.sha256(CONTENT).hexdigest()
QUICK = Policy(stall_s=0.4, tries=3, wait_s=0.01)


@pytest.fixture
def site(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving(Site()) as served:
        served.files["/f.bin"] = CONTENT
        yield served


def fetch(site: Site, target: Path, **known) -> int:
    return download(site.url + "/f.bin", target, policy=QUICK, **known)


@pytest.mark.parametrize("known", [{}, {"size": len(CONTENT)}, {"size": len(CONTENT), "sha256": SHA}])
@pytest.mark.parametrize(
    "faults",
    [
        [],
        ["breaks off"] * 5,
        ["stalls"],
        ["trickles"],
        ["breaks off", "no ranges"],
        ["breaks off", "wrong range"],
        ["500", "503"],
        ["429 0", "500"],
        ["breaks off", "500", "breaks off"],
    ],
    ids=", ".join,
)
def test_faults_that_pass_leave_the_right_bytes(
    site: Site, tmp_path: Path, faults: list[str], known: dict
) -> None:
    site.faults["/f.bin"] = list(faults)
    assert fetch(site, tmp_path / "a/f.bin", **known) == len(CONTENT)
    assert (tmp_path / "a/f.bin").read_bytes() == CONTENT
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["f.bin"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("404", "gone"),
        ("410", "gone"),
        ("403", "no_access"),
        ("401", "no_access"),
        ("451", "geo_blocked"),
        ("400", "refused"),
        ("429", "rate_limited"),
        ("500", "unreachable"),
        ("silent", "unreachable"),
        ("too long", "unreachable"),
        ("wrong bytes", "digest_mismatch"),
        ("too short", "size_mismatch"),
    ],
)
def test_faults_that_stay_are_reasons(site: Site, tmp_path: Path, fault: str, reason: str) -> None:
    known = {"size": len(CONTENT), "sha256": SHA} if fault != "too long" else {}
    site.always["/f.bin"] = fault
    with pytest.raises(FetchError) as caught:
        fetch(site, tmp_path / "f.bin", **known)
    assert caught.value.reason == reason
    assert not (tmp_path / "f.bin").exists()
    if reason in ("gone", "no_access", "geo_blocked", "refused"):
        assert site.requests["/f.bin"] == 1  # asking again is no help


def test_resuming_asks_for_the_rest_alone(site: Site, tmp_path: Path) -> None:
    site.faults["/f.bin"] = ["breaks off"]
    fetch(site, tmp_path / "f.bin")
    assert site.sent["/f.bin"] == len(CONTENT)
    assert site.headers["/f.bin"]["Range"] == f"bytes={len(CONTENT) // 3}-"


def test_another_run_goes_on_and_a_file_that_changed_starts_anew(site: Site, tmp_path: Path) -> None:
    part, notes = tmp_path / ".f.bin.part", tmp_path / ".f.bin.part.json"
    site.always["/f.bin"] = "500"
    site.faults["/f.bin"] = ["breaks off"]
    with pytest.raises(FetchError):
        fetch(site, tmp_path / "f.bin")
    assert part.stat().st_size == len(CONTENT) // 3
    site.always.clear()
    other = CONTENT[::-1]
    site.files["/f.bin"] = other
    fetch(site, tmp_path / "f.bin")
    assert (tmp_path / "f.bin").read_bytes() == other
    assert not part.exists()
    assert not notes.exists()


def test_bytes_without_a_note_of_what_they_are_of_are_not_gone_on_with(site: Site, tmp_path: Path) -> None:
    (tmp_path / ".f.bin.part").write_bytes(b"x" * 1000)
    fetch(site, tmp_path / "f.bin")
    assert (tmp_path / "f.bin").read_bytes() == CONTENT


def test_bytes_that_were_damaged_here_are_fetched_anew(site: Site, tmp_path: Path) -> None:
    site.always["/f.bin"] = "500"
    site.faults["/f.bin"] = ["breaks off"]
    with pytest.raises(FetchError):
        fetch(site, tmp_path / "f.bin", size=len(CONTENT), sha256=SHA)
    site.always.clear()
    part = tmp_path / ".f.bin.part"
    part.write_bytes(b"?" * part.stat().st_size)
    fetch(site, tmp_path / "f.bin", size=len(CONTENT), sha256=SHA)
    assert (tmp_path / "f.bin").read_bytes() == CONTENT


def test_more_than_is_listed_is_not_written(site: Site, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="size_mismatch"):
        fetch(site, tmp_path / "f.bin", size=1000)
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= 1000


def test_no_room_ends_it_in_the_middle(site: Site, tmp_path: Path) -> None:
    left = [100_000]

    def take(count: int) -> bool:
        left[0] -= count
        return left[0] >= 0

    with pytest.raises(FetchError, match="no_room"):
        fetch(site, tmp_path / "f.bin", room=Room(take=take))
    assert not (tmp_path / "f.bin").exists()
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= 100_100


def test_a_full_disk_is_no_fault_of_the_server(site: Site, tmp_path: Path, monkeypatch) -> None:
    class Full(io.BytesIO):
        def write(self, _content) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    opened = Path.open

    def fake(self, mode="r", *rest, **named):
        return Full() if mode == "ab" and self.name.endswith(".part") else opened(self, mode, *rest, **named)

    monkeypatch.setattr(Path, "open", fake)
    with pytest.raises(FetchError, match="no_room"):
        fetch(site, tmp_path / "f.bin")
    assert site.requests["/f.bin"] == 1


def test_a_token_stays_with_its_host(site: Site, tmp_path: Path) -> None:
    with serving(Site()) as other:
        other.files["/cdn.bin"] = CONTENT
        site.redirects["/f.bin"] = other.url + "/cdn.bin"
        fetch(site, tmp_path / "f.bin", headers={"authorization": "Bearer secret"})
        assert site.headers["/f.bin"]["Authorization"] == "Bearer secret"
        assert "Authorization" not in other.headers["/cdn.bin"]
    site.redirects["/f.bin"] = "file:///etc/passwd"
    with pytest.raises(FetchError, match="refused"):
        fetch(site, tmp_path / "g.bin")


def test_a_server_that_asks_to_wait_is_waited_for(site: Site, tmp_path: Path) -> None:
    site.faults["/f.bin"] = ["429 7"]
    waits: list[float] = []
    download(site.url + "/f.bin", tmp_path / "f.bin", policy=QUICK, sleep=waits.append)
    assert waits == [7.0]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("ERROR: [youtube] abc: Private video. Sign in if you've been granted access", "private"),
        ("ERROR: [youtube] abc: Video unavailable. This video has been removed by the uploader", "gone"),
        (
            "ERROR: [youtube] abc: Video unavailable. This video is no longer available because the account",
            "gone",
        ),
        (
            "ERROR: [youtube] abc: The uploader has not made this video available in your country",
            "geo_blocked",
        ),
        ("ERROR: [youtube] abc: Sign in to confirm you're not a bot", "rate_limited"),
        ("ERROR: [youtube] abc: Sign in to confirm your age", "private"),
        ("ERROR: HTTP Error 429: Too Many Requests", "rate_limited"),
        ("ERROR: unable to download video data: HTTP Error 403: Forbidden", "no_access"),
        ("ERROR: [youtube] x: Unable to download webpage: timed out", "unreachable"),
        ("ERROR: Join this channel to get access to members-only content", "private"),
        ("ERROR: something new", "refused"),
    ],
)
def test_what_sites_say_is_a_reason(said: str, reason: str) -> None:
    assert why(said) == reason


def test_plain_files_need_no_site() -> None:
    assert is_plain("https://videos.pexels.com/a/b.mp4?x=1")
    assert not is_plain("https://www.youtube.com/watch?v=a.mp4")
    assert not is_plain("file:///etc/x.mp4")


def test_a_ledger_survives_half_a_line(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.add(Entry(place="a", url="u", state="done", size=3))
    ledger.add(Entry(place="b", url="u", state="failed", reason="gone"))
    ledger.close()
    with ledger.path.open("ab") as stream:
        stream.write(b'{"place": "c", "url": "u", "st')
    again = Ledger(tmp_path)
    assert [(e.place, e.state) for e in again] == [("a", "done"), ("b", "failed")]
    again.add(Entry(place="d", url="u", state="done", size=1))
    again.close()
    assert [e.place for e in Ledger(tmp_path)] == ["a", "b", "d"]
