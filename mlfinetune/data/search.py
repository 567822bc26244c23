"""Find pictures below a folder by their names, where the paths of a table do not fit the folder.

names that lead to no file -> one walk of the folder -> the file of each name, or why there is none

    a name in the table             files below the root         found
    C:\\data\\cats\\a.jpg           images/a.jpg                 images/a.jpg
    file:///home/me/my%20cat.jpg    images/my cat.jpg            images/my cat.jpg
    /content/drive/train/a.jpg      train/a.jpg, val/a.jpg       train/a.jpg: its folder decides
    IMG_1.JPG                       images/img_1.jpg             images/img_1.jpg
    img_1, or img_1.png             images/img_1.jpg             images/img_1.jpg
    x/1.jpg and y/1.jpg             1.jpg                        neither: two names of one file
    1.jpg                           a/1.jpg, b/1.jpg             neither of the two files
"""

import os
import re
import unicodedata
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from mlfinetune.data.images.names import DECODED, UNDECODED, is_hidden_name, is_image_name
from mlfinetune.location import to_slashes
from mlfinetune.text import quote_yaml

_PROTOCOL = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
_DRIVE = re.compile(r"[a-z]:", re.IGNORECASE)
_UPLOAD = re.compile(r"(?:/[\w.-]+)*/data/(?:upload|local-files)/")
_LABEL_STUDIO = "/?d="
_UPLOADED = re.compile("[0-9a-f]{8}-.")
"""Label Studio writes `/data/local-files/?d=a.jpg`, and eight digits before an upload's name."""
_ENDINGS = DECODED | UNDECODED.keys()
"""Endings that a table may write of a picture that lies there in another format."""
_KEPT_FILES = 4  # of one name, for a message


@dataclass
class Search:
    """Files that were found for the names of a table.

    Attributes:
        found: name -> its only file, relative to the root; each file has one name.
        several: name -> files among which nothing in the name decides.
        shared: name -> a file, and another name that leads to this file too.
        fits: folder below the root -> number of names that lead to a file from there as they are.
        holds: folder below the root -> number of names with a file of that name in it.
        unspelled: number of found names whose file has another case, or another ending.
        links: links that lead out of the root, relative to it, and so were not followed.
        is_complete: False where the walk stopped at its limit; nothing is found then.
    """

    found: dict[str, str] = field(default_factory=dict)
    several: dict[str, tuple[str, ...]] = field(default_factory=dict)
    shared: dict[str, tuple[str, str]] = field(default_factory=dict)
    fits: Counter[str] = field(default_factory=Counter)
    holds: Counter[str] = field(default_factory=Counter)
    unspelled: int = 0
    links: list[str] = field(default_factory=list)
    is_complete: bool = True


def search_files(
    root: str,
    names: Iterable[str],
    used: Mapping[str, str],
    limit: int,
    allow_outside: bool = False,
) -> Search:
    """Look for the file of each name below `root`, in one walk.

    The last part of a name is compared: as it is, then without regard to case, then without the
    ending of a picture. Among several files those in the folders of the name are taken.

    Args:
        root: the folder, a real path.
        names: names of a table that lead to no file.
        used: file, relative to the root -> the name of the table that leads to it.
        limit: number of entries after which the walk stops.
        allow_outside: follow links that lead out of the root.
    """
    groups: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in dict.fromkeys(names):
        groups[_list_forms(name)].append(name)
    keys, links = {_make_key(form) for forms in groups for form in forms}, list[str]()
    uploads = (forms for forms, group in groups.items() if any(map(is_upload, group)))
    stored = {_make_key(form) for forms in uploads for form in forms}
    files = _index_files(root, keys, stored, limit, None if allow_outside else links)
    search = Search(links=links, is_complete=files is not None)
    claims: defaultdict[str, list[str]] = defaultdict(list)
    for forms, group in groups.items():
        matches = _Matches(_match(forms, files or {}))
        for folder in {path[: max(0, path.rfind("/"))] for path in matches.paths}:
            search.holds[folder] += len(group)
        for name in group:
            closest = matches.narrow(split_name(name)[:-1])
            search.fits.update(_list_fitting_folders(name, closest))
            if _is_one_file(root, closest):
                claims[closest[0]].append(name)
            elif closest:
                search.several[name] = tuple(closest[:_KEPT_FILES])
    _settle_claims(search, claims, used)
    return search


def is_upload(name: str) -> bool:
    """Return whether a name is a path of Label Studio's server, which no other machine has."""
    return _UPLOAD.match(name) is not None


def split_name(name: str) -> list[str]:
    """Return folders and file name of a table's path: `C:\\a\\b.jpg` becomes `[a, b.jpg]`."""
    if _LABEL_STUDIO in name:
        name = unquote(name.partition(_LABEL_STUDIO)[2])
    elif ":" in name and _PROTOCOL.match(name):
        name = re.split("[?#]", name.partition(":")[2])[0]
    elif ":" in name and _DRIVE.match(name):
        name = name[2:]
    parts = name.replace("\\", "/").split("/")
    return [part for part in parts if part not in ("", ".", "..")]


def is_below(root: str, path: str) -> bool:
    """Return whether a real path is the real path `root`, or below it."""
    root, path = os.path.normcase(root), os.path.normcase(path)
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


def _settle_claims(
    search: Search, claims: Mapping[str, list[str]], used: Mapping[str, str]
) -> None:
    """Put each claimed file into `found`, or into `shared` where different names claim it.

    Names of the same folders and file are one name: `C:\\a\\1.jpg` and `C:/a/1.jpg`.
    """
    for path, names in claims.items():
        others = [*names, used[path]] if path in used else names
        if len(others) == 1 or len({tuple(map(_fold, split_name(name))) for name in others}) == 1:
            search.found.update(dict.fromkeys(names, path))
            is_spelled = _normalize(os.path.basename(path)) in _list_forms(names[0])
            search.unspelled += 0 if is_spelled else len(names)
            continue
        for name in names:
            other = next(other for other in reversed(others) if other != name)
            search.shared[name] = path, other


# ---- files ------------------------------------------------------------------------------


def _index_files(
    root: str, keys: set[str], stored: set[str], limit: int, links: list[str] | None
) -> dict[str, list[str]] | None:
    """Return the files below `root` by the keys of their names, those in `keys` alone.

    Keys in `stored` are those of names that a server gave: a file is also found by the name that
    it would have there. None: there are more than `limit` entries. For `links` see `_walk`.
    """
    files: defaultdict[str, list[str]] = defaultdict(list)
    for count, (folder, base) in enumerate(_walk(root, links)):
        if count >= limit:
            return None
        forms = [(base, keys), *([(_store_name(base), stored)] if stored else [])] if base else []
        if key := next((x for form, known in forms if (x := _make_key(form)) in known), None):
            files[key].append(folder + base)
    return files


def _walk(root: str, links: list[str] | None) -> Iterator[tuple[str, str]]:
    """Yield (folder, file name) of each file below `root`, and (folder, "") of other entries.

    A folder is relative to the root, and ends in `/`; the root's is empty. Hidden files and
    folders are left out. A link that leads out of the root is added to `links`, and not followed;
    None: it may lead anywhere. A folder is walked once, under its own name where it has one below
    the root.
    """
    waiting, linked, seen = deque([("", root)]), deque[tuple[str, str]](), set[str]()
    while waiting or linked:
        folder, real = (waiting or linked).popleft()
        if real in seen:
            continue
        seen.add(real)
        for entry in _list_entries(real):
            try:
                target = os.path.realpath(entry.path) if entry.is_symlink() else ""
                if target and links is not None and not is_below(root, target):
                    links += [folder + entry.name] * entry.is_dir()
                    yield folder, ""
                elif entry.is_dir():
                    place = (f"{folder}{entry.name}/", target or entry.path)
                    (linked if target else waiting).append(place)
                    yield folder, ""
                else:
                    yield folder, entry.name if entry.is_file() else ""
            except OSError:  # links that lead to each other
                yield folder, ""


def _list_entries(folder: str) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, sorted; hidden ones are left out."""
    try:
        with os.scandir(folder) as entries:
            listed = [entry for entry in entries if not is_hidden_name(entry.name)]
    except OSError:
        return []
    return sorted(listed, key=lambda entry: entry.name)


def _is_one_file(root: str, paths: Sequence[str]) -> bool:
    """Return whether the paths lead to one file; several do where they are links to it."""
    if len(paths) < 2:
        return bool(paths)
    first = os.path.realpath(os.path.join(root, paths[0]))
    return all(os.path.realpath(os.path.join(root, path)) == first for path in paths[1:])


class _Matches:
    """The files of one name."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths
        self._by_folder: defaultdict[str, list[str]] = defaultdict(list)
        if len(paths) > 1:  # a name such as image.jpg may be that of each picture
            for path in paths:
                self._by_folder[_fold(os.path.basename(os.path.dirname(path)))].append(path)

    def narrow(self, folders: Sequence[str]) -> Sequence[str]:
        """Return the files in the last folder of a name; if these are several, in the last two...

        Where none of the files lies in such a folder, the folder decides nothing.
        """
        wanted = [_fold(unquote(folder)) for folder in reversed(folders)]
        if not wanted or wanted[0] not in self._by_folder:
            return self.paths
        paths = self._by_folder[wanted[0]]
        for depth, folder in enumerate(wanted[1:], 3):
            parts_of = {path: path.split("/") for path in paths}
            closer = [
                path
                for path, parts in parts_of.items()
                if len(parts) >= depth and _fold(parts[-depth]) == folder
            ]
            if len(paths) == 1 or not closer:
                break
            paths = closer
        return paths


# ---- names ------------------------------------------------------------------------------


def _normalize(text: str) -> str:
    """Return the text in the Unicode form NFC."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _fold(text: str) -> str:
    """Return the text without regard to case and Unicode form."""
    return text.lower() if text.isascii() else _normalize(_normalize(text).casefold())


def _list_forms(name: str) -> tuple[str, ...]:
    """Return the file names that a path may mean: its last part, as it is, or unquoted."""
    parts = split_name(name)
    if not parts:
        return ()
    base = _normalize(parts[-1])
    forms = [base, _normalize(unquote(base))] if "%" in base else [base]
    forms += [form[9:] for form in forms if _UPLOADED.match(form)]
    return tuple(forms)


def _make_key(base: str) -> str:
    """Return the part of a file name by which files are looked up: without case and ending."""
    folded = _fold(base)
    stem, ending = os.path.splitext(folded)
    return stem if ending in _ENDINGS else folded


def _store_name(base: str) -> str:
    """Return a file's name as Django stores it, and so Label Studio: `a b (1).jpg`, `a_b_1.jpg`."""
    return re.sub(r"[^-\w.]", "", base.strip().replace(" ", "_"))


def _is_spelled_so(form: str, base: str) -> bool:
    return _normalize(base) == form


def _is_in_another_case(form: str, base: str) -> bool:
    return _fold(base) == _fold(form)


def _has_another_ending(form: str, base: str) -> bool:
    return os.path.splitext(base)[1].lower() in DECODED  # the key says that the stems are equal


_LIKENESS: tuple[Callable[[str, str], bool], ...] = (
    _is_spelled_so,
    _is_in_another_case,
    _has_another_ending,
)
"""Whether a file's name is that of the table, from the likest on."""


def _match(forms: Sequence[str], files: Mapping[str, list[str]]) -> list[str]:
    """Return the files whose names are likest to a name of the table.

    Args:
        forms: as `_list_forms` returns them.
        files: key of a file name -> the files with this key.
    """
    candidates = {form: files.get(_make_key(form), ()) for form in forms}
    for is_like in _LIKENESS:
        for form, paths in candidates.items():
            if like := [path for path in paths if is_like(form, os.path.basename(path))]:
                return like
    return []


def _list_fitting_folders(name: str, paths: Sequence[str]) -> Iterator[str]:
    """Yield each folder from which the name, as it is, leads to one of the files."""
    tail = "/" + _normalize(to_slashes(os.path.normpath(name)))
    for path in paths:
        if _normalize(path).endswith(tail):
            yield "/".join(path.split("/")[: -tail.count("/")])


# ---- hints ------------------------------------------------------------------------------


def word_hint(
    root: str, names: Sequence[str], search: Search, limit: int, is_none_there: bool
) -> str:
    """Return the line that says where the pictures are and which key finds them, or nothing.

    A folder for `data.images` is named only where no picture is where the table says: all names
    would be looked for there.
    """
    if not search.is_complete:
        return (
            f"more than {limit:,} files below {root}: not searched for these names; "
            f"data.find_by_name: true does it"
        )
    found, total = len(search.found), len(names)
    fitting = search.fits.most_common(2) if is_none_there else []
    if fitting and fitting[0][1] >= found:
        (folder, count), *others = fitting
        if others and others[0][1] == count:
            both = f"{folder}/ and below {others[0][0]}/"
            return f"{count} of {total} are there below {both}: set data.images to one of them"
        path = quote_yaml(os.path.join(root, folder))
        return f"{count} of {total} are there below {folder}/: set data.images: {path}"
    if not found and search.several and is_none_there:
        files = " and ".join(map(repr, next(iter(search.several.values()))[:2]))
        return (
            f"{len(search.several)} of {total} have several files of their name, as {files}: set "
            f"data.images to the folder of the pictures, with data.find_by_name: true"
        )
    if not found:
        return (_suggest_images(names) or _name_link(root, search)) if is_none_there else ""
    return (
        f"{found} of {total} are there {_describe_place(search)}; data.find_by_name: true finds "
        f"them by their names"
    )


def _describe_place(search: Search) -> str:
    """Return `as data.images/sub/<name>`, or where several folders hold the files, an example."""
    folders = {os.path.dirname(path) for path in search.found.values()}
    if len(folders) == 1:
        return f"as {os.path.join('data.images', *folders, '<name>')}"
    name, path = next(iter(search.found.items()))
    return f"below data.images, {name!r} as {path!r}"


def _name_link(root: str, search: Search) -> str:
    """Return the hint that a linked folder was not searched; empty where there is none."""
    if not search.links:
        return ""
    link = search.links[0]
    real = os.path.realpath(os.path.join(root, link))
    return (
        f"{link} is a link that leads out of the folder ({real}), not searched; "
        f"data.allow_outside_root: true permits it"
    )


def _suggest_images(names: Sequence[str]) -> str:
    """Return the hint where all names are absolute and lead to pictures outside the root."""
    if any(os.path.splitdrive(name)[0].startswith("//") for name in names) or not all(
        os.path.isabs(name) and is_image_name(Path(name)) and os.path.isfile(name) for name in names
    ):  # a server of Windows, //server/share, is not asked
        return ""
    try:
        folder = os.path.commonpath([os.path.dirname(name) for name in names])
    except ValueError:  # on several drives of Windows
        return ""
    count = f"{len(names)} of {len(names)}"
    return f"{count} are there below {folder}: set data.images: {quote_yaml(folder)}"
