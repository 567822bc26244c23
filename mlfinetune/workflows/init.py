"""`mlfinetune init`: data -> its description -> a config that trains on it as it is.

table -> its pictures, found where they are -> bad ones named -> train and val -> lines, config
a folder of pictures without labels -> a table to fill in, and how to go on
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlfinetune.config import SCHEMA, SOLVED_HEADS, Config, build_config
from mlfinetune.config.template import Setting, fill_template, make_relative
from mlfinetune.data.blank_table import DELIMITER, has_lone_folder, write_blank_table
from mlfinetune.data.labels import natural_key
from mlfinetune.data.load import build_scan, build_source_options, build_split_options
from mlfinetune.data.locate import locate_pictures, refuse_other_val
from mlfinetune.data.manifest import Splits
from mlfinetune.data.proposal import list_choices, list_decisions, propose_unknown
from mlfinetune.data.read import read_tables, split_tables
from mlfinetune.data.rows import Scan, add_scan_faults, drop_faulty, list_skipped, raise_faults
from mlfinetune.data.sample import (
    describe_empty,
    describe_rows,
    list_frequent_labels,
    summarize,
)
from mlfinetune.data.table import Skipped, Table
from mlfinetune.data.unread import describe_blank_table, describe_tables_beside
from mlfinetune.errors import ConfigError, DataError
from mlfinetune.location import TABLE_ENDINGS, find_ending
from mlfinetune.runtime.log import RunLog
from mlfinetune.runtime.machine import has_gpu
from mlfinetune.storage.atomic import try_writing_file, write_atomic
from mlfinetune.text import display_path, format_list, make_printable, pluralize
from mlfinetune.training.bottleneck import GOES_WITH, Passes, choose_way

_SAID_OTHERWISE = (": all labels absent", "found, all used", "held out for validation")
"""Parts of notes of the split that the description says in words of its own."""
_CHOICES = (*SOLVED_HEADS, "optimizer", "layer_decay", "lr", "ema", "early_stopping")
_WAY_KEYS = {"model.freeze_backbone", *(f"train.{name}" for name in _CHOICES)}
"""Keys by which a user chooses what learns, and how."""


@dataclass(frozen=True)
class InitRequest:
    """Arguments of `mlfinetune init`.

    Attributes:
        data: table, or folder of pictures.
        overrides: texts `section.key=value`.
        images: root of the table's paths.
        output: the config to write; None: NAME.yaml in the current folder.
        table: a table to write in place of a config, for the pictures of a folder.
    """

    data: Path
    overrides: tuple[str, ...] = ()
    images: Path | None = None
    output: Path | None = None
    table: Path | None = None


@dataclass(frozen=True)
class InitResult:
    """The file that was written, the description of the data, line by line, and how to go on."""

    file: Path
    lines: tuple[str, ...]
    next_step: str


@dataclass(frozen=True)
class _Plan:
    """A config as far as it is decided, what of it goes into the file, and lines that say why."""

    config: Config
    settings: tuple[Setting, ...] = ()
    lines: tuple[str, ...] = ()

    def decide(self, line: str, *settings: Setting) -> "_Plan":
        """Return the plan with more keys, and the line that says so."""
        config = self.config
        for setting in settings:
            section, _, name = setting.key.partition(".")
            config = config.update_section(section, **{name: setting.value})
        return _Plan(config, (*self.settings, *settings), (*self.lines, line))


def run(request: InitRequest, log: RunLog) -> InitResult:
    """Describe a data set, and write a config for it; pictures that cannot be read are skipped.

    A folder of pictures without labels gets a table to fill in, and no config.

    Args:
        request: the arguments.
        log: shows the progress of decoding.

    Raises:
        ConfigError: the file to write exists, or an override has faults.
        DataError: data that cannot be used.
    """
    if request.table is not None:
        return _write_table_to_fill(request, request.table)
    file = request.output or Path(f"{_name_after(request.data)}.yaml")
    if file.exists():
        raise ConfigError(f"{file} is there already; choose another with --output")
    try_writing_file(file)
    plan = _Plan(_build_config(request))
    tables = _read(plan.config)
    if not len(tables[0].labels) or (len(tables) == 1 and has_lone_folder(tables[0])):
        return _go_on_without_labels(request, tables[0])
    plan, tables = _find_pictures(request, plan, tables)
    scan = build_scan(plan.config, log)
    checked = [_drop_bad_pictures(request, table, scan) for table in tables]
    tables, skipped = [table for table, _ in checked], [s for _, bad in checked for s in bad]
    if plan.config.data.unknown == "ignore" and (proposal := propose_unknown(tables)):
        plan = plan.decide(*proposal)
    options, split_options = build_source_options(plan.config), build_split_options(plan.config)
    val_table = tables[1] if len(tables) > 1 else None
    splits = split_tables(tables[0], val_table, options, split_options, scan)
    plan = _choose_way(request, plan, splits)
    lines = _describe_data(request, plan, tables, splits, skipped)
    text = _write_config(request, plan, file, tables[0], splits, lines, skipped)
    write_atomic(file, text.encode(errors="surrogateescape"))
    return InitResult(file, tuple(lines), _name_next_step(file, splits))


def _name_after(data: Path) -> str:
    """Return the name that files about the data get: that of the folder or table."""
    path = data.with_suffix("") if data.suffix == ".gz" else data
    return (data.resolve().name if data.is_dir() else path.stem) or "config"


def _build_config(request: InitRequest) -> Config:
    """Return the config that the arguments alone give.

    Raises:
        ConfigError: an override has faults, or repeats an argument; no such folder of pictures.
    """
    tree = {"data": {"train": str(request.data)}}
    given = {key for key in _list_keys(request.overrides) if key in ("data.train", "data.images")}
    if "data.train" in given or (request.images is not None and "data.images" in given):
        raise ConfigError(f"{' and '.join(sorted(given))}: an argument of init says so already")
    if request.images is not None:
        if not request.images.is_dir():
            raise ConfigError(f"--images {request.images}: no such folder")
        tree["data"]["images"] = str(request.images.absolute())
    return build_config(tree, request.overrides)


def _list_keys(overrides: Sequence[str]) -> list[str]:
    """Return the keys that overrides set, with their sections; what is below a key counts to it."""
    return [".".join(text.partition("=")[0].split(".")[:2]) for text in overrides]


def _read(config: Config) -> list[Table]:
    """Return the table of train, and that of val where the config names one."""
    tables = read_tables(config.data.train, config.data.val, build_source_options(config))
    return [table for table in tables if table is not None]


# ---- no labels --------------------------------------------------------------------------


def _go_on_without_labels(request: InitRequest, table: Table) -> InitResult:
    """Write a table to fill in for a folder of pictures.

    Raises:
        DataError: another kind of data, or a folder that holds tables: what to do with them.
    """
    data = request.data
    raise_faults(table, [fault for fault in table.faults if not fault.picture])
    if not data.is_dir() or table.format != "folder":
        read = "; ".join(note for note in table.notes if note.startswith("labels in"))
        raise DataError(
            f"{table.origin}: none of {pluralize(len(table), 'picture')} has a label yet"
            f"{f' ({read})' if read else ''}; fill them in, several separated by '{DELIMITER}', "
            f"then: {_format_command(request, data, request.images)}"
        )
    endings = (*TABLE_ENDINGS, ".json", ".parquet")
    inside = sorted(path for path in data.iterdir() if find_ending(path) in endings)
    if inside:
        commands = [_format_command(request, path, None) for path in inside]
        raise DataError(
            f"{data}: folders tell no labels apart, and there is a table beside the pictures; name "
            f"it, or write one to fill in with --table:\n{format_list(commands)}"
        )
    result = _write_table_to_fill(request, Path(f"{_name_after(data)}.csv"))
    if not table.labels.names:
        return result
    why = (
        f"folder '{table.labels.names[0]}' would be the only label, and one label alone teaches "
        f"nothing: a table to fill in is written"
    )
    return replace(result, lines=(why, *result.lines))


def _write_table_to_fill(request: InitRequest, file: Path) -> InitResult:
    """Write a table with a row for each picture of a folder.

    Raises:
        ConfigError: `--table` for a table or with `--images`, or a file that exists.
        DataError: there is no picture.
    """
    if not request.data.is_dir():
        raise ConfigError(f"--table is for a folder of pictures; {request.data} is none")
    if request.images is not None:
        raise ConfigError("--table names the pictures of DATA; leave out --images")
    if file.exists():
        command = _format_command(request, file, None)
        raise ConfigError(
            f"{file} is there already; fill it in, then: {command}; or choose another with --table"
        )
    try_writing_file(file, "--table")
    blank = write_blank_table(request.data, file)
    options = [text for text in request.overrides if not text.startswith("data.format=")]
    sidecar = replace(request, overrides=(*options, "data.format=sidecar"))
    lines = describe_blank_table(blank, request.data, _format_command(sidecar, request.data, None))
    command = _format_command(request, file, blank.images)
    step = f"fill in its column labels, several separated by '{DELIMITER}', then: {command}"
    return InitResult(file, tuple(lines), step)


def _format_command(request: InitRequest, data: Path, images: Path | None) -> str:
    """Return the command that reads other data, or other pictures, with the other arguments."""
    options = [o for o in request.overrides if data == request.data or "data.format=" not in o]
    words = ["mlfinetune", "init", display_path(data), *options]
    words += [] if images is None else ["--images", display_path(images)]
    words += [] if request.output is None else ["--output", str(request.output)]
    return shlex.join(words)


# ---- pictures ---------------------------------------------------------------------------


def _find_pictures(
    request: InitRequest, plan: _Plan, tables: list[Table]
) -> tuple[_Plan, list[Table]]:
    """Return the plan and the tables with the pictures where they are.

    Raises:
        DataError: several folders have them.
    """
    place = locate_pictures(tables[0], build_source_options(plan.config))
    if place is None:
        return plan, tables
    if len(place.folders) > 1:
        commands = [_format_command(request, request.data, path) for path in place.folders]
        raise DataError(
            f"{tables[0].origin}: its {place.count} pictures are in {len(place.folders)} folders "
            f"alike; choose one:\n{format_list(commands)}"
        )
    (folder,) = place.folders
    for val in tables[1:]:
        refuse_other_val(place, val, build_source_options(plan.config))
    settings = [Setting("data.images", folder, "the paths of the table begin here")]
    if place.by_name:
        why = "by their file names, not by the paths of the table"
        settings.append(Setting("data.find_by_name", True, why))
    line = f"pictures in {display_path(folder)}/: {place.count} of {place.total}"
    plan = plan.decide(line, *settings)
    return plan, _read(plan.config)


def _drop_bad_pictures(
    request: InitRequest, table: Table, scan: Scan
) -> tuple[Table, list[Skipped]]:
    """Return the rows whose pictures decode, and the pictures that do not.

    Raises:
        DataError: a row itself is wrong, or no picture can be read.
    """
    raise_faults(table, [fault for fault in table.faults if not fault.picture])
    table, missing = drop_faulty(table)
    scanned = scan([table.path(row) for row in range(len(table))])
    table, unreadable = drop_faulty(add_scan_faults(table, scanned.bad))
    skipped = sorted([*missing, *unreadable], key=lambda picture: natural_key(picture.place))
    if skipped and not len(table):
        command = _format_command(request, request.data, Path("DIR"))
        advice = table.hint or f"where they are elsewhere, name their folder: {command}"
        place = f"; they were looked for under {table.root}"
        if not missing:  # each is there, and its own line says what to do
            place = advice = ""
        raise DataError(
            f"{table.origin}: none of {pluralize(len(skipped), 'picture')} can be read{place}\n"
            f"{list_skipped(skipped)}\n{advice}".rstrip()
        )
    return table, skipped


# ---- the description --------------------------------------------------------------------


def _describe_data(
    request: InitRequest,
    plan: _Plan,
    tables: Sequence[Table],
    splits: Splits,
    skipped: Sequence[Skipped],
) -> list[str]:
    """Return lines for the size, the split, all notes, labels, a row, and bad pictures."""
    table = tables[0]
    said = {f"train: {note}" for note in table.notes}
    notes = [note for note in splits.notes if note not in said]
    lines = [
        *summarize(tables, splits, plan.config.data.val_fraction),
        *table.notes,
        *plan.lines,
        *_describe_beside(request, plan, splits),
        list_frequent_labels(splits),
        *describe_rows(table)[-1:],  # its labels are in the line above
        *describe_empty(table, plan.config.data.empty_labels, plan.config.data.unknown),
        *(note for note in notes if not any(part in note for part in _SAID_OTHERWISE)),
    ]
    if skipped:
        count = pluralize(len(skipped), "more picture")
        lines.append(f"{count} cannot be read, to be skipped\n{list_skipped(skipped)}")
    else:
        lines.append("every picture can be read")
    return lines


def _describe_beside(request: InitRequest, plan: _Plan, splits: Splits) -> list[str]:
    """Return a line on tables of other splits beside the one that is read."""
    table = request.data
    if table.is_dir() or plan.config.data.val is not None or not splits.drawn:
        return []
    command = _format_command(replace(request, images=None), table.parent, None)
    return describe_tables_beside(table, command)


def _name_next_step(file: Path, splits: Splits) -> str:
    """Return the command to go on with: training, unless there is nothing to learn."""
    name = shlex.quote(display_path(file))
    positives, negatives, _ = splits.train.targets.counts()
    if ((positives > 0) & (negatives > 0)).any():
        return f"mlfinetune train {name}"
    return (
        f"no label has pictures with it and pictures without it, so that nothing can be learned "
        f"yet; add pictures, then mlfinetune check {name}"
    )


# ---- the config -------------------------------------------------------------------------


def _write_config(
    request: InitRequest,
    plan: _Plan,
    file: Path,
    table: Table,
    splits: Splits,
    lines: Sequence[str],
    skipped: Sequence[Skipped],
) -> str:
    """Return the text of the config; paths in it are relative to its own folder."""
    name = make_printable(shlex.quote(file.name))
    head = [
        f"yaml-language-server: $schema={SCHEMA}",
        f"{lines[0]}; {lines[1]}",
        f"mlfinetune train {name}            every key is in the schema above",
        f"mlfinetune check {name}            copies, look-alikes, odd labels",
    ]
    settings = [
        Setting("data.train", request.data),
        Setting("data.format", table.format, is_comment=True),
        *plan.settings,
        *list_choices(table),
        *list_decisions(table, splits, len(skipped), plan.config.data),
        Setting("output", f"runs/{file.stem}", is_comment=True),
        *_list_overrides(request, plan),
    ]
    folder = file.absolute().parent
    return fill_template(head, (make_relative(setting, folder) for setting in settings))


def _choose_way(request: InitRequest, plan: _Plan, splits: Splits) -> _Plan:
    """Return the plan with the way of training that suits pictures and machine."""
    if plan.config.model.weights is None or _WAY_KEYS & set(_list_keys(request.overrides)):
        return plan
    passes = Passes(len(splits.train), len(splits.val), plan.config.train.epochs)
    key, why = choose_way(passes, len(splits.train.labels), has_gpu())
    if key is None:
        return plan.decide(why)
    more = (Setting(name, value) for name, value in GOES_WITH.get(key, {}).items())
    return plan.decide(f"{key}: true; {why}", Setting(key, True, why), *more)


def _list_overrides(request: InitRequest, plan: _Plan) -> list[Setting]:
    """Return the keys that the user gave, with their values; not those decided otherwise since."""
    keys = [*_list_keys(request.overrides), *(["data.images"] if request.images else [])]
    decided, settings = {setting.key for setting in plan.settings}, []
    for key in dict.fromkeys(keys):
        section, _, name = key.rpartition(".")
        value = getattr(getattr(plan.config, section) if section else plan.config, name)
        if key not in decided:
            settings.append(Setting(key, value, "as given to init"))
    return settings
