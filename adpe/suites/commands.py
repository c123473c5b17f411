"""Command line of `tools/benchmark.py`."""

from __future__ import annotations

import argparse
import os
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adpe.errors import UserError, print_error, require
from adpe.files import ROOT
from adpe.option_values import OptionAction
from adpe.suites import record_commands
from adpe.suites.record_commands import SUITES_DIR, say
from adpe.suites.suite import expand, suite_files

# A table needs neither torch nor mmengine nor rich: they are imported by the commands that do.
if TYPE_CHECKING:
    from adpe.suites.slurm_runner import Cluster
    from adpe.suites.suite import Run, Suite


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit status: 0, 1 if something failed or is stale, 2 for a user's mistake."""
    args = _parser().parse_args(arguments)
    try:
        if args.command in (_run, record_commands.protocol, record_commands.check):
            require("torch", "requirements/runtime.txt")
            require("mmengine", "requirements/mm.txt")
        return int(args.command(args))
    except (UserError, OSError) as error:
        print_error(error)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Suites, leaderboard and comparison of recorded runs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        return sub

    run = add("run", _run, "Execute a suite; finished runs are not repeated, interrupted ones resume.")
    run.add_argument("suite", help=f"one of {', '.join(suite_files())}, or the path of a YAML file")
    run.add_argument("--dry-run", action="store_true", help="print the commands from start to finish, and the cost")
    run.add_argument("--work-dir", default=SUITES_DIR, help=f"folder of all suites' runs (default: {SUITES_DIR})")
    run.add_argument("--gpus", type=_positive, help="of every run, instead of the suite's")
    run.add_argument("--jobs", type=_positive, help="runs at a time; default: 1, or as the budget says")
    run.add_argument("--budget", metavar="NAME", help="another size of the suite, of those that its file declares")
    run.add_argument("--seeds", type=int, nargs="+", default=[], help="only these of the suite's seeds")
    run.add_argument("--encoder", metavar="FILE", help="the encoder of a suite that takes one, such as real_weights: "
                     "any file that adpe.load_encoder reads")  # fmt: skip
    run.add_argument("--name", help="of that encoder in tables and paths; default: the file's")
    run.add_argument("--data-root", metavar="FOLDER", help="your data instead of those that the suite brings, in the "
                     "layout of ADE20K with COCO's instances_{training,validation}.json")  # fmt: skip
    run.add_argument("--slurm", metavar="PARTITION", help="submit batch jobs instead of starting processes")
    run.add_argument("--gpus-per-node", type=_positive, default=8)
    run.add_argument("--cpus-per-task", type=_positive, default=5, help="of a Slurm job, for each GPU")
    run.add_argument("--time", help="limit of a Slurm job, such as 2-00:00:00; a longer run is requeued and resumes")
    run.add_argument("--account", help="of Slurm")
    run.add_argument("--sbatch-args", default="", help="further ones, such as --sbatch-args='--qos=long --mem=64G'")
    for name, text in (("pretraining", "every pretraining"), ("task", "every transfer; TASK:KEY=VALUE for one task")):
        run.add_argument(f"--{name}-options", nargs="+", action=OptionAction, metavar="KEY=VALUE", help=f"for {text}")

    prepare = add("prepare", _prepare, "Write the data that a suite brings itself; `run` does it too.")
    prepare.add_argument("suite")
    prepare.add_argument("--work-dir", default=SUITES_DIR)

    def add_records(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--records", nargs="+", metavar="PATH", help="record files, or folders to look for them; "
                         "default: benchmarks/records and work_dirs/suites")  # fmt: skip

    for name, command, text in (
        ("table", record_commands.table, "The leaderboard as text."),
        ("page", record_commands.page, "The leaderboard as one HTML file."),
    ):
        sub = add(name, command, text)
        add_records(sub)
        sub.add_argument("--baseline", default="random", help='a start, method or row "method (start)" to compare with')
        sub.add_argument("--no-published", action="store_true", help="only our runs")
        if name == "table":
            sub.add_argument("--format", choices=["terminal", "markdown", "csv", "latex"], default="terminal")
        sub.add_argument("--out", required=name == "page", help="file to write")

    sub = add("compare", record_commands.compare, "Whether A differs from B, and how sure that is, in words.")
    sub.add_argument("a", help='a run, a row "method (start)", a method, a run\'s folder or a record file')
    sub.add_argument("b")
    sub.add_argument("--resamples", type=_positive, default=1000, help="of the bootstrap over images")
    add_records(sub)

    sub = add("protocol", record_commands.protocol, "The resolved protocol of a config, as JSON with its fingerprint.")
    sub.add_argument("config", help="a config file; it is Python, and is executed")
    sub.add_argument("--cfg-options", nargs="+", action=OptionAction, metavar="KEY=VALUE", help="change the config")

    sub = add("check", record_commands.check, "Which published rows we claim to reproduce, and whether we do.")
    sub.add_argument("suites", nargs="*", help="all if none is given")
    add_records(sub)

    sub = add("metafile", record_commands.metafile, "OpenMMLab's metafile.yml and model-index.yml.")
    sub.add_argument("--out", required=True, help="folder to write them to")
    add_records(sub)

    sub = add(
        "collect", record_commands.collect, "Copy the records of a suite's runs to benchmarks/records, to be committed."
    )
    sub.add_argument("folder", help="of the suite's runs, such as work_dirs/suites/small")
    sub.add_argument("--out", help="file to add them to; default: benchmarks/records/NAME OF THE FOLDER.jsonl")

    sub = add("readme", record_commands.readme, "Write the tables of benchmarks/README.md anew.")
    sub.add_argument("--check", action="store_true", help="only tell whether they are up to date (status 1 if not)")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _enter(work_dir: str, suite: Suite) -> Path:
    """Go to the root of the repository, where the commands run. Returns the folder of the suite's runs from there."""
    folder = Path(work_dir).resolve() / suite.name
    os.chdir(ROOT)
    return folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder


def _run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from adpe.suites.local_runner import estimate, execute
    from adpe.suites.own_inputs import check_sizes, refuse_others, takes_encoder, with_data, with_encoder
    from adpe.suites.slurm_runner import submit
    from adpe.suites.suite_file import read_suite

    suite = read_suite(args.suite)
    jobs = args.jobs or (suite.budgets[args.budget].jobs if args.budget in suite.budgets else 1)
    if args.budget:
        suite = suite.sized(args.budget)
    if args.encoder:
        suite = with_encoder(suite, args.encoder, args.name)
    elif takes_encoder(suite):
        raise UserError(f"suite {suite.name} is about an encoder of yours: give its file by --encoder FILE.")
    if args.data_root:
        suite = with_data(suite, args.data_root)
    folder = _enter(args.work_dir, suite)
    runs = expand(
        suite,
        folder,
        gpus=args.gpus,
        seeds=args.seeds,
        pretraining_options=args.pretraining_options or {},
        task_options=args.task_options or {},
    )
    if args.encoder:
        check_sizes(runs)
    if args.encoder or args.data_root:
        refuse_others(runs, folder)
    if args.dry_run:
        _print_plan(suite, runs, folder, args)
        return 0
    if suite.data:
        _write_data(suite, folder)
    if args.slurm:
        for line in submit(runs, folder, _cluster(args)):
            say(line)
        return 0
    for line in estimate(runs, folder):
        say(line)
    done = execute(runs, folder, jobs=jobs, console=Console())
    return 0 if done else 1


def _cluster(args: argparse.Namespace) -> Cluster:
    from adpe.suites.slurm_runner import Cluster

    arguments = shlex.split(args.sbatch_args)
    return Cluster(args.slurm, args.gpus_per_node, args.cpus_per_task, args.time, args.account, arguments)


def _print_plan(suite: Suite, runs: Sequence[Run], folder: Path, args: argparse.Namespace) -> None:
    """The plan on stdout as a shell script: comments and commands, unwrapped."""
    from adpe.suites.local_runner import changed_command, estimate, finished_record
    from adpe.suites.slurm_runner import script_lines

    text = textwrap.fill(suite.text, 118, initial_indent="# ", subsequent_indent="# ")
    print(f"# {suite.title}\n{text}\n# In the root of the repository, start to finish:\n")
    if suite.data:
        print(shlex.join(["python", "tools/benchmark.py", "prepare", args.suite, "--work-dir", args.work_dir]))
    if args.slurm:
        print("\n".join(script_lines(runs, folder, _cluster(args))))
    else:
        for run in runs:
            record = finished_record(run, folder)
            before = changed_command(run, folder) if record else None
            state = "  # finished" + (f", but as: {before}" if before else "") if record else ""
            print(shlex.join(run.command(folder)) + state)
    print()
    for claim in suite.claims:
        values = claim.published["metrics"]
        expected = ", ".join(f"{name} {values[name]:g} ± {tolerance:g}" for name, tolerance in claim.tolerance.items())
        kind, at = claim.published["kind"], ", ".join(f"{name} {value:g}" for name, value in claim.point.items())
        where = f"{claim.task} at {at}" if at else claim.task
        print(f"# expected of {claim.method}, {where}: {expected} ({kind}: {claim.published['source']})")
    for published, reason in suite.missing:
        values = ", ".join(f"{name} {value:g}" for name, value in published["metrics"].items())
        print(f"# not run: {published['method']}, {values} ({published['source']}): {reason}")
    print("# cost: " + "\n# ".join(estimate(runs, folder)))


def _prepare(args: argparse.Namespace) -> int:
    from adpe.suites.suite_file import read_suite

    suite = read_suite(args.suite)
    if not suite.data:
        say(f"Suite {suite.name} brings no data; its configs say where they look for them.")
        return 0
    _write_data(suite, _enter(args.work_dir, suite))
    return 0


def _write_data(suite: Suite, folder: Path) -> None:
    from adpe.data.scenes import write_scenes

    data = suite.data or {}
    root = write_scenes(folder / "data", data["train"], data["val"], data["unlabelled"], data["size"])
    say(f"Data: {root}")
