"""A file holds the old or the new content, whatever happens while it is written."""

import os

import pytest

from mlore_edu.atomic import write_atomically


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_is_replaced_as_a_whole(tmp_path, durable):
    for content in (b"old", b"new"):
        write_atomically(tmp_path / "file", content, durable=durable)
        assert (tmp_path / "file").read_bytes() == content
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(("durable", "step"), [(True, "fsync"), (True, "replace"), (False, "replace")])
def test_a_full_disk_leaves_the_old_content_and_no_draft(tmp_path, monkeypatch, durable, step):
    write_atomically(tmp_path / "file", b"old")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "file", b"new", durable=durable)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
