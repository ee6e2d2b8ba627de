"""Files are whole or not there."""

import pytest

from subspace_lib import LeNet, SubspaceModel, make_projection
from subspace_lib.files import replaced_atomically


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
