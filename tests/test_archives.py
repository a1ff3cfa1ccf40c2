"""Archives are fetched from links that die and unpacked without trust: all of it or nothing, and nothing elsewhere."""

import errno
import hashlib
import io
import multiprocessing
import os
import shutil
import signal
import tarfile
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest
from benchmark_folders import contents, pack, server

from mlore_edu.data import archives, downloads
from mlore_edu.data.archives import Limits, kind_of, unpack
from mlore_edu.data.downloads import fetch
from mlore_edu.errors import UserError
from mlore_edu.locks import alone

REMEDY = "import an archive you have with --archive FILE"
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(downloads, "PAUSE", 0)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(tmp_path):
    """Something to pack: 300 kB that do not compress, an empty file and a folder."""
    made = tmp_path / "original" / "Data"
    (made / "deep/er").mkdir(parents=True)
    (made / "noise.bin").write_bytes(b"".join(hashlib.sha256(bytes([i % 256, i // 256])).digest() for i in range(9600)))
    (made / "deep/er/text.txt").write_text("hello")
    (made / "empty").write_bytes(b"")
    return made


@pytest.fixture
def archive(folder):
    return pack(folder, folder.parent / "data.tgz")


def get(sources, target):
    sources = [sources] if isinstance(sources, str) else sources
    return fetch(sources, target, REMEDY, timeout=5, progress=False)


def files(place):
    return sorted(path.name for path in place.iterdir())


# Fetching


def test_an_archive_is_fetched_and_its_sha256_recorded(archive, tmp_path):
    target = tmp_path / "archives/data.tgz"
    with server(archive.read_bytes()) as (shop, address):
        assert get(address, target) == target
        assert get(address, target) == target  # only checked
    assert target.read_bytes() == archive.read_bytes()
    assert files(target.parent) == ["data.tgz", "data.tgz.sha256"]
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert (tmp_path / "archives/data.tgz.sha256").read_text() == f"{digest}  data.tgz\n"
    assert shop.asked == [None]


@pytest.mark.parametrize("as_address", [True, False])
def test_a_file_on_this_machine_is_a_source_too_and_stays_as_it_is(archive, tmp_path, as_address):
    target = tmp_path / "copy.tgz"
    get(archive.as_uri() if as_address else str(archive), target)
    assert target.read_bytes() == archive.read_bytes()
    assert files(tmp_path) == ["copy.tgz", "copy.tgz.sha256", "original"]


def test_a_connection_that_breaks_off_is_continued_where_it_ended(archive, tmp_path):
    with server(archive.read_bytes()) as (shop, address):
        shop.breaks = [100_000, 50_000]
        get(address, tmp_path / "data.tgz")
    assert shop.asked == [None, "bytes=100000-", "bytes=150000-"]
    assert (tmp_path / "data.tgz").read_bytes() == archive.read_bytes()


def test_without_ranges_a_broken_download_starts_again(archive, tmp_path):
    with server(archive.read_bytes()) as (shop, address):
        shop.ranges, shop.breaks = False, [100_000]
        get(address, tmp_path / "data.tgz")
    assert (tmp_path / "data.tgz").read_bytes() == archive.read_bytes()


def test_a_source_that_always_breaks_off_is_given_up_and_what_arrived_is_kept_for_the_next_call(archive, tmp_path):
    target = tmp_path / "data.tgz"
    with server(archive.read_bytes()) as (shop, address):
        shop.breaks = [100_000] + [0] * downloads.TRIES
        with pytest.raises(
            UserError, match=r"broke off after 100,000 of \d+,\d+ bytes; what arrived is kept\); import"
        ):
            get(address, target)
        assert [path.stat().st_size for path in tmp_path.glob("*.part")] == [100_000]
        assert not target.exists()
        get(address, target)
    assert shop.asked[-1] == "bytes=100000-"
    assert target.read_bytes() == archive.read_bytes()
    assert files(tmp_path) == ["data.tgz", "data.tgz.sha256", "original"]


@pytest.mark.parametrize("tag", ['"two"', None, 'W/"weak"'])
def test_a_file_that_changed_between_two_calls_is_never_spliced(archive, tmp_path, tag):
    with server(archive.read_bytes()) as (shop, address):
        shop.tag = '"one"' if tag == '"two"' else tag
        shop.breaks = [100_000] + [0] * downloads.TRIES
        with pytest.raises(UserError):
            get(address, tmp_path / "data.tgz")
        shop.tag, shop.content = tag, b"\x1f\x8b" + bytes(400_000)
        get(address, tmp_path / "data.tgz")
    assert (tmp_path / "data.tgz").read_bytes() == shop.content


def test_a_file_that_became_shorter_starts_again(archive, tmp_path):
    with server(archive.read_bytes()) as (shop, address):
        shop.tag = None
        shop.breaks = [100_000] + [0] * downloads.TRIES
        with pytest.raises(UserError):
            get(address, tmp_path / "data.tgz")
        shop.content = b"\x1f\x8bshort"
        get(address, tmp_path / "data.tgz")
    assert (tmp_path / "data.tgz").read_bytes() == b"\x1f\x8bshort"


def test_a_server_that_does_not_say_how_much_comes_is_believed(archive, tmp_path):
    with server(archive.read_bytes()) as (shop, address):
        shop.says_length = False
        get(address, tmp_path / "data.tgz")
    assert (tmp_path / "data.tgz").read_bytes() == archive.read_bytes()


def test_the_next_source_is_tried_when_one_fails(archive, tmp_path):
    with server(b"<!DOCTYPE html><html>log in</html>") as (_, page), server(archive.read_bytes()) as (_, address):
        get([page, str(tmp_path / "nowhere.tgz"), address], tmp_path / "data.tgz")
    assert files(tmp_path) == ["data.tgz", "data.tgz.sha256", "original"]


def test_when_all_sources_fail_one_sentence_says_why_for_each(archive, tmp_path):
    page, nothing, gone = server(b"\n <html>sign in"), server(b"just words"), server(b"")
    with page as (_, first), nothing as (_, second), gone as (shop, third):
        shop.status = 404
        sources = [first, second, third, "ftp://old.example/x", "/nowhere.tgz", "http://127.0.0.1:1/x"]
        with pytest.raises(UserError) as caught:
            get(sources, tmp_path / "data.tgz")
    said = str(caught.value)
    reasons = ("sends a web page instead", "no archive", "answers 404", "neither an https", "No such file", "refused")
    for source, reason in zip(sources, reasons, strict=True):
        assert reason in said.partition(f"{source}: ")[2].partition("; ")[0]
    assert said.endswith(f"; {REMEDY}.")
    assert "\n" not in said
    assert files(tmp_path) == ["original"]


def test_another_file_than_the_first_time_is_refused(archive, tmp_path):
    target = tmp_path / "data.tgz"
    get(str(archive), target)
    record = (tmp_path / "data.tgz.sha256").read_text()
    target.unlink()
    with (
        server(b"\x1f\x8bsomething else") as (_, address),
        pytest.raises(UserError, match=r"another file than the one"),
    ):
        get(address, target)
    assert (tmp_path / "data.tgz.sha256").read_text() == record
    assert not target.exists()


def test_an_archive_that_changed_on_the_disk_is_reported_and_not_touched(archive, tmp_path):
    target = tmp_path / "data.tgz"
    get(str(archive), target)
    target.write_bytes(b"\x1f\x8bbits that flipped")
    with pytest.raises(UserError, match=r"is not the file it was when it was fetched .*; delete it and fetch it again"):
        get(str(archive), target)
    assert target.read_bytes() == b"\x1f\x8bbits that flipped"


def test_two_processes_do_not_fetch_the_same_archive(archive, tmp_path):
    with alone(tmp_path / ".data.tgz.lock"), pytest.raises(UserError, match=r"Another process is fetching .*; wait"):
        get(str(archive), tmp_path / "data.tgz")
    get(str(archive), tmp_path / "data.tgz")


@pytest.mark.parametrize("local", [True, False])
def test_a_disk_without_room_is_said_before_anything_is_fetched(archive, tmp_path, monkeypatch, local):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(1, 1, 10_000_000))
    with server(archive.read_bytes()) as (_, address), pytest.raises(UserError, match=r"0.0 GB free.*; make room, or"):
        get(str(archive) if local else address, tmp_path / "data.tgz")
    assert files(tmp_path) == ["original"]


def test_a_disk_that_fills_while_fetching_keeps_what_arrived(archive, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(downloads, "write_atomically", full)
        with pytest.raises(UserError, match=r"cannot be written \(No space left.*to go on"):
            get(str(archive), tmp_path / "data.tgz")
    assert not (tmp_path / "data.tgz").exists()
    get(str(archive), tmp_path / "data.tgz")


def test_ctrl_c_says_how_to_go_on(archive, tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(downloads, "_copy", interrupt)
    with pytest.raises(KeyboardInterrupt, match="the same command goes on where it stopped"):
        get(str(archive), tmp_path / "data.tgz")


# Unpacking


@pytest.mark.parametrize("suffix", [".tar", ".tgz", ".tar.xz", ".tar.bz2", ".zip"])
def test_what_was_packed_comes_out_and_the_archive_stays_as_it_was(folder, tmp_path, suffix):
    archive = pack(folder, tmp_path / f"data{suffix}")
    before = archive.read_bytes()
    unpack(archive, tmp_path / "new", progress=False)
    assert contents(tmp_path / "new/Data") == contents(folder)
    assert archive.read_bytes() == before
    assert files(tmp_path) == sorted([archive.name, "new", "original"])


def test_a_folder_that_exists_is_not_written_to(archive, tmp_path):
    (tmp_path / "new").mkdir()
    with pytest.raises(UserError, match=r"new exists already; unpack to another folder"):
        unpack(archive, tmp_path / "new", progress=False)


def tar_of(path, *members):
    """A tar whose members are (name, content) or tarfile's own descriptions."""
    with tarfile.open(path, "w:gz") as packed:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                packed.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                packed.addfile(info, io.BytesIO(member[1]))


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zip_of(path, name, mode=0, content=b"x"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        info = zipfile.ZipInfo(name)
        info.external_attr, info.compress_type = mode << 16, zipfile.ZIP_DEFLATED
        packed.writestr(info, content)


def cut(source, path, share):
    path.write_bytes(source.read_bytes()[: int(source.stat().st_size * share)])


def cut_between_files(path):
    """A plain tar that ends after a whole file: only its missing end tells."""
    with tarfile.open(path, "w") as packed:
        packed.addfile(tarfile.TarInfo("first"))
    path.write_bytes(path.read_bytes()[:512])


GOOD = ("good.txt", b"good")
BOMB = ("bomb", bytes(3_000_000))

DAMAGED_ARCHIVES = {
    "cut off in the middle": (lambda path, good: cut(good, path, 0.5), "is cut off or damaged"),
    "cut off before its last bytes": (lambda path, good: cut(good, path, 0.9999), "is cut off or damaged"),
    "cut off between two files": (lambda path, _: cut_between_files(path), "is cut off or damaged .*end is missing"),
    "with bits that flipped": (
        lambda path, good: path.write_bytes(good.read_bytes()[:-8] + b"\0" * 8),
        "is cut off or damaged",
    ),
    "a zip that is cut off": (lambda path, _: (zip_of(path, "a"), cut(path, path, 0.5)), "is cut off or damaged"),
    "a web page": (lambda path, _: path.write_text("<html>not found</html>"), "is a web page.*; download it again"),
    "words": (lambda path, _: path.write_text("words"), "is no tar or zip archive; download it again"),
    "empty": (lambda path, _: path.write_bytes(b""), "is no tar or zip archive"),
    "missing": (lambda path, _: None, "There is no archive .*; give the file's path with --archive"),
    "a path upwards": (lambda path, _: tar_of(path, GOOD, ("../evil", b"")), "holds '../evil', a path out"),
    "a path upwards, hidden": (lambda path, _: tar_of(path, GOOD, ("a/../../evil", b"")), "a path out of its own"),
    "an absolute path": (lambda path, _: tar_of(path, GOOD, ("/tmp/evil", b"")), "holds '/tmp/evil', a path out"),
    "a drive": (lambda path, _: tar_of(path, GOOD, ("C:evil", b"")), "a path out of its own"),
    "a path upwards in a zip": (lambda path, _: zip_of(path, "../evil"), "holds '../evil', a path out"),
    "a symbolic link": (
        lambda path, _: tar_of(path, GOOD, special("a", tarfile.SYMTYPE, "/etc")),
        "holds the link 'a'",
    ),
    "a hard link": (
        lambda path, _: tar_of(path, GOOD, special("a", tarfile.LNKTYPE, "good.txt")),
        "holds the link 'a'",
    ),
    "a symbolic link in a zip": (lambda path, _: zip_of(path, "a", 0o120777, b"/etc"), "holds the link 'a'"),
    "a device": (lambda path, _: tar_of(path, GOOD, special("a", tarfile.CHRTYPE)), "neither file nor folder"),
    "a pipe": (lambda path, _: tar_of(path, GOOD, special("a", tarfile.FIFOTYPE)), "neither file nor folder"),
    "a device in a zip": (lambda path, _: zip_of(path, "a", 0o020666), "neither file nor folder"),
    "a bomb": (lambda path, _: tar_of(path, BOMB), r"announces 3.0 MB for 'bomb'"),
    "a bomb of many pieces": (
        lambda path, _: tar_of(path, *((f"{i}", bytes(400_000)) for i in range(8))),
        r"unpacks to more than 1.\d MB",
    ),
    "a bomb in a zip": (lambda path, _: zip_of(path, "bomb", content=BOMB[1]), r"unpacks to 3.0 MB, more than 1.0 MB"),
    "more files than anyone has": (
        lambda path, _: tar_of(path, *((f"{i}", b"") for i in range(40))),
        "more than 30 files",
    ),
}


@pytest.mark.parametrize("damage", DAMAGED_ARCHIVES)
def test_an_archive_that_is_damaged_or_not_to_be_trusted_leaves_nothing_behind(damage, archive, tmp_path):
    make, message = DAMAGED_ARCHIVES[damage]
    bad = tmp_path / "bad.archive"
    make(bad, archive)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        unpack(bad, tmp_path / "new", limits=Limits(ratio=3, unsuspicious=1_000_000, members=30), progress=False)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")
    assert contents(tmp_path) == before
    assert not list(tmp_path.glob("*evil*")) + list(tmp_path.glob(".new*"))


def test_a_bomb_in_a_header_is_stopped_while_it_is_read(tmp_path):
    with tarfile.open(tmp_path / "bomb.tgz", "w:gz", format=tarfile.PAX_FORMAT) as packed:
        info = tarfile.TarInfo("small")
        info.pax_headers = {"comment": "a" * 5_000_000}
        packed.addfile(info)
    with pytest.raises(UserError, match=r"unpacks to more than 1.0 MB, which no archive of this data does"):
        unpack(tmp_path / "bomb.tgz", tmp_path / "new", limits=Limits(unsuspicious=1_000_000, ratio=3), progress=False)


@pytest.mark.parametrize("known_before", [True, False])
def test_a_full_disk_leaves_nothing_half_unpacked(archive, tmp_path, monkeypatch, known_before):
    def full(draft, member):
        raise OSError(errno.ENOSPC, "No space left on device")

    if known_before:
        monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(1, 1, archives.SPARE + 1000))
    else:
        monkeypatch.setattr(archives, "_write", full)
    with pytest.raises(UserError, match=r"cannot be unpacked to .*(only 67.1 MB are free|No space).*; make room"):
        unpack(archive, tmp_path / "new", progress=False)
    assert files(tmp_path) == ["original"]


def _unpack_and_die(archive, folder):
    def die(draft, member):
        os.kill(os.getpid(), signal.SIGKILL)

    archives._write = die
    unpack(archive, folder, progress=False)


def test_after_being_killed_half_way_the_next_call_unpacks_everything(archive, folder, tmp_path):
    victim = multiprocessing.get_context("fork").Process(target=_unpack_and_die, args=(archive, tmp_path / "new"))
    victim.start()
    victim.join()
    assert victim.exitcode == -signal.SIGKILL
    assert files(tmp_path) == [".new.unpacking", "original"]  # no folder that looks finished
    unpack(archive, tmp_path / "new", progress=False)
    assert files(tmp_path) == ["new", "original"]
    assert contents(tmp_path / "new/Data") == contents(folder)


def test_kinds_are_told_by_content_not_by_name(archive):
    assert kind_of(archive.read_bytes()) == "tar"
    assert kind_of(b"PK\x03\x04") == "zip"
    assert kind_of(b"  <!DOCTYPE HTML>") == "web page"
    assert kind_of(b"") == ""


def test_a_lock_file_removed_by_its_holder_is_not_mistaken_for_a_lock(tmp_path):
    with alone(tmp_path / "lock"):
        assert Path(tmp_path / "lock").exists()
    assert files(tmp_path) == []
    with alone(tmp_path / "lock", "busy"), pytest.raises(UserError, match="busy"), alone(tmp_path / "lock", "busy"):
        pass
