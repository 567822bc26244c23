"""The figures of docs/ are those of benchmarks/results: tables and ratios are computed again."""

import json
import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def result(name: str) -> Any:
    """Return the result file of a benchmark."""
    return json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())


def page(name: str) -> str:
    """Return the text of a page of docs/, its lines joined."""
    return " ".join((ROOT / f"docs/{name}.md").read_text().split())


def table(name: str, head: str) -> dict[str, list[str]]:
    """Return the table whose first heading is `head`: first cell of a row -> its other cells."""
    text = (ROOT / f"docs/{name}.md").read_text()
    pattern = rf"^\| {re.escape(head)} \|.*\n\|[-:| ]+\|\n((?:\|.*\|\n)+)"
    (body,) = re.findall(pattern, text, re.MULTILINE)
    rows = [re.split(r" \| ", line.strip("| ")) for line in body.splitlines()]
    return {first: cells for first, *cells in rows}


def rounds_to(cell: str, value: float) -> bool:
    """Return whether the cell is the value, rounded to its digits; a half may go either way."""
    digits, _, exponent = cell.partition("e")
    unit = 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))
    return float(cell) == value or abs(float(cell) - value) <= 0.5001 * unit


def check(cells: str, values: Iterable[float]) -> None:
    """Assert that numbers separated by commas are these values, rounded."""
    for cell, value in zip(cells.replace(",", "").split(), values, strict=True):
        assert rounds_to(cell, value), (cells, value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_accuracy_of_the_loss(dtype: str) -> None:
    """Every cell of both tables of docs/loss.md."""
    rows = table("loss", rf"logits in {dtype}, \|x\|")
    measured = result("loss_accuracy_cpu")[dtype]
    assert list(rows) == list(measured)
    for name, cells in rows.items():
        for cell, errors in zip(cells, measured[name].values(), strict=True):
            check(cell, map(float, errors))


def test_the_speed_of_the_loss() -> None:
    """Every cell, in milliseconds."""
    columns = [
        ("1 threads, as it comes", "64 x 20, float32"),
        ("1 threads, as it comes", "256 x 1000, float32"),
        ("1 threads, as it comes", "1024 x 10000, float32"),
        ("1 threads, tuned", "1024 x 10000, float32"),
        ("2 threads, tuned", "1024 x 10000, float32"),
    ]
    measured = result("loss_speed_cpu")
    rows = table("performance", "float32, images x labels")
    assert len(rows) == 12
    for name, cells in rows.items():
        for cell, (setting, shape) in zip(cells, columns, strict=True):
            check(cell, [measured[setting][shape][name]["us"] / 1000])


def peers(task: str, *names: str) -> list[float]:
    """Return how many times as long each of them took."""
    seconds = {k: v["seconds"] for k, v in result("peers")["tasks"][task]["peers"].items()}
    return [seconds[name] / seconds["mlfinetune"] for name in names]


def test_the_ratios_side_by_side() -> None:
    """The third column of the table of docs/performance.md, row by row."""
    frozen = {row["name"]: row["s"] for row in result("frozen_head")}
    decode, copies = result("decode"), result("image_store")
    step = {row["way"]: row["ratio"] for row in result("train_step_cpu")["rows"]}
    cores = result("predict_cpu")["cores"]
    allocator = result("allocator")
    measured = [
        [frozen["every epoch, AdamW, 2 epochs"] / frozen["kept, L-BFGS"]],
        *(
            [decode[size][kind]["ratio"] for kind in ("eval", "train")]
            for size in ("500 x 375", "640 x 480", "4000 x 3000")
        ),
        [copies[size]["times as fast"] for size in ("1500 x 1000", "4000 x 3000")],
        [step["ours"]],
        [max(cores[n]["packed bfloat16"]["ratio"].values()) for n in ("1", "2")],
        [allocator[kind]["ratio"] for kind in ("frozen", "full")],
        peers("frozen", "fastai", "timm", "lightly-train", "transformers"),
        peers("finetune", "timm", "transformers", "fastai", "lightly-train"),
    ]
    rows = table("performance", "what").values()
    for cells, ratios in zip(rows, measured, strict=True):
        check(cells[1], ratios)


def test_the_table_names_scripts_and_results_that_are_there() -> None:
    for cells in table("performance", "what").values():
        script, kept = re.findall(r"`([^`]+)`", cells[-1])
        assert (ROOT / "benchmarks" / script).is_file()
        assert (ROOT / "benchmarks/results" / kept).is_file()


def test_the_large_head() -> None:
    rows = table("performance", "optimizer")
    for name, key in (("SGD with momentum", "sgd, batch 64"), ("AdamW", "adamw, batch 64")):
        ways = result("large_head")[key]
        chosen = (ways["whole"], ways["chunked, 1024 labels"])
        assert rows[name] == [f"{way['seconds']:.2f}, {way['MiB']}" for way in chosen]


TORCHVISION = "python -c 'import torchvision'"


def sentences() -> dict[str, list[str]]:
    """Return page -> numbers of its prose, computed from the results."""
    start = result("start_up")["median_s"]
    step = {row["way"]: row["ratio"] for row in result("train_step_cpu")["rows"]}
    million = result("metrics_speed")["1,000,000 x 80"]
    hundred = result("metrics_speed")["100,000 x 80"]
    precision = result("precision")
    off = precision["difference of probabilities"]
    workers = result("cpu_workers")["images_per_s"][-1]
    loss = result("loss_speed_cpu")
    speed = {
        setting: loss[f"1 threads, {setting}"]["1024 x 10000, float32"]
        for setting in ("as it comes", "tuned")
    }
    ratio = {k: v["ours"]["us"] / v["BCEWithLogits"]["us"] for k, v in speed.items()}
    split, large = result("split_balance")["100,000 x 100"], result("large_head")["sgd, batch 64"]
    head = result("head_path")
    heads = {row["name"].removeprefix("kept, "): row["mAP"] for row in result("frozen_head")}
    first = [row for row in head if row["iterations"] == 1]
    ridge = [row["mAP"] for row in head if row["iterations"] == 100]
    resize = result("resize")
    tuned = resize["finetuned"]
    thresholds = result("thresholds")
    boot = result("bootstrap")
    cover = boot["coverage"]
    calibration = result("calibration")
    small = [v for k, v in calibration.items() if k.startswith("normal") and k.endswith("N = 200")]
    peer = {k: v["mAP"] for k, v in result("peers")["tasks"]["finetune"]["peers"].items()}
    alike = result("look_alikes")
    sampling = result("sampling")
    rarest = {
        way: [sampling[size][way]["rarest"]["AP"] for size in ("300", "1,000", "2,586")]
        for way in sampling["300"]
    }
    allocator = result("allocator")
    views = result("views")

    def span(kind: str, key: str) -> str:
        values = [one[kind][key] for one in small]
        return f"{min(values):.3f} to {max(values):.3f}"

    def three(row: dict[str, float]) -> str:
        return ", ".join(f"{kind} {row[kind]:.3f}" for kind in ("squash", "crop", "pad"))

    def by_pictures(way: str, key: str = "mAP") -> str:
        values = [views[f"frozen, {pictures}"][way][key] for pictures in ("300", "1000", "all")]
        return ", ".join(f"{value:.3f}" for value in values)

    return {
        "performance": [
            f"first row of `mlfinetune predict`: {start['mlfinetune predict, first row']:.1f} s",
            f"`import torchvision` alone takes {start[TORCHVISION]:.1f} s",
            f"`mlfinetune --help` takes {start['mlfinetune --help']:.2f} s",
            f"`torch.compile` gains {step['ours compiled'] / step['ours']:.2f} times",
            f"takes {million['measure']['seconds']:.0f} s, where",
            f"takes {million['sklearn AP alone']['seconds']:.0f} s (`metrics_speed.py`",
            f"{100 * (1 - off['share above 0.01']):.1f} % of a frozen tagger's",
            f"difference is {off['largest']:.2f}, and mAP differs by "
            f"{precision['mAP']['bfloat16'] - precision['mAP']['float32']:.4f}",
            f"{workers['workers_0']:.2f}, {workers['workers_1']:.2f} and "
            f"{workers['workers_2']:.2f} images/s",
            f"ours takes {ratio['as it comes']:.2f} of the time",
            f"and {ratio['tuned']:.2f} of it where both are tuned",
        ],
        "decisions": [
            f"worst label is {100 * split['ours']['worst_error']:.2f} % off its share",
            f"package's {100 * split['iterstrat']['worst_error']:.2f} %",
            f"random split's {100 * split['random']['worst_error']:.1f} %",
            f"in {split['ours']['seconds']:.2f} s against {split['iterstrat']['seconds']:.2f} s",
            f"take {result('split_balance')['1,000,000 x 1,000']['ours']['seconds']:.1f} s",
            f"pickles {result('load_million')['list']['worker_pickle_bytes']} bytes",
            f"takes {large['chunked, 1024 labels']['seconds']:.2f} s instead of "
            f"{large['whole']['seconds']:.2f}, and {large['chunked, 1024 labels']['MiB']} MiB "
            f"instead of {large['whole']['MiB']}",
            *(
                f"{hundred[share]['measure / sklearn AP alone']:.2f}"
                for share in ("3.6% positive", "50% positive")
            ),
            f"{million['measure']['peak_beyond_table_mib']} MiB beside the table's "
            f"{million['measure']['table_mib']}",
            f"mAP of {heads['AdamW, 10 epochs']:.3f} in ten epochs and of "
            f"{heads['AdamW, 60 epochs']:.3f} in sixty, and L-BFGS from zero weights "
            f"{heads['L-BFGS']:.3f} with",
            f"reach {heads['AdamW, 10 epochs']:.3f} on pictures alone, "
            f"{heads['AdamW, 10 epochs, mirror images too']:.3f} on mirror images too",
            f"up to {max(r['mAP'] for r in head if r['iterations'] in (3, 10)):.3f}",
            f"{min(ridge):.3f} to {max(ridge):.3f}",
            f"ranks better still, {max(row['mAP'] for row in first):.3f}",
            f"between {min(row['macro_F1'] for row in first):.2f} and "
            f"{max(row['macro_F1'] for row in first):.2f}",
            three({k: resize["frozen"][f"{k}, 2 views"] for k in ("squash", "crop", "pad")}),
            *(three(row) for row in tuned.values()),
            *(
                f"{thresholds[f'normal, N = {n}']['macro_F1'][way]:.3f}"
                for n in (200, 5000)
                for way in ("raw", "global", "per_label")
            ),
            span("platt", "log_loss"),
            span("platt", "ece"),
            span("platt_alone", "log_loss"),
            span("none", "log_loss"),
            span("temperature", "log_loss"),
            f"{100 * cover['500 images']['mAP plain']['held']:.0f} % with 500 images",
            f"{100 * cover['2000 images']['mAP plain']['held']:.0f} % with 2,000",
            f"{100 * cover['500 images']['mAP']['held']:.0f} % and "
            f"{100 * cover['2000 images']['mAP']['held']:.0f} %",
            f"{boot['speed']['intervals']:.1f} s of one thread",
            f"takes {boot['speed']['scikit-learn, mAP alone']:.0f} s",
            f"{boot['large']['seconds']:.0f} s and {boot['large']['peak_beyond_mib']} MiB",
            f"mAP of {peer['mlfinetune']:.2f} from",
            f"{peer['mlfinetune-solved']:.2f} from a solved one",
            f"{100 * alike['copies_within']['recompressed']:.0f} % of the copies recompressed",
            f"{100 * alike['pictures_in_such_pairs'] / alike['pictures']:.0f} % of the pictures",
            f"{allocator['frozen']['ratio']:.2f} times the images a second",
            f"gains {by_pictures('mirror', 'gain')} of mAP",
            f"takes {1 / views['images/s']['mirror / plain']:.2f} times as long",
            f"with mirror images is {by_pictures('mirror')}; with pictures of 224 and 288 px, for "
            f"2.7 times the forward passes of plain ones, {by_pictures('224 and 288 px')}; with "
            f"both and their mirror images, for 5.3 times, "
            f"{by_pictures('224 and 288 px, mirror')}; 288 px alone, with the head of 224, "
            f"{by_pictures('288 px')}. Means of probabilities instead of logits score "
            f"{by_pictures('mirror, mean of probabilities')}.",
            *(
                ", ".join(f"{row['value']:.3f}" for row in rarest[way])
                for way in ("uniform", "balanced", "pos_weight", "asl")
            ),
            f"gains {rarest['AdamW, balanced'][0]['gain']:.3f} with 300 pictures, and loses "
            f"{-rarest['AdamW, balanced'][1]['gain']:.3f} with 1,000",
            f"takes {start['mlfinetune --help']:.2f} s where `python -c pass` takes "
            f"{start['python -c pass']:.2f} s",
        ],
    }


@pytest.mark.parametrize(
    ("name", "figure"), [(name, figure) for name, all_ in sentences().items() for figure in all_]
)
def test_prose_has_the_figures_that_were_measured(name: str, figure: str) -> None:
    assert figure in page(name)


def test_features_of_several_levels() -> None:
    """Every cell: mAP, and the interval of the difference from one level."""
    measured = result("levels")
    for name, cells in table("decisions", "features, frozen").items():
        for cell, size in zip(cells, ("300", "1000", "all"), strict=True):
            row = measured[size]["seed 0"].get(name)
            if row is None:
                assert cell == "--"
            else:
                check(cell, [row["mAP"], *row["interval"]])


def test_the_gain_of_a_second_level() -> None:
    """Frozen in every training set, fine-tuned at every seed: each interval is above 0."""
    sets = [found for sizes in result("levels").values() for found in sizes.values()]
    tuned = result("levels_tuned")["seeds"]
    assert all(row["interval"][0] > 0 for row in (*(found["2 levels"] for found in sets), *tuned))
    single = [found["1 level, together"] for found in sets]
    assert all(row["interval"][0] < 0 < row["interval"][1] for row in single)
    gains = [found["2 levels"]["difference"] for found in sets]
    together = [
        found["2 levels, together"]["mAP"] - found["1 level, together"]["mAP"] for found in sets
    ]
    last = [[run[levels]["epochs"][-1] for levels in ("1", "2")] for run in tuned]
    for figure in (
        f"gains {min(gains):.3f} to {max(gains):.3f} in {len(sets)} training sets",
        f"the second level gains {min(together):.3f} to {max(together):.3f}",
        *(f"{one:.3f} with one level and {two:.3f} with two" for one, two in last),
    ):
        assert figure in page("decisions")


def test_the_levers_of_fine_tuning() -> None:
    """Every cell: mAP after the first epoch, after the last one, of the head solved for again."""
    measured = result("finetune")["300 pictures, 160 px, seed 0"]
    rows = table("decisions", "fine-tuned, 300 pictures")
    assert {*rows, "solved head"} == set(measured)
    for name, (first, last, again) in rows.items():
        row = measured[name]
        check(f"{first} {last}", [row["epochs"][0], row["epochs"][-1]])
        assert (again == "--") == ("solved again" not in row)
        if again != "--":
            check(again, [row["solved again"]["mAP"]])
    text = page("decisions")
    assert f"solved head's {measured['solved head']['mAP']:.3f}" in text
    wide = measured["solved on six views"]
    for part in ("solved on wide crops", "solved again"):
        assert f"{wide[part]['mAP']:.3f}" in text
    noise = measured["recipe"]["epochs"][-1] - wide["epochs"][-1]
    assert f"its last epoch differs by {noise:.3f}" in text
    for views in ("", ", 1 view"):
        found = result("finetune")[f"300 pictures, 160 px, seed 1{views}"]
        recipe, start = found["recipe"], found["solved head"]["mAP"]
        ends = (recipe["epochs"][0], recipe["epochs"][-1], recipe["solved again"]["mAP"])
        first, last, again = (f"{mAP:.3f}" for mAP in ends)
        assert f"{first}, {last} and {again}, over {start:.3f}" in text
    one = result("finetune")["300 pictures, 160 px, seed 0, 1 view"]
    ends = (one["recipe"]["epochs"][-1], one["recipe"]["solved again"]["mAP"])
    start = one["solved head"]["mAP"]
    header = " ".join((ROOT / "configs/finetune.yaml").read_text().split())
    assert f"{ends[0]:.3f} and {ends[1]:.3f}, frozen {start:.3f}. See" in header
    first = one["recipe"]["epochs"][0]
    assert f"{first:.3f}, {ends[0]:.3f} and {ends[1]:.3f}, over a solved head's {start:.3f}" in text
    for seed in (0, 1):
        mixed = result("finetune")[f"300 pictures, 160 px, seed {seed}, 1 view"]["mixup 0.2"]
        figures = (mixed["epochs"][0], mixed["epochs"][-1], mixed["solved again"]["mAP"])
        assert "{:.3f}, {:.3f} and {:.3f}".format(*figures) in text
    other = result("finetune")["1000 pictures, 160 px, seed 0"]["BatchNorm estimated before"]
    assert f"cost {-other['adapted']['gain']:.3f} of mAP with 1,000 pictures" in text


def test_fine_tuning_at_224_pixels() -> None:
    """Every cell: mAP of each epoch, and of the head solved for again."""
    measured = result("finetune")["300 pictures, 224 px, seed 0"]
    rows = table("decisions", "300 pictures, 224 px")
    assert {*rows, "solved head"} == set(measured)
    for name, (epochs, again) in rows.items():
        check(epochs, measured[name]["epochs"])
        check(again, [measured[name]["solved again"]["mAP"]])
    starts = [row["epochs"][-1] - row["gain"] for name, row in measured.items() if name in rows]
    text = page("decisions")
    assert f"over its solved head's {starts[0]:.3f}" in text
    assert f"and its head {starts[-1]:.3f}" in text
    assert [round(start, 3) for start in starts] == [round(starts[0], 3)] * 3 + [
        round(starts[-1], 3)
    ] * (len(rows) - 3)


def test_heads_of_epochs() -> None:
    """Every cell: mAP of the solved head at the start, and of each epoch's; none is below it."""
    rows, measured = table("decisions", "a head for each epoch"), result("finetune")
    one, each = "300 pictures, {} px, seed {}, 1 view", "solved after each epoch"
    subsets = ("", ", second subset", ", third subset")
    wanted = {f"recipe{name}": (160, seed, each) for seed, name in enumerate(subsets)}
    wanted |= {
        "recipe, 224 px": (224, 0, each),
        "training goes on from its own head": (160, 0, f"{each}, trained head kept"),
        **{f"that, SAM 0.05{name}": (160, n, "SAM 0.05") for n, name in enumerate(subsets)},
        "that, SAM 0.2": (160, 0, "SAM 0.2"),
        **{
            f"that, {way}": (160, 0, way)
            for way in ("dropout 0.5", "asl", "teacher 0.5", "teacher 0.5 of negatives")
        },
    }
    assert list(rows) == list(wanted)
    for name, (side, seed, way) in wanted.items():
        found = measured[one.format(side, seed)]
        start, epochs = found["solved head"]["mAP"], found[way]["solved each"]
        check(rows[name][0], [start])
        check(rows[name][1], epochs)
        assert min(epochs) > start
    gains = [
        measured[one.format(160, seed)]["SAM 0.05"]["solved each"][-1]
        - measured[one.format(160, seed)][each]["solved each"][-1]
        for seed in range(3)
    ]
    least, most = (round(gain, 3) + 0.0 for gain in (min(gains), max(gains)))  # no -0.000
    assert f"(SAM) gain {least:.3f} to {most:.3f}" in page("decisions")
    above = [measured[one.format(160, seed)][each]["solved again"]["gain"] for seed in range(3)]
    assert "is {:.3f}, {:.3f} and {:.3f} above".format(*above) in page("decisions")
    joined = measured[one.format(160, 0)]["joined with the pretrained backbone"]
    two, own = joined["joined"]["mAP"], joined["solved again"]["mAP"]
    assert f"together has {two:.3f}, where the tuned one's has {own:.3f}" in page("decisions")
    means = [measured[one.format(160, n)]["mean of three runs"]["solved again"] for n in (0, 1)]
    assert "heads of {:.3f} and {:.3f} on".format(*(m["mAP"] for m in means)) in page("decisions")
    frozen = {key: row["frozen"]["mAP"] for key, row in result("recipe").items()}
    for key, row in result("recipe").items():
        assert min(row["recipe"]["epochs"]) > frozen[key]
    took = result("recipe")["all pictures, 160 px, seed 0"]["recipe"]["seconds"]
    assert f"on all pictures took {took} s" in page("decisions")


LINES = {
    "crop_scale": ("crops of 0.35, jitter 0.2", "whole pictures"),
    "horizontal_flip": ("no mirror images",),
    "# rand_augment": ("RandAugment 2, erasing 0.25",),
    "epochs": ("10 epochs", "20 epochs"),
    "batch_size": ("batches of 16",),
    "solve_head_first": ("a Kaiming-initialized head",),
    "ema": ("no ema",),
    "lr": ("rates halved", "rates doubled"),
    "layer_decay": ("no layer_decay",),
    "head_lr": ("head_lr 2e-4", "head_lr 0"),
    "weight_decay": ("no weight_decay",),
    "# pos_weight": ("pos_weight auto",),
    "label_smoothing": ("label smoothing 0.1",),
}
"""Key of configs/finetune.yaml -> ways of finetune.py that have another value of it."""


def test_each_line_of_the_recipe_has_its_figures() -> None:
    """The mAP after the last epoch and of the head solved for again, with another value."""
    measured = result("finetune")["300 pictures, 160 px, seed 0"]
    text = (ROOT / "configs" / "finetune.yaml").read_text()
    for key, ways in LINES.items():
        (comment,) = re.findall(rf"^  {key}: +\S.*?  # (.*)$", text, re.MULTILINE)
        for way in ways:
            row = measured[way]
            assert f"{row['epochs'][-1]:.3f}, {row['solved again']['mAP']:.3f}" in comment
    own = measured["recipe"]
    figures = f"{own['epochs'][-1]:.3f} and {own['solved again']['mAP']:.3f}"
    assert f"{figures}, frozen {measured['solved head']['mAP']:.3f}" in text


def test_the_gain_of_the_recipe() -> None:
    """Every cell: mAP, and the gain over a frozen run with its interval; all gains in the text."""
    measured, rows = result("recipe"), table("decisions", "160 px, 5 epochs")
    ways = ("frozen, one level", "frozen", "before", "recipe")
    subsets = {"0": "", "1": ", second subset"}
    assert len(rows) == len(measured)
    for key, found in measured.items():
        cells = rows[key.partition(",")[0] + subsets[key[-1]]]
        shown = {**found, "over": found["recipe"].get("over one level")}
        for cell, way in zip(cells, (*ways, "over"), strict=True):
            if shown.get(way) is None:
                assert cell == "--"
                continue
            row = shown[way]
            numbers = [row[part] for part in ("mAP", "gain") if part in row]
            check(re.sub(r"[(),+]", " ", cell), [*numbers, *row.get("interval", [])])
    gains = [row["recipe"]["gain"] for row in measured.values()]
    text = f"gains {min(gains):.3f} to {max(gains):.3f} over the frozen run of the same two levels"
    over = [row["recipe"].get("over one level") for row in measured.values()]
    gains = [one["gain"] for one in over if one]
    assert f"{text}, and {min(gains):.3f} to {max(gains):.3f} over that of one" in page("decisions")


def test_how_often_a_wanted_precision_holds() -> None:
    """Every cell of docs/metrics.md: the lowest threshold that reaches it, and ours."""
    measured = result("thresholds")["wanted_precision"]
    for wanted, cells in table("metrics", "wanted").items():
        rules = [measured[f"normal, N = 200, {wanted}"][name] for name in ("lowest", "ours")]
        for cell, key in zip(cells, ("kept", "worst", "recall"), strict=True):
            check(cell, [rule[key] for rule in rules])


def test_no_label_fails_a_wanted_precision_more_often_than_promised() -> None:
    """At most 20 % of the samples, in every world of the simulation."""
    measured = result("thresholds")["wanted_precision"]
    assert max(cell["ours"]["worst"] for cell in measured.values()) <= 0.2


def test_the_gain_and_the_cost_of_views() -> None:
    """Every cell of the table of docs/metrics.md; `plain` has no gain over itself."""
    measured, rows = result("views"), table("metrics", "`eval.views`")
    assert list(rows) == ["`plain`", "`mirror`"]
    for name, cells in rows.items():
        way = name.strip("`")
        for cell, pictures in zip(cells, ("300", "1000", "all"), strict=False):
            row = measured[f"frozen, {pictures}"][way]
            check(cell, [row["mAP"]] + [row["gain"], *row["interval"]] * (way == "mirror"))
        check(cells[-1], [measured["images/s"][way]])
    tuned = measured["fine-tuned"]["mirror"]
    low, high = tuned["interval"]
    assert f"`mirror` gains {tuned['gain']:.3f} ({low:.3f} to {high:.3f})" in page("metrics")


def test_the_luck_of_the_best() -> None:
    """Figures of docs/metrics.md; and estimates are right on average over the simulated cells."""
    measured, text = result("selection"), page("metrics")
    cells = [measured[f"N = {images}, 12 equal"] for images in (60, 200, 1000)]
    sentences = (
        (
            r"best was ([\d.]+) too high with 60 images, ([\d.]+) with 200 and ([\d.]+) with 1,000"
            r"; the estimates were on average ([\d.]+), ([\d.]+) and ([\d.]+) ",
            cells,
        ),
        (
            r"real pictures was ([\d.]+) too high with 60 of them, ([\d.]+) with 200 and ([\d.]+) "
            r"with 655; estimated were ([\d.]+), ([\d.]+) and ([\d.]+)\. ",
            measured["real, 28 heads"].values(),
        ),
    )
    for sentence, rows in sentences:
        found = re.search(sentence, text)
        assert found
        values = [row[key] for key in ("optimism", "estimated") for row in rows]
        check(" ".join(found.groups()), values)
    left = [cell["error_left"] for name, cell in measured.items() if name.startswith("N")]
    assert abs(sum(left) / len(left)) < 0.001


def test_the_coverage_of_intervals() -> None:
    """Every cell of the three tables of docs/metrics.md, and 90 % or more of each population."""
    coverage, averages = result("coverage"), result("bootstrap")["coverage"]
    assert min(coverage["smallest"].values()) >= 0.9
    for positives, cells in table("metrics", "positives").items():
        row = coverage["by positives"][positives]
        f1 = min(row[f"F1 {kind}, after"]["least"] for kind in ("half", "most"))
        for cell, name in zip(cells, ("AP, before", "AP, after"), strict=False):
            check(cell, row[name].values())
        check(f"{cells[2]} {cells[3]}", [row["AUROC, after"]["least"], f1])
    few = min(coverage["few negatives"].values())
    assert f"AUROC is held in {few:.2f} of the samples or more" in page("metrics")
    for sample, cells in table("metrics", "sample").items():
        for cell, name in zip(cells, ("mAP plain", "mAP"), strict=True):
            check(cell, [averages[sample][name][key] for key in ("held", "width")])
    names = ("good a round", "good with one positive", "good and right")
    for pictures, cells in table("metrics", "pictures").items():
        drawn = result("verdicts")["drawn"][pictures]
        for cell, when in zip(cells, ("before", "after"), strict=True):
            check(cell, [drawn[when][name] for name in names])


def test_what_helps_rare_labels() -> None:
    """Every cell of docs/loss.md: a number, and the ends of its gain over uniform sampling."""
    measured, columns = result("sampling"), (("all", "AP"), ("rarest", "AP"), ("rarest", "F1"))
    rows = table("loss", "training pictures: way")
    assert list(rows) == [f"{size}: {way}" for size, ways in measured.items() for way in ways]
    for name, cells in rows.items():
        size, way = name.split(": ")
        for cell, (labels, number) in zip(cells, columns, strict=True):
            row = measured[size][way][labels][number]
            keys = ("value",) if way.endswith("uniform") else ("value", "low", "high")
            check(" ".join(re.findall(r"[-+]?\d\.\d+", cell)), [row[key] for key in keys])
    solved = (measured[size][way]["rarest"]["AP"] for size in measured for way in measured[size])
    assert sum(row["low"] > 0 for row in solved) == 1, "only AdamW's, with 300 pictures"


def test_what_a_hierarchy_gains() -> None:
    """Every cell of docs/metrics.md, and the figures before it and in docs/decisions.md."""
    measured, rows = result("implies"), table("metrics", "parents' tags: mAP over")
    shares = {"as they are": "0", "30 % taken away": "0.3", "60 % taken away": "0.6"}
    assert len(rows) == 3 * len(shares)
    for name, (without, *cells) in rows.items():
        title, kind = name.split(": ")
        found = measured[shares[title]][kind]
        check(without, [found["without"]])
        for cell, way in zip(cells, ("targets", "raised", "implies"), strict=True):
            numbers = [found[way][key] for key in ("mAP", "low", "high")]
            check(" ".join(re.findall(r"[-+]?\d\.\d+", cell)), numbers)
    f1, counts = measured["0"]["F1"], measured["with_parent"].values()
    share = sum(have for have, _ in counts) / sum(all_ for _, all_ in counts)
    text = page("metrics")
    assert f"macro F1 of {f1['free']:.3f} over the labels of the hierarchy" in text
    assert f"with {f1['torn']:.1%}".replace("%", " %") in text
    assert f"children have {f1['raise children']:.3f}" in text
    assert f"ones of parents {f1['lower parents']:.3f}" in text
    assert f"There, {100 * share:.0f} % of the pictures" in text
    assert f"{len(counts)} children)" in text
    given = [f"{measured['0']['given'][way]:.3f}" for way in ("without", "implies")]
    assert f"mAP over parents is {given[0]} without and {given[1]} with" in text
    assert f"added parents {f1['add parents']:.3f}" in page("decisions")


def test_the_history_of_the_solver() -> None:
    """Differences of mAP, CPU time of few pictures, and means."""
    sets, text = result("solver_history"), page("decisions")
    assert len(sets) == 7
    most = max(abs(found["20"]["mAP"] - found["100"]["mAP"]) for found in sets.values())
    assert f"mAP differs by {most:.4f} at most" in text
    few = [found for key, found in sets.items() if key.startswith("300 ")]
    took = [sum(found[history]["cpu_s"] for found in few) for history in ("20", "100")]
    assert f"take {took[0]:.1f} s of one thread in place of {took[1]:.1f} s" in text
    for history in ("100", "20", "10"):
        mean = statistics.mean(found[history]["mAP"] for found in sets.values())
        assert f"{mean:.4f} with {history}" in text


def test_the_views_and_the_search_of_a_frozen_run() -> None:
    """Every cell of the table: means of mAP, on all of val and held out; and the gains."""
    sets, text = result("frozen_views"), page("decisions")
    for way in next(iter(sets.values())):
        cells = []
        for size in ("100 ", "300 ", "1000 ", "all "):
            found = [ways[way] for key, ways in sets.items() if key.startswith(size)]
            means = (statistics.mean(one[name] for one in found) for name in ("mAP", "held out"))
            cells.append(", ".join(f"{mean:.3f}" for mean in means))
        assert f"| {way} | {' | '.join(cells)} |" in text
    two, one = ([ways[f"{n}, from 10"] for ways in sets.values()] for n in ("2 views", "1 view"))
    gains = [statistics.mean(each["gain"] for each in way) for way in (two, one)]
    assert f"gains {gains[0]:.4f} of mAP over one from 1, " in text
    assert f"pictures alone {gains[1]:.4f}. " in text
    assert f"In {len(sets)} training sets" in text
    assert f"lost up to {max(each['gain'] for each in two):.3f}" in text
    f1 = statistics.mean(each["F1 gain"] for each in one)
    assert f"F1 is {-f1:.4f} lower" in text
    for each in (*two, *one):
        assert min(each["interval"][1], each["F1 interval"][1]) >= 0


def test_the_seconds_of_a_run() -> None:
    """The last line of a second run's log, and both runs as a whole."""
    measured, text = result("fixed_seconds"), page("performance")
    first, second = measured["first"], measured["second"]
    parts = ", ".join(f"{took:.1f} {name}" for name, took in second["parts_s"].items())
    assert f"seconds: {parts} " in text
    assert f"features: {second['wall_s']} s as a whole process" in text
    assert f"takes {first['wall_s']} s, and {first['parts_s']['features']} s of them" in text
    busy = [measured["beside_busy"][how]["parts_s"]["learning"] for how in BUSY]
    assert f"takes {busy[0]} s, with all threads for every product {busy[1]} s" in text


BUSY = ("as_it_is", "all_threads")


def test_the_cost_of_heat_maps() -> None:
    """A map, a prediction and three overlays; and the 24 maps of a page."""
    rows = {row["dtype"]: row for row in result("explain")["rows"] if row["levels"] == 1}
    half, full = rows["bfloat16"], rows["float32"]
    text = page("data")
    assert f"{half['map_s']:.3f} s of one core where the CPU computes in bfloat16" in text
    assert f"{full['map_s']:.3f} s in float32" in text
    assert f"prediction {half['predict_s']:.3f} and {full['predict_s']:.3f} s" in text
    assert f"pixels take {half['three_overlays_s']:.3f} s" in text
    totals = [row["prepare_s"] + 24 * row["map_s"] for row in (half, full)]
    assert f"{totals[0]:.1f} s of one core for 24 pictures in bfloat16" in page("metrics")
    assert f"in bfloat16, {totals[1]:.1f} s in float32" in page("metrics")


def test_the_size_of_the_pictures() -> None:
    """Every cell: mAP, the gain over the smallest size with its interval, and seconds."""
    measured = result("resolution")
    for key, found in measured.items():
        rows = table("decisions", key.rpartition(",")[0])
        for side, row in found.items():
            score, gain, seconds = rows[f"{side} px"]
            check(f"{score} {seconds}", [row["mAP"], row["seconds"]])
            assert (gain == "--") == ("gain" not in row)
            if gain != "--":
                check(re.sub(r"[(),+]", " ", gain), [row["gain"], *row["interval"]])


def test_the_cost_of_a_picture_in_python() -> None:
    """In the order of the result's rows; the promise is 1.3 at most."""
    found = re.search(
        r"costs ([\d.]+) times what .* in float32, ([\d.]+) times in bfloat16, and ([\d.]+) times",
        page("python"),
    )
    assert found is not None
    for shown, row in zip(found.groups(), result("python_door")["rows"], strict=True):
        assert rounds_to(shown, row["ratio"])
        assert row["ratio"] <= 1.3


def test_the_costs_of_an_exported_file() -> None:
    """Every cell of the table of docs/serve.md, and the two differences."""
    measured = result("export")
    kinds = ("checkpoint", "float32", "int8")
    for cells, kind in zip(table("serve", "file").values(), kinds, strict=True):
        rates = measured["images/s of one core"][kind].values()
        mean_ap = measured["mAP"].get(kind)
        assert (cells[1] == "-") == (mean_ap is None)
        found = [measured["MB"][kind], *([] if mean_ap is None else [mean_ap]), *rates]
        check(" ".join(cell for cell in cells if cell != "-"), found)
    (first, second) = re.findall(
        r"checkpoint was (\S+), on .* at most ([\d.]+), on", page("serve")
    )[0]
    assert rounds_to(first, measured["largest difference"])
    assert rounds_to(second, measured["script, largest difference"])


def test_what_chosen_pictures_gain() -> None:
    """Every cell of docs/next.md: mAP by number of labels, the gain over random and its error."""
    measured, rows = result("next"), table("next", "chosen by")
    assert list(rows) == list(measured["ways"])
    for way, found in measured["ways"].items():
        *values, gain = rows[way]
        check(" ".join(values), found["mAP"])
        check(gain.replace("±", ""), [found["gain"], found["standard_error"]])
    large, by_seed = result("next_large"), {k: v["by_seed"] for k, v in measured["ways"].items()}
    ahead = [sum(a) > sum(b) for a, b in zip(by_seed["next"], by_seed["random"], strict=True)]
    chosen, random = (measured["ways"][way]["mAP"] for way in ("next", "random"))
    for figure in (
        f"In {['no', 'one', 'two', 'three', 'four', 'five'][sum(ahead)]} of five seeds",
        f"{chosen[3]:.3f} with 600 chosen pictures, {random[4]:.3f} with 700 random ones",
        f"{large['GB_of_features']:.2f} GB of features and {large['GB_more_at_most']:.2f} GB",
        f"{large['cpu_seconds']:.0f} s of one core",
    ):
        assert figure in page("next")


def test_ways_to_go_on_with_other_labels() -> None:
    """Every cell: means over the draws; and how many pictures a split drawn anew moves."""
    measured = result("other_labels")
    means = {
        way: {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
        for way, rows in measured["labels"].items()
    }
    rows = table("labels-later", "mAP, frozen")
    assert list(rows) == list(means)
    for way, cells in rows.items():
        check(" ".join(cells).replace("--", ""), means[way].values())
    moved = {size: 100 * row["drawn anew"] for size, row in measured["split"].items()}
    assert f"moves {moved['2000 + 200']:.0f} % of its held-out" in page("labels-later")
    text = page("decisions")
    assert f"moves {moved['2000 + 200']:.0f} % of the held-out pictures" in text
    assert f"{moved['2000 + 20']:.0f} % where it gets 20" in text
    old = [means[way]["old"] for way in ("new table, run", "new table")]
    assert "score {:.3f} instead of {:.3f}".format(*old) in text
    assert all(row["first run known"] == 0 for row in measured["split"].values())


def test_the_suspects_and_the_near_duplicates() -> None:
    """Every cell of the tables of docs/suspects.md, and the figures of the decision."""
    measured, keys = result("suspects"), ("first 20", "first 50", "first 200", "found")
    for place, head in (("by frequency", "by frequency"), ("any label", "to any label")):
        for name, cells in table("suspects", f"wrong tags added {head}").items():
            for kind, cell in zip(("missing", "wrong"), cells, strict=True):
                check(cell, [measured[f"{place}, {kind}"][name][key] for key in keys])
    wrong = measured["by frequency, wrong"]
    assert f"the label's share {wrong['ours']['first 200']:.2f}" in page("decisions")
    near = result("near_duplicates")
    assert f"backbone, at least {near['bound']}" in page("suspects")
    rows = list(table("suspects", "similarity at least").values())
    kinds = ("JPEG 30", "20 % brighter", "cut by 3 % a side", "cut by 8 % a side", "half size")
    for column, bound in enumerate(("0.9", "0.95", "0.97", "0.98")):
        found = near["bounds"][bound]
        shares = [*(found["copies"][kind] for kind in kinds), found["copies_near_another_picture"]]
        check(" ".join(row[column] for row in rows), shares)


def test_the_honesty_of_cross_validation() -> None:
    """Every cell: what a way says, the truth, and mean and deviation of the error."""
    ways = {
        "a fifth held out": "plain",
        "crossval": "crossval",
        "crossval, without slopes": "without slopes",
    }
    measured, rows = result("crossval"), table("metrics", "n, number from")
    assert len(rows) == 3 * len(measured)
    for name, cells in rows.items():
        size, _, words = name.partition(", ")
        numbers, way = measured[size], ways[words]
        for cell, metric in zip(cells[::2], ("mAP", "macro_F1"), strict=True):
            check(cell, [numbers[f"{way} {metric} {kind}"] for kind in ("said", "truth")])
        for cell, metric in zip(cells[1::2], ("mAP", "macro_F1"), strict=True):
            check(cell.replace("+", ""), numbers[f"{way} {metric} error"])
    few = measured["300"]
    text = f"with 300 pictures thresholds of slopes score {few['crossval macro_F1 truth']:.3f}"
    assert f"{text} instead of {few['without slopes macro_F1 truth']:.3f}" in page("decisions")
    assert f"their mean is {few['crossval mean of folds']:.3f}" in page("metrics")
