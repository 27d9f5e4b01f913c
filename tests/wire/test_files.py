"""The disk seam: what `put` leaves behind when it is stopped anywhere, and errors that name the act and the file."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fleetgrad.wire.files import HANDLES, TEMPORARY, DiskError, Files, PosixFiles, put, replace_file


class Stopped(Exception):
    """The process died here."""


class Stopping:
    """Passes calls on until the n-th, which it stops before or after; `calls` lists what was done."""

    def __init__(self, inner: Files, at: int | None = None, *, after: bool = False) -> None:
        self.inner, self.at, self.after = inner, at, after
        self.calls: list[str] = []

    def _call(self, verb: str, *arguments: object) -> object:
        now = len(self.calls) == self.at
        if now and not self.after:
            raise Stopped
        self.calls.append(f"{verb} {arguments[0]}")
        result = getattr(self.inner, verb)(*arguments)
        if now:
            raise Stopped
        return result

    def write(self, name: str, data: bytes | bytearray | memoryview) -> None:
        self._call("write", name, data)

    def fsync(self, name: str) -> None:
        self._call("fsync", name)

    def rename(self, old: str, new: str) -> None:
        self._call("rename", old, new)

    def fsync_directory(self, name: str) -> None:
        self._call("fsync_directory", name)

    def unlink(self, name: str) -> None:
        self._call("unlink", name)

    def read(self, name: str) -> bytes:
        return self.inner.read(name)

    def write_at(self, name: str, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._call("write_at", name, offset, data)

    def read_at(self, name: str, offset: int, size: int) -> bytes:
        return self.inner.read_at(name, offset, size)

    def names(self, directory: str) -> list[str]:
        return self.inner.names(directory)


def test_put_syncs_the_file_before_the_rename_and_the_folder_after_it(tmp_path: Path) -> None:
    files = Stopping(PosixFiles(tmp_path))
    put(files, "spool/a", b"new")
    assert files.calls == ["write spool/a.tmp", "fsync spool/a.tmp", "rename spool/a.tmp", "fsync_directory spool"]
    assert files.read("spool/a") == b"new"
    assert files.names("spool") == ["a"]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(4))
def test_put_stopped_at_any_step_leaves_the_old_file_or_the_new_one(tmp_path: Path, at: int, after: bool) -> None:
    files = PosixFiles(tmp_path)
    put(files, "spool/a", b"old")
    with pytest.raises(Stopped):
        put(Stopping(files, at, after=after), "spool/a", b"brand new")
    renamed = at > 2 or (at == 2 and after)
    assert files.read("spool/a") == (b"brand new" if renamed else b"old")
    put(files, "spool/a", b"again")
    assert files.read("spool/a") == b"again"
    assert files.names("spool") == ["a"]


def test_a_first_put_stopped_before_its_rename_leaves_only_a_temporary_file(tmp_path: Path) -> None:
    files = PosixFiles(tmp_path)
    with pytest.raises(Stopped):
        put(Stopping(files, 2), "a", b"x")
    assert files.names("") == ["a" + TEMPORARY]
    with pytest.raises(FileNotFoundError):
        files.read("a")


LIMITED = """
import resource, signal, sys
from pathlib import Path
from fleetgrad.wire.files import DiskError, PosixFiles, put
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
files = PosixFiles(Path(sys.argv[1]))
put(files, "a", b"o" * 1000)
try:
    put(files, "a", b"n" * 1001)
except DiskError as e:
    print(e.errno, e)
"""


def test_a_write_that_does_not_fit_is_a_disk_error_and_the_old_file_stays(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED, tmp_path], capture_output=True, text=True, check=True)
    assert f"can't write {tmp_path / 'a.tmp'}: File too large" in done.stdout
    assert PosixFiles(tmp_path).read("a") == b"o" * 1000


def test_a_full_disk_is_a_disk_error_that_names_the_file(tmp_path: Path) -> None:
    """/dev/full answers every write with ENOSPC."""
    (tmp_path / "a.tmp").symlink_to("/dev/full")
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(DiskError, match=r"can't write .*a\.tmp: No space left on device") as caught:
        put(PosixFiles(tmp_path), "a", b"new")
    assert caught.value.errno == errno.ENOSPC
    assert (tmp_path / "a").read_bytes() == b"old"


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/etc/passwd", "..", "a/.."])
def test_names_that_lead_out_of_the_root_are_refused(tmp_path: Path, name: str) -> None:
    files = PosixFiles(tmp_path / "root")
    for act in (lambda: files.write(name, b""), lambda: files.read(name), lambda: files.unlink(name)):
        with pytest.raises(DiskError, match="leads out of"):
            act()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["root"]


def test_a_root_may_itself_lie_above_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    put(PosixFiles(Path("../spool")), "deep/er/a", b"x")
    assert (tmp_path / "spool/deep/er/a").read_bytes() == b"x"


def test_a_missing_file_is_not_found_and_removing_it_is_fine(tmp_path: Path) -> None:
    files = PosixFiles(tmp_path)
    with pytest.raises(FileNotFoundError):
        files.read("none")
    with pytest.raises(FileNotFoundError):
        files.rename("none", "other")
    with pytest.raises(FileNotFoundError):
        files.fsync("none")
    files.unlink("none")
    assert files.names("no/such/folder") == []


def test_names_lists_files_alone_in_order(tmp_path: Path) -> None:
    files = PosixFiles(tmp_path)
    for name in ("b", "a", "c/d"):
        put(files, name, b"")
    assert files.names("") == ["a", "b"]
    assert files.names("c") == ["d"]


def test_errors_of_other_kinds_name_the_act_and_the_file(tmp_path: Path) -> None:
    files = PosixFiles(tmp_path)
    put(files, "file", b"")
    with pytest.raises(DiskError, match=r"can't write .*file/a"):
        files.write("file/a", b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DiskError, match=r"can't read .*folder"):
        files.read("folder")
    with pytest.raises(DiskError, match=r"can't create folder .*file"):
        PosixFiles(tmp_path / "file")


def test_a_file_that_is_written_in_parts_is_the_one_of_its_name_whatever_that_was_before(tmp_path: Path) -> None:
    files = PosixFiles(tmp_path)
    files.write_at("a", 0, b"first")
    files.unlink("a")
    files.write_at("a", 2, b"y")
    files.rename("a", "b")
    files.write_at("a", 1, b"z")
    assert (files.read("a"), files.read("b")) == (b"\0z", b"\0\0y")
    files.rename("a", "b")
    files.write_at("b", 0, b"x")
    assert files.read("b") == b"xz"


def handles() -> int:
    """How many this process holds."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_more_files_than_are_kept_open_are_written_in_parts_by_turns(tmp_path: Path) -> None:
    files, count = PosixFiles(tmp_path), HANDLES + 8
    before = handles()
    for part in range(3):
        for i in range(count):
            files.write_at(f"spool/{i}", part, bytes([part + i]))
    assert handles() <= before + HANDLES
    assert all(files.read(f"spool/{i}") == bytes([i, i + 1, i + 2]) for i in range(count))
    del files
    assert handles() <= before


def test_a_folder_that_is_gone_or_cannot_be_looked_at_is_a_fault_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = PosixFiles(tmp_path / "root")
    with pytest.raises(DiskError, match=r"^can't sync folder .*/root/objects: No such file or directory$"):
        files.fsync_directory("objects")
    assert files.names("objects") == []
    assert files.free() > 0

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "iterdir", broken)
    monkeypatch.setattr(shutil, "disk_usage", broken)
    with pytest.raises(DiskError, match=r"^can't list .*/root/objects: Input/output error$"):
        files.names("objects")
    with pytest.raises(DiskError, match=r"^can't look at .*/root: Input/output error$"):
        files.free()


def test_what_a_killed_process_left_of_a_file_or_folder_goes_when_it_is_written_again(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    folder = tmp_path / f".key.{gone.pid}.tmp"
    folder.mkdir()
    (folder / "half").write_bytes(b"secret")
    (tmp_path / f".key.{os.getpid()}.tmp").write_bytes(b"secret")  # of a process that had this one's number
    alive, other, no_number = (tmp_path / name for name in (".key.1.tmp", f".k.{gone.pid}.tmp", ".key.x.tmp"))
    for path in (alive, other, no_number):
        path.write_bytes(b"of another")
    replace_file(tmp_path / "key", b"whole")
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "key", alive, other, no_number])
    assert (tmp_path / "key").read_bytes() == b"whole"
