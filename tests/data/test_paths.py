"""Names lead to pictures below the root, or are refused, one by one and in bulk alike."""

import multiprocessing
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from bare import use_drives
from hypothesis import given, settings
from hypothesis import strategies as st

from mlfinetune.data.paths import _WORTH_LISTING, check_paths
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.data.targets import LabelSpace, Targets

NFC, NFD = "caf\u00e9", "cafe\u0301"
OUTSIDE = "outside the image root; data.allow_outside_root: true permits it"


def table(root: Path, *names: str) -> Table:
    """Return a table that names those pictures."""
    states = np.ones((len(names), 1), np.int8)
    return Table(
        origin=root / "tags.csv",
        format="csv",
        root=root,
        names=names,
        targets=Targets.pack([states], 1),
        unnamed=np.zeros(len(names), np.int8),
        labels=LabelSpace(("x",)),
        lines=np.arange(2, len(names) + 2),
    )


def verdict(root: Path, name: str, many: bool = False, outside: bool = False) -> str:
    """Return the fault of a name, or the name it leads to; with many other names, or alone."""
    folder = name[: name.rfind("/") + 1]
    others = [f"{folder}other {n}" for n in range(_WORTH_LISTING)] if many else []
    checked = check_paths(table(root, name, *others), SourceOptions(allow_outside_root=outside))
    faults = [fault for fault in checked.faults if fault.row == 0]
    assert len(faults) <= 1
    return faults[0].text.removeprefix(f"{name!r}: ") if faults else f"-> {checked.names[0]}"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with everything that a name may lead to, and a picture beside it."""
    top = tmp_path_factory.mktemp("paths")
    root = top / "root"
    for folder in (
        root / "sub",
        root / f"{NFC} folder",
        root / "Upper",
        top / "out",
        top / "root-2",
    ):
        folder.mkdir(parents=True)
        for name in ("a.jpg", "B.JPG", f"{NFC}.jpg", "two\nlines.jpg", "both.jpg", "Both.jpg"):
            (folder / name).touch()
        for name in ("007.jpg", "08.jpg", "008.jpg"):
            (folder / name).touch()
        (folder / f"{NFD} 2.jpg").touch()
    (root / "a.jpg").touch()
    os.mkfifo(root / "sub" / "fifo")
    links = {"in": "a.jpg", "out": "../../out/a.jpg", "gone": "nothing", "loop": "loop"}
    for name, to in {**links, "dir": "../Upper", f"{NFC} link": "a.jpg"}.items():
        (root / "sub" / name).symlink_to(to)
    (root / "away").symlink_to(top / "out")
    return root


VERDICTS = {
    "a.jpg": "-> sub/a.jpg",
    "two\nlines.jpg": "-> sub/two\nlines.jpg",
    "in": "-> sub/in",
    "dir/a.jpg": "-> sub/dir/a.jpg",
    f"{NFC}.jpg": f"-> sub/{NFC}.jpg",
    f"{NFD}.jpg": f"-> sub/{NFC}.jpg",
    f"{NFC} 2.jpg": f"-> sub/{NFD} 2.jpg",
    f"{NFD} link": f"-> sub/{NFC} link",
    "none.jpg": "no such file",
    "none/a.jpg": "no such file",
    "gone": "no such file",
    "A.jpg": "no such file; there is 'a.jpg'",
    "b.jpg": "no such file; there is 'B.JPG'",
    "7": "no such file; there is '007.jpg': a spreadsheet may have dropped the zeros",
    "7.0": "no such file; there is '007.jpg': a spreadsheet may have dropped the zeros",
    "07.jpg": "no such file; there is '007.jpg': a spreadsheet may have dropped the zeros",
    "8": "no such file",
    "GONE": "no such file",
    "DIR": "no such file",
    "IN": "no such file; there is 'in'",
    "": "a folder, not a picture",
    "dir": "a folder, not a picture",
    "fifo": "not a regular file",
    "loop": "Too many levels of symbolic links",
    "a.jpg/b.jpg": "Not a directory",
    "x" * 300: "File name too long",
    "x" * 300 + "/a.jpg": "File name too long",
    "a\0.jpg": "not a file name (it holds a NUL character)",
    "a\0b/a.jpg": "not a file name (it holds a NUL character)",
    "\ud800.jpg": "not a file name (it holds half of a character)",
    "\ud800/a.jpg": "not a file name (it holds half of a character)",
    "out": OUTSIDE,
    "../../out/a.jpg": OUTSIDE,
    "../away/a.jpg": OUTSIDE,
    "../../root-2/a.jpg": OUTSIDE,
    "/etc/passwd": OUTSIDE,
    "../away/none.jpg": "no such file",
    "../away/A.jpg": "no such file",
    f"../../out/{NFD}.jpg": "no such file",
}


@pytest.mark.parametrize("many", [False, True], ids=["alone", "in-bulk"])
@pytest.mark.parametrize(("name", "wanted"), VERDICTS.items(), ids=map(ascii, VERDICTS))
def test_a_name_gets_its_verdict(root: Path, name: str, wanted: str, many: bool) -> None:
    """The result is equal whether the folder is listed or each file is looked up."""
    full = name if name.startswith("/") else f"sub/{name}"
    assert verdict(root, full, many) == wanted


@settings(deadline=None)
@given(st.lists(st.sampled_from(list(VERDICTS)), max_size=80), st.booleans())
def test_a_table_has_the_faults_of_its_names(root: Path, names: list[str], outside: bool) -> None:
    """Rows, words and kinds of fault do not depend on the other names."""
    names = [name if name.startswith("/") else f"sub/{name}" for name in names]
    checked = check_paths(table(root, *names), SourceOptions(allow_outside_root=outside))
    found = {fault.row: (fault.place, fault.text, fault.picture) for fault in checked.faults}
    for row, name in enumerate(names):
        alone = check_paths(table(root, name), SourceOptions(allow_outside_root=outside))
        assert checked.names[row] == alone.names[0]
        wanted = [(f"line {row + 2}", fault.text, fault.picture) for fault in alone.faults]
        assert wanted == ([found[row]] if row in found else [])
    assert len(found) == len(checked.faults)


@pytest.mark.parametrize("many", [False, True], ids=["alone", "in-bulk"])
@pytest.mark.parametrize("name", ["sub/out", "away/a.jpg", "../out/a.jpg", "/etc/passwd"])
def test_files_outside_can_be_permitted(root: Path, name: str, many: bool) -> None:
    """Under the name that the table gives, and in either spelling."""
    assert verdict(root, name, many, outside=True) == f"-> {name}"
    assert verdict(root, f"../out/{NFD}.jpg", many, outside=True) == f"-> ../out/{NFC}.jpg"
    assert verdict(root, "../out/none.jpg", many, outside=True) == "no such file"


@pytest.mark.parametrize("many", [False, True], ids=["alone", "in-bulk"])
def test_a_leading_slash_is_not_the_root_of_the_pictures(root: Path, many: bool) -> None:
    """/a.jpg lies at the top of the disk, whatever a.jpg there is in the root."""
    assert verdict(root, "/a.jpg", many) == "no such file"
    assert verdict(root, "/etc", many) == OUTSIDE


@pytest.mark.parametrize("name", [".", "..", "sub/..", "sub/.", "/"])
def test_a_folder_is_no_picture(root: Path, name: str) -> None:
    """The fault does not depend on how the folder is written."""
    assert verdict(root, name) in ("a folder, not a picture", OUTSIDE)


def test_missing_is_the_pictures_fault_and_outside_the_rows(root: Path) -> None:
    """`bad_images: skip` forgives the one and never the other."""
    checked = check_paths(
        table(root, "none.jpg", "../out/a.jpg", "sub/fifo", "sub"), SourceOptions()
    )
    kinds = {fault.row: fault.picture for fault in checked.faults}
    assert kinds == {0: True, 1: False, 2: True, 3: True}


@pytest.mark.parametrize("many", [False, True], ids=["alone", "in-bulk"])
def test_folders_are_found_in_another_normalisation(root: Path, many: bool) -> None:
    """As a macOS archive spells them; with the file, the link, and what is below."""
    assert verdict(root, f"{NFD} folder/a.jpg", many) == f"-> {NFC} folder/a.jpg"
    assert verdict(root, f"{NFD} folder/{NFC} 2.jpg", many) == f"-> {NFC} folder/{NFD} 2.jpg"
    assert verdict(root, f"{NFD} folder/none.jpg", many) == "no such file"
    assert verdict(root, f"{NFD} none/a.jpg", many) == "no such file"
    above = unicodedata.normalize("NFD", f"sub/../{NFC} folder//a.jpg")
    assert verdict(root, above, many) == f"-> sub/../{NFC} folder//a.jpg"


def test_names_spelled_as_they_stand_are_preferred(tmp_path: Path) -> None:
    """If both Unicode forms exist, they are two pictures."""
    for name in (NFC, NFD):
        (tmp_path / name).touch()
    checked = check_paths(table(tmp_path, NFD, NFC), SourceOptions())
    assert (checked.names, checked.notes) == ((NFD, NFC), ())


def test_other_spellings_are_counted(root: Path) -> None:
    """One note has the count; the rows keep their order."""
    names = ("a.jpg", f"sub/{NFD}.jpg", f"{NFD} folder/a.jpg", "sub/a.jpg")
    checked = check_paths(table(root, *names), SourceOptions())
    assert checked.names == ("a.jpg", f"sub/{NFC}.jpg", f"{NFC} folder/a.jpg", "sub/a.jpg")
    assert checked.notes == ("2 names are spelled on disk in another Unicode form (NFC, NFD)",)


def test_faults_of_the_table_are_kept(root: Path) -> None:
    """A row without a name has been told of, and is not looked for."""
    before = table(root, "", "none.jpg")
    before = Table(**{**vars(before), "faults": (before.build_fault(0, "no image"),)})
    checked = check_paths(before, SourceOptions())
    assert [str(f) for f in checked.faults] == [
        "line 2: no image",
        "line 3: 'none.jpg': no such file",
    ]


def test_the_root_may_be_any_folder(tmp_path: Path) -> None:
    """A link, or the top of the disk."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a.jpg").touch()
    (tmp_path / "link").symlink_to("here")
    assert verdict(tmp_path / "link", "a.jpg") == "-> a.jpg"
    assert verdict(tmp_path / "link", "../here/a.jpg") == "-> ../here/a.jpg"
    assert verdict(Path("/"), str(tmp_path / "here" / "a.jpg")).startswith("-> /")


# ---- Windows --------------------------------------------------------------------------------

WINDOWS = {
    "a.jpg": "-> a.jpg",
    r"sub\a.jpg": "-> sub/a.jpg",
    "sub/a.jpg": "-> sub/a.jpg",
    r"sub\..\sub/a.jpg": "-> sub/../sub/a.jpg",
    r"C:\root\sub\a.jpg": "-> C:/root/sub/a.jpg",
    r"c:\ROOT\sub\a.jpg": "-> c:/ROOT/sub/a.jpg",
    r"sub\none.jpg": "no such file",
    r"sub\A.JPG": "-> sub/A.JPG",
    r"sub\a.jpg\b.jpg": "no such file",
    r"..\out.jpg": OUTSIDE,
    "../out.jpg": OUTSIDE,
    r"sub/..\..\out.jpg": OUTSIDE,
    r"\out.jpg": OUTSIDE,
    r"C:\out.jpg": OUTSIDE,
    r"C:\root-2\a.jpg": OUTSIDE,
    r"D:\a.jpg": OUTSIDE,
    "D:a.jpg": OUTSIDE,
    r"\\server\share\a.jpg": OUTSIDE,
    "//server/share/a.jpg": OUTSIDE,
    r"\\?\C:\root\a.jpg": OUTSIDE,
    r"\\.\C:\root\a.jpg": OUTSIDE,
}
"""Name -> its verdict, with the root C:\\root; a look at another drive would end the process."""


def check_windows_names(folder: Path, many: bool) -> None:
    """Compare the verdicts where C: is the folder."""
    use_drives({"C:": folder, "D:": folder / "sub"})
    root = Path("C:\\root")
    for name, wanted in WINDOWS.items():
        others = [f"sub/other {n}" for n in range(_WORTH_LISTING)] if many else []
        checked = check_paths(table(root, name, *others), SourceOptions())
        faults = [fault.text for fault in checked.faults if fault.row == 0]
        if faults:
            assert faults == [f"{checked.names[0]!r}: {wanted}"], name
        else:
            assert f"-> {checked.names[0]}" == wanted, name


@pytest.mark.parametrize("many", [False, True], ids=["alone", "in-bulk"])
def test_names_of_windows_on_windows(tmp_path: Path, many: bool) -> None:
    """They become those of Linux, and none leads out of the root, nor is a server asked."""
    for name in ("root/a.jpg", "root/sub/a.jpg", "root-2/a.jpg", "out.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    child = multiprocessing.get_context("fork").Process(
        target=check_windows_names, args=(tmp_path, many)
    )
    child.start()
    child.join(60)
    assert child.exitcode == 0
