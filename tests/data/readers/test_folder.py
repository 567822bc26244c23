"""Folders of class folders become Tables: labels from paths, images from bytes."""

import os
from pathlib import Path
from typing import Any

import pytest

from mlfinetune.data.images.names import walk_files
from mlfinetune.data.labels import apply_label_options
from mlfinetune.data.read import read_splits, read_table
from mlfinetune.data.readers.folder import read_folder
from mlfinetune.data.rows import raise_faults
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.errors import DataError

Labels = dict[str, set[str]]


def plant(root: Path, **contents: str) -> Path:
    """Write files with these contents; `cat__a` is cat/a.jpg."""
    for name, content in contents.items():
        path = root / (name.replace("__", "/") + ".jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def read(root: Path, **options: Any) -> Table:
    """Return the Table of a folder."""
    given = SourceOptions(**options)
    return apply_label_options(read_folder(root, given), given)


def refusal(root: Path, **options: Any) -> str:
    """Return the message with which a folder is refused."""
    given = SourceOptions(**options)
    table = apply_label_options(read_table(root, given), given)
    with pytest.raises(DataError) as caught:
        raise_faults(table, table.faults)
    return str(caught.value)


def positives(table: Table) -> Labels:
    """Return name -> the labels that hold."""
    names = table.labels.names
    return {
        image: {names[at] for at in (row == 1).nonzero()[0]}
        for image, row in zip(table.names, table.targets, strict=True)
    }


# ---- labels -----------------------------------------------------------------------------


def test_a_picture_has_the_label_of_its_folder(tmp_path: Path) -> None:
    """There is one folder per label, in sorted order; all other labels are absent."""
    table = read(plant(tmp_path, dog__b="1", cat__c="22", cat__a="333"))
    assert table.names == ("cat/a.jpg", "cat/c.jpg", "dog/b.jpg")
    assert table.labels.names == ("cat", "dog")
    assert table.targets[:].tolist() == [[1, 0], [1, 0], [0, 1]]
    command = f"mlfinetune init {tmp_path} --table {tmp_path.name}.csv"
    (note,) = table.notes
    assert note.startswith("2 labels by folder names: 'cat', 'dog' (folder_labels: leaf); albums")
    assert note.endswith(command)
    assert (table.root, table.splits, table.unnamed.tolist()) == (tmp_path, None, [0, 0, 0])


def test_nested_folders_give_the_leaf_or_every_level(tmp_path: Path) -> None:
    """animals/birds is birds with `leaf`, animals and birds with `path`."""
    plant(tmp_path, animals__birds__a="1", animals__b="22")
    leaf, path = read(tmp_path), read(tmp_path, folder_labels="path")
    assert positives(leaf) == {"animals/birds/a.jpg": {"birds"}, "animals/b.jpg": {"animals"}}
    assert positives(path)["animals/birds/a.jpg"] == {"animals", "birds"}
    assert "2 labels by folder names: 'animals', 'birds' (folder_labels: path)" in path.notes[0]


def test_a_label_is_stripped_but_the_path_is_not(tmp_path: Path) -> None:
    """A folder named with a space at its end still holds its files."""
    (tmp_path / "cat ").mkdir()
    table = read(plant(tmp_path, **{"cat __a": "1"}))
    assert positives(table) == {"cat /a.jpg": {"cat"}}


def test_labels_keep_letters_of_all_languages(tmp_path: Path) -> None:
    """Folder names are taken as they are."""
    table = read(plant(tmp_path, **{"größe__a": "1", "猫__b": "22"}))
    assert positives(table) == {"größe/a.jpg": {"größe"}, "猫/b.jpg": {"猫"}}


# ---- the same bytes ---------------------------------------------------------------------


def test_the_same_bytes_in_several_folders_are_one_image(tmp_path: Path) -> None:
    """The image has the labels of all its folders, and the first of its names."""
    table = read(plant(tmp_path, dog__x="same", cat__y="same", fox__z="same", fox__w="other!"))
    assert positives(table) == {"cat/y.jpg": {"cat", "dog", "fox"}, "fox/w.jpg": {"fox"}}
    assert "2 files with the bytes of another: one image with the labels of all" in table.notes


def test_the_same_size_is_not_the_same_picture(tmp_path: Path) -> None:
    """Files of one size and different bytes stay two images."""
    table = read(plant(tmp_path, cat__a="abcd", dog__b="abce", dog__c="abcd"))
    assert positives(table) == {"cat/a.jpg": {"cat", "dog"}, "dog/b.jpg": {"dog"}}


def test_a_link_to_a_picture_of_the_folder_adds_a_label(tmp_path: Path) -> None:
    """A link has the bytes of what it points to."""
    plant(tmp_path, cat__a="1234", dog__b="12")
    (tmp_path / "dog" / "link.jpg").symlink_to(tmp_path / "cat" / "a.jpg")
    assert positives(read(tmp_path))["cat/a.jpg"] == {"cat", "dog"}


# ---- what is passed over ----------------------------------------------------------------


def test_files_that_are_no_pictures_are_passed_over_and_counted(tmp_path: Path) -> None:
    """The ending of the name decides, in any case."""
    plant(tmp_path, cat__a="1")
    for name in ("cat/notes.txt", "cat/Thumbs.db", "README", "cat/b.JPEG"):
        (tmp_path / name).write_text(name)
    table = read(tmp_path)
    assert table.names == ("cat/a.jpg", "cat/b.JPEG")
    assert "3 files not named like a picture: ignored" in table.notes


@pytest.mark.parametrize("name", ["@eaDir", "__MACOSX", "$RECYCLE.BIN", "#recycle", "lost+found"])
def test_a_folder_of_the_system_is_no_label(tmp_path: Path, name: str) -> None:
    """Network disks keep thumbnails in @eaDir, beside the classes and inside of them."""
    for folder in ("cat", "dog", name, f"cat/{name}"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "a.jpg").write_bytes(folder.encode())
    table = read(tmp_path)
    assert table.labels.names == ("cat", "dog")
    assert len(table) == 2


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    """Files that macOS and tools leave behind are neither labels nor counted."""
    plant(tmp_path, **{"cat__a": "1", "cat__._a": "22", ".cache__b": "333", "cat__.x__c": "4444"})
    table = read(tmp_path)
    assert positives(table) == {"cat/a.jpg": {"cat"}}
    (note,) = table.notes
    assert note.startswith("1 label by folder names: 'cat' (folder_labels: leaf)")


@pytest.mark.parametrize(
    ("empty_labels", "state", "fill"), [("negative", 0, 0), ("unknown", -1, -1)]
)
def test_a_picture_in_no_label_folder_follows_empty_labels(
    tmp_path: Path, empty_labels: str, state: int, fill: int
) -> None:
    """All absent or all unknown, with a count."""
    table = read(plant(tmp_path, cat__a="1", loose="22"), empty_labels=empty_labels)
    assert table.targets[table.names.index("loose.jpg")].tolist() == [state]
    assert table.unnamed[table.names.index("loose.jpg")] == fill
    what = {"negative": "absent", "unknown": "unknown"}[empty_labels]
    assert f"1 image with no label: all labels {what}" in table.notes


def test_a_picture_in_no_label_folder_can_be_refused(tmp_path: Path) -> None:
    """Every such picture is named in one message."""
    plant(tmp_path, cat__a="1", loose="22", stray="333")
    first, *lines = refusal(tmp_path, empty_labels="error").splitlines()
    assert "2 bad rows" in first
    why = "no label (data.empty_labels is error)"
    assert lines == [f"  loose.jpg: {why}", f"  stray.jpg: {why}"]


def test_a_loose_copy_of_a_labelled_picture_has_its_label(tmp_path: Path) -> None:
    """Equal bytes in the root and in a folder are one image with a label."""
    table = read(plant(tmp_path, cat__a="same", Loose="same"), empty_labels="error")
    assert (list(positives(table).values()), table.faults) == ([{"cat"}], ())


# ---- folders that are refused, links, order ---------------------------------------------


@pytest.mark.parametrize("name", [None, "cat/notes.txt", ".hidden.jpg"])
def test_a_folder_without_pictures_is_refused(tmp_path: Path, name: str | None) -> None:
    """The message shows the layout that is wanted."""
    root = tmp_path / "pets"
    (root / "cat").mkdir(parents=True)
    if name:
        (root / name).touch()
    with pytest.raises(DataError) as caught:
        read(root)
    assert str(caught.value).startswith(f"{root}: no picture found; wanted pets/<label>/<picture>")


def test_pictures_without_any_label_folder_cannot_be_trained_on(tmp_path: Path) -> None:
    """A flat folder of pictures holds no label."""
    plant(tmp_path, a="1", b="22", c="333")
    with pytest.raises(DataError, match="no image has a label; put the pictures into one"):
        read_splits(tmp_path, None, SourceOptions())


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    """Links to folders are followed, but for those that lead back to a folder above."""
    plant(tmp_path, cat__a="1")
    (tmp_path / "cat" / "up").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "again")
    assert [path.name for path in walk_files(tmp_path) if path.suffix] == ["a.jpg"]
    table = read(tmp_path)
    assert table.names == ("cat/a.jpg",)
    assert [fault.place for fault in table.faults] == ["again"]


def test_a_link_that_leads_nowhere_is_refused_by_name(tmp_path: Path) -> None:
    """A picture that is not there is not dropped in silence."""
    plant(tmp_path, cat__a="1")
    (tmp_path / "cat" / "lost.jpg").symlink_to(tmp_path / "gone.jpg")
    assert refusal(tmp_path).endswith("cat/lost.jpg: 'cat/lost.jpg': no such file")


def test_a_link_out_of_the_folder_is_refused_unless_permitted(tmp_path: Path) -> None:
    """As in tables; the file is named by its path."""
    root = plant(tmp_path / "pets", cat__a="1")
    (root / "cat" / "link.jpg").symlink_to(plant(tmp_path, secret="22") / "secret.jpg")
    assert "cat/link.jpg: 'cat/link.jpg': outside the image root" in refusal(root)
    assert len(read_table(root, SourceOptions(allow_outside_root=True)).names) == 2


def test_a_class_folder_may_be_a_link(tmp_path: Path) -> None:
    """To a folder inside: its pictures have the labels of both names."""
    plant(tmp_path, **{"kept/cat__a": "1", "dog__b": "22"})
    (tmp_path / "feline").symlink_to(tmp_path / "kept" / "cat")
    assert positives(read(tmp_path)) == {
        "dog/b.jpg": {"dog"},
        "feline/a.jpg": {"cat", "feline"},
    }


def test_linked_folders_outside_are_named_and_counted(tmp_path: Path) -> None:
    """One line for each, not one for each picture; permitted, they are class folders."""
    plant(tmp_path / "disk", **{f"cat__{i}": f"{i}" for i in range(12)}, dog__a="x", dog__x__b="y")
    root = plant(tmp_path / "pets", fox__a="f")
    for name in ("cat", "dog"):
        (root / name).symlink_to(tmp_path / "disk" / name)
    with pytest.raises(DataError) as caught:
        read(root)
    permit = "data.allow_outside_root: true permits it"
    assert str(caught.value).splitlines() == [
        f"{root}: 2 linked folders outside the image root; {permit}",
        f"  cat -> {tmp_path / 'disk' / 'cat'} (12 pictures)",
        f"  dog -> {tmp_path / 'disk' / 'dog'} (2 pictures)",
    ]
    table = read_table(root, SourceOptions(allow_outside_root=True))
    assert (table.labels.names, len(table), table.faults) == (("cat", "dog", "x", "fox"), 15, ())


def test_a_linked_folder_that_is_lost_is_a_fault(tmp_path: Path) -> None:
    """A class whose disk is not there must not vanish; other broken links are passed over."""
    plant(tmp_path, cat__a="1")
    (tmp_path / "dog").symlink_to(tmp_path / "unmounted" / "dog")
    (tmp_path / "notes.txt").symlink_to(tmp_path / "gone.txt")
    why = f"a link that leads nowhere ({tmp_path}/unmounted/dog)"
    assert refusal(tmp_path).splitlines()[1:] == [f"  dog: {why}"]


def test_a_raw_file_beside_its_jpeg_is_passed_over_and_others_are_rows(tmp_path: Path) -> None:
    """A photo is not trained on twice, nor does a picture vanish."""
    plant(tmp_path, cat__a="1")
    for name in ("cat/a.CR2", "cat/b.CR2", "cat/c.heic", "cat/d.jxl"):
        (tmp_path / name).write_text(name)
    table = read(tmp_path)
    assert table.names == ("cat/a.jpg", "cat/b.CR2", "cat/c.heic", "cat/d.jxl")
    assert "1 picture (.cr2) beside a readable one of the same name: passed over" in table.notes


def test_the_order_of_creation_changes_nothing(tmp_path: Path) -> None:
    """Two folders with the same files, made in opposite order, give the same table."""
    contents = {f"{label}__{i}": f"{label}{i % 7}" for label in "cab" for i in range(20)}
    there = read(plant(tmp_path / "1", **contents))
    back = read(plant(tmp_path / "2", **dict(reversed(contents.items()))))
    assert there.names == back.names == tuple(sorted(there.names))
    assert there.labels == back.labels
    assert (there.targets[:] == back.targets[:]).all()
    assert len(there.names) == 21


def test_a_deep_tree_is_read(tmp_path: Path) -> None:
    """Fifty levels down there is still a label."""
    path = tmp_path.joinpath(*["d"] * 50, "cat")
    os.makedirs(path)
    (path / "a.jpg").write_text("1")
    assert list(positives(read(tmp_path)).values()) == [{"cat"}]
