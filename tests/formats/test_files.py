"""Only regular files below the folder that was named are read, whatever an annotation calls them."""

import os
from pathlib import Path

import pytest

from multas_ray.data.reject import Reject
from multas_ray.formats.files import Folder, image_ids


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """`images/a.jpg` and `images/day 1/b.jpg`, beside `secret`."""
    (tmp_path / "images" / "day 1").mkdir(parents=True)
    (tmp_path / "images" / "a.jpg").write_bytes(b"a")
    (tmp_path / "images" / "day 1" / "b.jpg").write_bytes(b"b")
    (tmp_path / "secret").write_bytes(b"secret")
    return tmp_path / "images"


def refused(folder: Folder, name: str) -> tuple[str, str]:
    """Reason and detail."""
    with pytest.raises(Reject) as caught:
        folder.read(name)
    assert caught.value.detail.isprintable()
    return caught.value.reason, caught.value.detail


def test_files_are_read_by_their_names(root: Path) -> None:
    folder = Folder(root)
    assert folder.read("a.jpg") == folder.read("./a.jpg") == b"a"
    assert folder.read("day 1/b.jpg") == folder.read("day 1\\b.jpg") == b"b"


def test_a_name_leads_nowhere_else(root: Path) -> None:
    (root / "out").symlink_to(root.parent)
    (root / "link.jpg").symlink_to("../secret")
    for name in ("../secret", str(root.parent / "secret"), "day 1/../../secret", "..\\secret", "/dev/zero"):
        assert refused(Folder(root), name)[0] == "outside its folder"
    for name in ("link.jpg", "out/secret"):
        reason, detail = refused(Folder(root), name)
        assert reason == "outside its folder"
        assert "--follow-links" in detail
        assert Folder(root, follow_links=True).read(name) == b"secret"


def test_links_within_the_folder_are_followed(root: Path) -> None:
    (root / "again.jpg").symlink_to("day 1/b.jpg")
    assert Folder(root).read("again.jpg") == b"b"
    # The folder itself may be a link: that is where the user said.
    (root.parent / "elsewhere").symlink_to(root)
    assert Folder(root.parent / "elsewhere").read("a.jpg") == b"a"


def test_what_is_no_file_is_not_waited_for(root: Path) -> None:
    os.mkfifo(root / "pipe.jpg")
    (root / "zero.jpg").symlink_to("/dev/zero")
    (root / "round.jpg").symlink_to("round.jpg")
    for folder in (Folder(root), Folder(root, follow_links=True)):
        assert refused(folder, "pipe.jpg")[0] == "not a regular file"
        assert refused(folder, "day 1")[0] == "not a regular file"
        assert refused(folder, "round.jpg")[0] == "missing file"
    assert refused(Folder(root, follow_links=True), "zero.jpg")[0] == "not a regular file"


@pytest.mark.parametrize("name", ["none.jpg", "a\0b", "x" * 5000, "", "a.jpg/b", "\udcff.jpg", "\n"])
def test_names_of_nothing_are_named(root: Path, name: str) -> None:
    assert refused(Folder(root), name)[0] in ("missing file", "not a regular file")


def test_a_file_that_lies_elsewhere_is_pointed_to(root: Path) -> None:
    for name in ("../upload/a.jpg", "images/a.jpg", "C:\\upload\\a.jpg", "https://x.org/a.jpg?token=1"):
        assert f"{root / 'a.jpg'} is there" in refused(Folder(root), name)[1]


def test_a_sparse_file_does_not_take_the_memory(root: Path) -> None:
    with (root / "huge.jpg").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(Reject, match="too large"):
        Folder(root).read("huge.jpg", 2**20)


def test_images_are_called_by_their_paths_without_suffix() -> None:
    names = ["a.jpg", "b.jpg", "b.png", "cam_a/1.jpg", "cam_b/1.jpg", "d\\e.jpg", "v1.2", ".jpg", "f.tar.gz"]
    ids = ["a", "b.jpg", "b.png", "cam_a/1", "cam_b/1", "d/e", "v1", ".jpg", "f.tar"]
    assert image_ids(names) == ids
