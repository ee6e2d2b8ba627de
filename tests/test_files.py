"""Files are whole or not there."""

import os
import stat
from pathlib import Path

import pytest

from subspace_lib import LeNet, SubspaceModel, make_projection
from subspace_lib.files import replaced_atomically, write_text


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "folder" / "file.txt"
    with replaced_atomically(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
    with pytest.raises(RuntimeError), replaced_atomically(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "first"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "taken").write_text("a file where a folder is wanted")
    model = SubspaceModel(LeNet(), make_projection("one_hot", 61_706, 2))
    with pytest.raises(OSError, match="taken"):
        model.save(tmp_path / "taken" / "model.safetensors")


def test_text_has_the_same_bytes_on_every_system(tmp_path):
    write_text(tmp_path / "file.txt", "é\nα\n")
    assert (tmp_path / "file.txt").read_bytes() == b"\xc3\xa9\n\xce\xb1\n"


def test_a_file_that_was_made_read_only_is_not_replaced(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    path.chmod(0o400)
    with pytest.raises(OSError, match=r"read-only, and therefore not replaced.*file\.txt"):
        replaced_atomically(path).__enter__()
    path.chmod(0o600)
    assert path.read_text() == "old"


@pytest.mark.skipif(os.name != "posix", reason="modes and links are POSIX's")
def test_modes_links_and_what_is_no_file(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"

    def write(where):
        with replaced_atomically(where) as temporary:
            temporary.write_text("new")

    before = os.umask(0o077)
    try:
        write(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        path.chmod(0o640)
        write(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640, "the mode of the old file"
    finally:
        os.umask(before)
    if hasattr(os, "chown") and os.geteuid() == 0:
        os.chown(path, 12, 34)
        write(path)
        assert (path.stat().st_uid, path.stat().st_gid) == (12, 34), "the owner of the old file"
    link = tmp_path / "link"
    link.symlink_to(path)
    path.write_text("old")
    write(link)
    assert link.is_symlink()
    assert path.read_text() == "new"
    (tmp_path / "round").symlink_to(tmp_path / "and round")
    (tmp_path / "and round").symlink_to(tmp_path / "round")
    with pytest.raises(OSError, match="lead in a circle"):
        write(tmp_path / "round")
    for no_file in (tmp_path, Path("/dev/null")):
        with pytest.raises(OSError, match="not a regular file"):
            write(no_file)

    def fail(*_):
        raise PermissionError

    monkeypatch.setattr(type(path), "chmod", fail)
    path.write_text("old")
    write(path)
    assert path.read_text() == "new", "a file system without modes loses nothing"


@pytest.mark.parametrize("name", ["n" * 250, "\U0001d4df" * 63, "n." + "\U0001d4df" * 60])
def test_a_long_name_fits(name, tmp_path):
    with replaced_atomically(tmp_path / name) as temporary:
        temporary.write_text("new")
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
