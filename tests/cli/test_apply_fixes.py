"""`mlfinetune apply-fixes`: counts, refusals, odd tables and odd lists; exit codes."""

import gzip
import json
import os
from pathlib import Path

import pytest
from conftest import Run
from test_mistakes import fails

TABLE = "image,labels\na.jpg,cat|dog\nb.jpg,dog\nc.jpg,fox\nd.jpg,cat|fox\n"
HEAD = "image,label,given,decision\n"


def review(folder: Path, decisions: str, table: str = TABLE) -> None:
    """Write t.csv and the list d.csv."""
    (folder / "t.csv").write_text(table)
    (folder / "d.csv").write_text(HEAD + decisions)


def apply(cli: Run, folder: Path, code: int = 0, name: str = "t.csv") -> tuple[str, str, str]:
    """Return the corrected table, and what was printed and said."""
    done = cli("apply-fixes", name, "d.csv", "-o", "f.csv", cwd=folder)
    assert done.returncode == code, done.stderr
    return (folder / "f.csv").read_text(), done.stdout, done.stderr


def test_counts_add_up(tmp_path: Path, cli: Run) -> None:
    """Each row of the list is counted once; what is not found is named, with exit code 3."""
    rows = "a.jpg,cat,1,accept\nb.jpg,fox,0,Yes\nb.jpg,fox,0,ok\nc.jpg,fox,0,x\n"
    rows += "c.jpg,cat,0,reject\nd.jpg,cat,1,\nd.jpg,dog,0,?\nz.jpg,dog,0,1\nd.jpg,foxx,1,accept\n"
    review(tmp_path, rows)
    fixed, out, err = apply(cli, tmp_path, 3)
    assert fixed == TABLE.replace("cat|dog", "dog").replace("b.jpg,dog", "b.jpg,dog|fox")
    counts = "1 added, 1 removed, 1 so already, 1 repeated, 1 rejected, 2 undecided, 2 not found"
    assert f"9 decisions: {counts}" in out
    assert "line 9: picture 'z.jpg' is not in the table" in out
    assert "label 'foxx' is not in the table; did you mean 'fox'?" in out
    assert "written: f.csv" in err
    assert (tmp_path / "t.csv").read_text() == TABLE


@pytest.mark.parametrize("name", ["t.csv", "d.csv", "link.csv", "hard.csv", "other.csv"])
def test_nothing_is_overwritten(tmp_path: Path, cli: Run, name: str) -> None:
    """Neither the table nor the list, through no link, nor any other file."""
    review(tmp_path, "a.jpg,cat,1,accept\n")
    (tmp_path / "link.csv").symlink_to("t.csv")
    os.link(tmp_path / "t.csv", tmp_path / "hard.csv")
    (tmp_path / "other.csv").write_text("")
    why = "already" if name == "other.csv" else "never changed"
    fails(cli("apply-fixes", "t.csv", "d.csv", "-o", name, cwd=tmp_path), name, why)
    assert (tmp_path / "t.csv").read_text() == TABLE


def test_contradictions_and_words_that_mean_nothing(tmp_path: Path, cli: Run) -> None:
    """All lines in one message, and nothing is written."""
    review(tmp_path, "a.jpg,cat,1,accept\n./a.jpg,cat,1,no\n")
    done = cli("apply-fixes", "t.csv", "d.csv", "-o", "f.csv", cwd=tmp_path)
    fails(done, "contradict", "lines 2 and 3: 'cat' of 'a.jpg'")
    review(tmp_path, "a.jpg,cat,1,perhaps\na.jpg,cat,maybe,yes\n,cat,1,yes\na.jpg\n")
    done = cli("apply-fixes", "t.csv", "d.csv", "-o", "f.csv", cwd=tmp_path)
    fails(done, "4 rows", "line 2: decision is 'perhaps'", "line 3: given is 'maybe'", "line 5: 1 ")
    (tmp_path / "d.csv").write_text("image,label,given,why\n")
    fails(cli("apply-fixes", "t.csv", "d.csv", "-o", "f.csv", cwd=tmp_path), "no column decision")
    assert not (tmp_path / "f.csv").exists()


def test_a_list_of_another_table(tmp_path: Path, cli: Run) -> None:
    """Where nothing fits, nothing is written; the names may be those of a run's config."""
    review(tmp_path, "x.jpg,cat,1,accept\ny.jpg,cat,1,\n")
    done = cli("apply-fixes", "t.csv", "d.csv", "-o", "f.csv", cwd=tmp_path)
    fails(done, "another table", "x.jpg", "a list from a run belongs into the run's folder")


def test_data_that_is_no_table(tmp_path: Path, cli: Run) -> None:
    """Other formats are refused, with a way to go on; a name that is read otherwise too."""
    review(tmp_path, "a.jpg,cat,1,accept\n")
    (tmp_path / "t.json").write_text(json.dumps([{"image": "a.jpg", "labels": ["cat"]}]))
    for name in ("t.json", "."):
        done = cli("apply-fixes", name, "d.csv", "-o", "f.csv", cwd=tmp_path)
        fails(done, "only a table", f"mlfinetune split {name}")
    fails(cli("apply-fixes", "t.csv", "d.csv", "-o", "f.json", cwd=tmp_path), "ends in .csv")
    fails(cli("apply-fixes", "no.csv", "d.csv", "-o", "f.csv", cwd=tmp_path), "no such table")
    fails(cli("apply-fixes", "t.csv", "no.csv", "-o", "f.csv", cwd=tmp_path), "no such file")


def test_an_export_of_label_studio(tmp_path: Path, cli: Run) -> None:
    """Its rows are annotations: it is refused, with a way to go on."""
    head = "image,id,choice,annotator,annotation_id,created_at,updated_at,lead_time\n"
    exported = head + "a.jpg,1,cat,1,9,2026-11-01,2026-11-01,3\nb.jpg,2,dog,1,8,2026-11-01,,3\n"
    review(tmp_path, "a.jpg,cat,1,accept\n", exported)
    done = cli("apply-fixes", "t.csv", "d.csv", "-o", "f.csv", cwd=tmp_path)
    fails(done, "export of Label Studio", "mlfinetune split")


def test_labels_that_hold_the_delimiter(tmp_path: Path, cli: Run) -> None:
    """They would be read as two labels: all such lines are named, and nothing is written."""
    review(tmp_path, "b.jpg,red|hot,0,accept\n")
    done = cli("apply-fixes", "t.csv", "d.csv", "-o", "f.csv", cwd=tmp_path)
    fails(done, "line 3: the label 'red|hot' holds '|'")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.csv", "t.csv"]


def test_the_first_second_label_of_a_table(tmp_path: Path, cli: Run) -> None:
    """A sign between labels is chosen that the table is then read with."""
    review(
        tmp_path, "a.jpg,dog,0,yes\n", "image,labels\na.jpg,cat\nb.jpg,dog\nc.jpg,cat\nd.jpg,dog\n"
    )
    fixed, _, err = apply(cli, tmp_path)
    assert "a.jpg,cat|dog" in fixed
    assert "now separated by '|'" in err


def test_columns_without_a_free_cell(tmp_path: Path, cli: Run) -> None:
    """The line is named; where a label has gone, its cell is free again."""
    table = "image,label1,label2\na.jpg,cat,dog\nb.jpg,dog,fox\nc.jpg,fox,\n"
    review(tmp_path, "a.jpg,fox,0,yes\n", table)
    done = cli("apply-fixes", "t.csv", "d.csv", "-o", "f.csv", cwd=tmp_path)
    fails(done, "line 2: each of its 2 columns of labels has one")
    review(tmp_path, "a.jpg,fox,0,yes\na.jpg,cat,1,yes\n", table)
    assert "a.jpg,fox,dog\n" in apply(cli, tmp_path)[0]


@pytest.mark.parametrize(
    ("cell", "fixed"),
    [
        ('"[""cat"", ""dog""]"', '"[""dog"", ""fox""]"'),
        ("\"['cat', 'dog']\"", "\"['dog', 'fox']\""),
        ('"{""choices"":[""cat"",""dog""]}"', '"{""choices"":[""dog"",""fox""]}"'),
        ("cat| dog |", "dog |fox |"),
    ],
)
def test_lists_as_other_tools_print_them(tmp_path: Path, cli: Run, cell: str, fixed: str) -> None:
    """They stay lists of the same kind."""
    table = f"image,labels\na.jpg,{cell}\nb.jpg,{cell}\nc.jpg,{cell.replace('cat', 'fox')}\n"
    review(tmp_path, "a.jpg,fox,0,yes\na.jpg,cat,1,yes\n", table)
    assert apply(cli, tmp_path)[0] == table.replace(f"a.jpg,{cell}", f"a.jpg,{fixed}")


def test_a_plain_cell_among_lists_and_a_column_that_has_the_label(tmp_path: Path, cli: Run) -> None:
    """A second label makes it a list as others are; of several columns the usual one gets it."""
    printed = '"{""choices"": [""cat"", ""dog""]}"'
    review(tmp_path, "a.jpg,fox,0,yes\n", f"image,labels\na.jpg,cat\nb.jpg,{printed}\nc.jpg,fox\n")
    assert f"a.jpg,{printed.replace('dog', 'fox')}\n" in apply(cli, tmp_path)[0]
    (tmp_path / "f.csv").unlink()
    table = "image,label1,label2\na.jpg,cat|dog,\nb.jpg,dog|cat,red|hot\nc.jpg,dog,hot\n"
    review(tmp_path, "a.jpg,red,0,yes\n", table)
    assert "a.jpg,cat|dog,red\n" in apply(cli, tmp_path)[0]


def test_a_list_that_excel_saved_and_a_packed_table(tmp_path: Path, cli: Run) -> None:
    """Semicolons below `sep=;`, UTF-16, cells with an apostrophe; .gz stays .gz."""
    table = "sep=;\r\nimage;labels\r\n=a.jpg;cat,+dog\r\n'b.jpg;+dog\r\nc.jpg;cat\r\n"
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(table.encode()))
    rows = (
        "sep=;\r\nDecision;Image;label;given\r\nJA;'=a.jpg;'+dog;1\r\nx;'b.jpg;cat;0,0\r\n;;;\r\n"
    )
    (tmp_path / "d.csv").write_text(rows, encoding="utf-16")
    done = cli("apply-fixes", "t.csv.gz", "d.csv", "-o", "f.csv.gz", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    fixed = gzip.decompress((tmp_path / "f.csv.gz").read_bytes()).decode()
    assert fixed == table.replace("cat,+dog", "cat").replace("b.jpg;+dog", "b.jpg;+dog,cat")


def test_the_words_of_a_column(tmp_path: Path, cli: Run) -> None:
    """A cell gets the usual word of its column; a label without a column is not found."""
    table = "image,cat,dog\na.jpg, Yes ,No\nb.jpg,No,\nc.jpg,Yes,No\n"
    review(tmp_path, "a.jpg,cat,1,y\nb.jpg,dog,0,y\nc.jpg,cow,0,y\n", table)
    fixed, out, _ = apply(cli, tmp_path, 3)
    assert fixed == "image,cat,dog\na.jpg, No ,No\nb.jpg,No,Yes\nc.jpg,Yes,No\n"
    assert "label 'cow' is not in the table" in out


def test_a_letter_that_the_encoding_lacks(tmp_path: Path, cli: Run) -> None:
    """A table in Windows-1252 holds no Cyrillic label: the way out is named."""
    review(tmp_path, "b.jpg,кот,0,accept\n")
    (tmp_path / "t.csv").write_text(TABLE + "e.jpg,Käfer|cat\n", encoding="cp1252")
    done = cli("apply-fixes", "t.csv", "d.csv", "-o", "f.csv", cwd=tmp_path)
    fails(done, "cp1252", "save it as UTF-8")


def test_suspects_of_a_run_with_renamed_labels(tmp_path: Path, cli: Run) -> None:
    """Beside a run's config its names of labels lead to those of the table."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "scores.npz").write_bytes(b"")
    (run / "config.yaml").write_text("data: {train: t.csv, rename_labels: {Kitty: cat, CAT: cat}}")
    review(tmp_path, "", "image,labels\na.jpg,Kitty|dog\nb.jpg,dog\nc.jpg,Kitty|CAT\n")
    (run / "d.csv").write_text(HEAD + "b.jpg,cat,0,yes\nc.jpg,cat,1,yes\na.jpg,dog,1,no\n")
    done = cli("apply-fixes", "t.csv", "run/d.csv", "-o", "f.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    fixed = "image,labels\na.jpg,Kitty|dog\nb.jpg,dog|Kitty\nc.jpg,\n"
    assert (tmp_path / "f.csv").read_text() == fixed
    assert "as in run/config.yaml" in done.stderr
    assert "1 picture without any label now" in done.stderr


def test_pictures_by_their_paths(tmp_path: Path, cli: Run) -> None:
    """A run over several tables names pictures from another folder than the table does."""
    (tmp_path / "new").mkdir()
    review(tmp_path, "new/b.jpg,fox,0,yes\nold/b.jpg,fox,0,yes\n")
    (tmp_path / "t.csv").rename(tmp_path / "new/t.csv")
    (tmp_path / "metrics.json").write_text(json.dumps({"images_root": str(tmp_path)}))
    fixed, out, _ = apply(cli, tmp_path, 3, "new/t.csv")
    assert fixed == TABLE.replace("b.jpg,dog", "b.jpg,dog|fox")
    assert "picture 'old/b.jpg' is not in the table" in out


@pytest.mark.parametrize("place", ["here", "moved", "without a config"])
def test_one_name_for_two_files_of_two_tables(tmp_path: Path, cli: Run, place: str) -> None:
    """The path of the list decides, also after a move: a tag never goes to the other file."""
    (tmp_path / "run").mkdir()
    (tmp_path / "new").mkdir()
    (tmp_path / "run/scores.npz").write_bytes(b"")
    review(tmp_path, "")
    (tmp_path / "new/t.csv").write_text(TABLE)
    for name in ("b.jpg", "new/b.jpg"):
        (tmp_path / name).write_text(name)
    old = Path("/gone/project") if place == "moved" else tmp_path
    (tmp_path / "run/metrics.json").write_text(json.dumps({"images_root": str(old)}))
    if place != "without a config":
        config = f"data: {{train: [{old}/t.csv, {old}/new/t.csv]}}\noutput: {old}/run\n"
        (tmp_path / "run/config.yaml").write_text(config)
    (tmp_path / "run/d.csv").write_text(HEAD + "b.jpg,fox,0,yes\nnew/b.jpg,cat,0,yes\n")
    for table, lost in (("t.csv", "new/b.jpg"), ("new/t.csv", "b.jpg")):
        done = cli("apply-fixes", table, "run/d.csv", "-o", f"{table[:-5]}f.csv", cwd=tmp_path)
        assert done.returncode == 3, done.stderr
        assert f"picture '{lost}' is not in the table" in done.stdout
    assert (tmp_path / "f.csv").read_text() == TABLE.replace("b.jpg,dog", "b.jpg,dog|fox")
    assert (tmp_path / "new/f.csv").read_text() == TABLE.replace("b.jpg,dog", "b.jpg,dog|cat")


@pytest.mark.parametrize("more", ["", "e.jpg,animal\n"])
def test_a_tag_that_follows_from_others(tmp_path: Path, cli: Run, more: str) -> None:
    """Those are named; once they go in the same list, it goes with them."""
    (tmp_path / "scores.npz").write_bytes(b"")
    config = "data: {train: t.csv, implies: {cat: pet, dog: pet, pet: animal, fox: animal}}"
    (tmp_path / "config.yaml").write_text(config)
    rows = "a.jpg,animal,1,yes\na.jpg,cat,1,yes\nc.jpg,animal,1,yes\nc.jpg,fox,1,yes\n"
    review(tmp_path, rows, TABLE + more)
    fixed, out, _ = apply(cli, tmp_path, 3)
    assert fixed == (TABLE + more).replace("cat|dog", "dog").replace("c.jpg,fox", "c.jpg,")
    assert "line 2: label 'animal' follows from 'dog' (data.implies)" in out
    assert "0 added, 2 removed, 1 so already, 1 not found" in out
