"""The keys of a suite's YAML file: what `adpe.suites.suite_file` accepts, and what docs/suites.md says of them.

``python -m adpe.suites.schema`` writes the tables of docs/suites.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adpe.errors import UserError
from adpe.files import ROOT, atomic_write

PAGE = ROOT / "docs" / "suites.md"
START, END = "<!-- keys: start, written by python -m adpe.suites.schema -->", "<!-- keys: end -->"


@dataclass(frozen=True)
class Key:
    """A key: the value it takes, what stands in its place if it is left out, and what it is for.

    Attributes:
        default: None for a key that must be there.
    """

    value: str
    default: str | None
    text: str


_NAME = "text of letters, digits, spaces and `+ . _ -`"
_OPTIONS = "mapping of config variables to plain values; nested keys with dots"
_COST = Key("mapping", "unknown", "what one run takes, as somebody measured it; see below")
_NUMBER = "positive number"

SUITE = {
    "title": Key("text", None, "what the suite compares, in a line"),
    "text": Key("text", "empty", "what a reader has to know: sizes, equal conditions, where the data lies"),
    "gpus": Key("positive whole number", "1", "GPUs, or processes on a CPU, of one run"),
    "seeds": Key("list of whole numbers", None, "seeds of every run"),
    "pretraining_seeds": Key("list of whole numbers", "`seeds`", "seeds with a pretraining of their own; the other "
                             "seeds start from that of the first"),
    "shared_pretraining": Key(_NAME, "the suite's own folder", "folder beside the suite's in which its pretrainings "
                              "run, so that another suite that names it finds them"),
    "data": Key("mapping with `scenes`", "data that is there", "scenes to compose before the first run, at `{data}` in "
                "options; see below"),
    "methods": Key("list", None, "the encoders that are compared; see below"),
    "tasks": Key("list", "pretraining alone", "what every encoder is transferred to; see below"),
    "budgets": Key("mapping of names to mappings", "none", "other sizes of the suite, for `--budget NAME`; see below"),
    "claims": Key("list", "none", "published rows that the suite is to reproduce; see below"),
    "missing": Key("list", "none", "published rows without a config yet; see below"),
    "overview": Key("list", "none", "columns of one table over several tasks, in benchmarks/README.md; see below"),
}  # fmt: skip
METHOD = {
    "name": Key(_NAME, None, "the name in tables and, as a slug, in paths"),
    "pretraining": Key("path of a config", "none", "pretrains the encoder; with neither this nor `checkpoint` it "
                       "starts at random"),
    "epochs": Key(_NUMBER, "not said", "epochs of pretraining, for the record; the config or `options` set them"),
    "checkpoint": Key("path", "none", "an encoder that is there already, or `{encoder}`, which `--encoder` names; not "
                      "beside `pretraining`"),
    "options": Key(_OPTIONS, "none", "put into the pretraining's config"),
    "transfer": Key(_OPTIONS, "none", "put into every task's config: what this encoder needs, such as its `position`"),
    "cost": _COST,
}  # fmt: skip
TASK = {
    "name": Key(_NAME, None, "the name in tables and, as a slug, in paths"),
    "config": Key("path of a config", None, "trains or evaluates on the encoder"),
    "options": Key(_OPTIONS, "none", "put into the config"),
    "sweep": Key("mapping of variables to lists of numbers", "none", "every combination runs, for every method"),
    "reported": Key("mapping of the sweep's variables to a number", "the run without a sweep", "the point that runs "
                    "with every seed; must be there if `sweep` is"),
    "sweep_seeds": Key("list of whole numbers", "`seeds`", "seeds of the sweep's other points"),
    "seeds": Key("list of whole numbers", "the suite's", "the only seeds that this task runs with"),
    "methods": Key("list of names", "all", "the only methods that this task runs with"),
    "cost": _COST,
    "images": Key("mapping with `train` and `val`", "any", "images that a run must have seen for a claim to count"),
}  # fmt: skip
BUDGET = {
    "seeds": Key("list of whole numbers", "the suite's", "seeds of every run"),
    "epochs": Key(_NUMBER, "the methods' own", "epochs of pretraining, for the record; `pretraining` sets them"),
    "pretraining": Key(_OPTIONS, "none", "put over the options of every pretraining"),
    "tasks": Key("mapping of names to options", "all", "the tasks that run, with what is put over their options"),
    "jobs": Key("positive whole number", "1", "runs at a time"),
    "text": Key("text", "the suite's", "what this size is and shows"),
}
CLAIM = {
    "method": Key("name of a method", None, "the encoder"),
    "task": Key("name of a task", None, "the task"),
    "at": Key("point of the task's sweep", "`reported`", "the point at which the number was published"),
    "reproduces": Key("id of a row in `benchmarks/published/`", None, "the published row, which has its source"),
    "tolerance": Key("mapping of the row's metrics to numbers", None, "largest difference that counts as reproduced"),
    "tolerance_source": Key("text", None, "where the tolerance comes from"),
    "note": Key("text", "none", "what differs from the published run"),
}  # fmt: skip
MISSING = {
    "reproduces": Key("id of a row in `benchmarks/published/`", None, "the published row"),
    "reason": Key("text", None, "why no config claims it"),
}
OVERVIEW = {
    "task": Key("name of a task", None, "where the column comes from"),
    "metric": Key("name of a metric", None, "as `adpe.leaderboard.tasks` has it, such as `top1`"),
}
COST = {
    "gpu_hours": Key(_NUMBER, None, "GPU hours of one run, summed over its GPUs"),
    "gpu": Key("text", None, "the GPU that was used"),
    "source": Key("text", None, "who measured it, and how"),
}
IMAGES = {
    "train": Key(_NUMBER, "any", "training images"),
    "val": Key(_NUMBER, "any", "validation images"),
}
DATA = {"scenes": Key("mapping", None, "arguments of `adpe.data.scenes.write_scenes`; see below")}
SCENES = {
    "train": Key(_NUMBER, None, "annotated scenes for training"),
    "val": Key(_NUMBER, None, "annotated scenes for validation"),
    "unlabelled": Key(_NUMBER, None, "scenes without annotations, for pretraining"),
    "size": Key(_NUMBER, None, "side in pixels"),
}
SECTIONS = {
    "The suite": SUITE,
    "`methods[]`": METHOD,
    "`tasks[]`": TASK,
    "`budgets.NAME`": BUDGET,
    "`claims[]`": CLAIM,
    "`missing[]`": MISSING,
    "`overview[]`": OVERVIEW,
    "`cost`": COST,
    "`images`": IMAGES,
    "`data`": DATA,
    "`data.scenes`": SCENES,
}


def generated() -> str:
    """The tables of docs/suites.md: one for each mapping of a suite."""
    parts = []
    for title, keys in SECTIONS.items():
        lines = ["| Key | Value | If left out | What it is for |", "|---|---|---|---|"]
        for name, key in keys.items():
            lines.append(f"| `{name}` | {key.value} | {key.default or '**required**'} | {key.text} |")
        parts += [f"### {title}", "\n".join(lines)]
    return "\n\n".join(parts)


def render(text: str) -> str:
    """The page with its tables made anew.

    Raises:
        UserError: if it has not both markers, in order and once.
    """
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise UserError(f"{PAGE} must have the lines {START!r} and {END!r} once each and in this order.")
    before, _, rest = text.partition(START)
    return f"{before}{START}\n\n{generated()}\n\n{END}{rest.partition(END)[2]}"


def main(page: Path = PAGE) -> None:
    """Write the tables into the page."""
    with atomic_write(page) as temporary:
        temporary.write_text(render(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
