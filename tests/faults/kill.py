"""Kill real trainings at random moments, resume each until it ends, and compare its end with an uninterrupted one.

    python tests/faults/kill.py --kills 54 [--seed 0] [--processes 2]

The demo's pretraining, segmentation and detection (configs/demo/) run on a few embedded scenes through tools/train.py,
and in two processes over gloo through tools/dist_train.sh. Half of the kills (SIGKILL; in two processes of a rank or of
the launcher) come while a checkpoint is being written, some before the first iteration, the others in between. At the
end the last checkpoint is compared bit by bit: parameters, adversary, optimizer, schedules, random states, iteration.
Two processes are held to the same: with two terms, gloo's sum is the same in any order. Exit status: 0 if all are equal
and no process is left behind.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))

from faults.trainings import Training, children, end, session, wait_until, write_data
from same_training import assert_same_training

from adpe.engine.hooks.checkpointing import read_training_checkpoint
from adpe.errors import UserError

KILLS_PER_TRAINING = 9
TRAININGS = [
    Training(task, processes, workers=int(task == "pretraining"))
    for processes in (1, 2)
    for task in ("pretraining", "segmentation", "detection")
]
LONGEST = 900  # s, of one start, on a machine that is busy with other things
LAUNCHER_ENDS = 60  # s, after a rank was killed
ORPHANS_END = 20  # s, after the started process was killed; idle workers look for their parent every 5 s


class Killed(NamedTuple):
    """What became of one training that was killed again and again.

    Attributes:
        kills: how often.
        writing: of them while a checkpoint was being written, by the temporary file that was left.
        torn: temporary files left that cannot be read.
        damaged: files with a checkpoint's name that cannot be read; there must be none.
        fault: what is wrong at the end, or "".
    """

    kills: int
    writing: int
    torn: int
    damaged: int
    fault: str


def unreadable(paths: list[Path]) -> int:
    """How many of these checkpoints cannot be read."""
    count = 0
    for path in paths:
        try:
            read_training_checkpoint(path)
        except UserError:
            count += 1
    return count


def being_written(work_dir: Path) -> list[Path]:
    return list(work_dir.glob(".iter_*.pth.*.tmp"))


def victim(process: subprocess.Popen[bytes], training: Training, chance: random.Random) -> int:
    """The process to kill: the only one, or a rank or the launcher."""
    if training.processes == 1:
        return process.pid
    return chance.choice([process.pid, *children(process.pid)[: training.processes]])


def kill_once(
    process: subprocess.Popen[bytes],
    training: Training,
    work_dir: Path,
    log: Path,
    chance: random.Random,
    spread: float,
) -> bool:
    """Kill a process of the training at a random moment; False if the training ended first.

    Args:
        spread: s after the first iteration, up to which a moment is drawn.
    """
    moment = chance.choices(["writing", "training", "starting"], [5, 4, 1])[0]
    already = log.stat().st_size

    def trains() -> bool:
        with open(log, "rb") as file:
            file.seek(already)
            return b"(train)" in file.read()

    def ended() -> bool:
        return process.poll() is not None

    if moment == "starting":
        wait_until(ended, chance.uniform(0, 8))
    else:
        wait_until(lambda: trains() or ended(), LONGEST)
        wait_until(ended, chance.uniform(0, spread))
    if moment == "writing":
        deadline = time.monotonic() + LONGEST
        while not ended() and not being_written(work_dir) and time.monotonic() < deadline:
            time.sleep(0.0005)
        time.sleep(chance.uniform(0, 0.01))
    if ended():
        return False
    try:
        os.kill(victim(process, training, chance), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def run_with_kills(
    training: Training, data: Path, folder: Path, reference: Path, kills: int, seed: int, spread: float = 2.0
) -> Killed:
    """Kill a training `kills` times (fewer if it is faster), let it end, and compare it with `reference`."""
    chance = random.Random(seed)
    work_dir, log = folder / "work", folder / "log"
    folder.mkdir(parents=True)
    log.touch()
    done = writing = torn = damaged = 0
    leaders: list[int] = []
    try:
        while True:
            earlier = being_written(work_dir)
            process = training.start(data, work_dir, log, *(["--resume"] if leaders else []))
            leaders.append(process.pid)
            was_killed = done < kills and kill_once(process, training, work_dir, log, chance, spread)
            try:
                status = process.wait(LAUNCHER_ENDS if was_killed else LONGEST)
            except subprocess.TimeoutExpired:
                return Killed(done, writing, torn, damaged, "does not end")
            if not wait_until(lambda: not session(leaders[-1]), ORPHANS_END):
                return Killed(done, writing, torn, damaged, "leaves processes behind")
            if not was_killed:
                break
            done += 1
            left = [path for path in being_written(work_dir) if path not in earlier]
            writing += bool(left)
            torn += unreadable(left)
            damaged += unreadable(list(work_dir.glob("iter_*.pth")))
        if status != 0:
            return Killed(done, writing, torn, damaged, f"status {status}, see {log}")
        assert_same_training(training.last_checkpoint(reference), training.last_checkpoint(work_dir))
        fault = "a torn file has a checkpoint's name" if damaged else ""
        return Killed(done, writing, torn, damaged, fault)
    except AssertionError as error:
        return Killed(done, writing, torn, damaged, f"differs in {error}")
    finally:
        for leader in leaders:
            end(leader)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=54, help="at least so many, over all trainings")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and of which process is killed")
    parser.add_argument("--work-dir", type=Path, help="kept for a look at it; default: a temporary folder")
    parser.add_argument("--processes", type=int, choices=(1, 2), help="only trainings of so many; default: both")
    args = parser.parse_args(arguments)
    trainings = [training for training in TRAININGS if args.processes in (None, training.processes)]
    started = time.monotonic()
    results: dict[str, list[Killed]] = {training.name: [] for training in trainings}
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.work_dir or Path(temporary)).resolve()
        data = write_data(folder / "data")
        total = number = 0
        while total < args.kills:
            training = trainings[number % len(trainings)]
            place = folder / training.name
            reference = place / "uninterrupted"
            if not reference.exists():
                place.mkdir()
                process = training.start(data, reference, log := place / "uninterrupted.log")
                if process.wait(LONGEST):
                    print(log.read_text()[-2000:], file=sys.stderr)
                    return 1
            wanted = min(KILLS_PER_TRAINING, args.kills - total)
            seed = args.seed * 1000 + number
            killed = run_with_kills(training, data, place / str(number), reference, wanted, seed)
            results[training.name].append(killed)
            total, number = total + killed.kills, number + 1
            at = f"[{time.monotonic() - started:5.0f} s, {total} kills of {args.kills}]"
            what = f"{killed.kills} kills, {killed.writing} while writing, {killed.torn} torn"
            print(f"{at} {training.name}: {what}: {killed.fault or 'bit-equal'}", flush=True)
    print_table(results, args.seed, time.monotonic() - started)
    return int(any(killed.fault for found in results.values() for killed in found))


def print_table(results: dict[str, list[Killed]], seed: int, seconds: float) -> None:
    header = (
        "training",
        "runs",
        "kills",
        "while writing",
        "torn temporary files",
        "torn checkpoints",
        "bit-equal ends",
    )
    rows = []
    for name, found in results.items():
        sums = [sum(getattr(killed, field) for killed in found) for field in ("kills", "writing", "torn", "damaged")]
        rows.append((name, len(found), *sums, sum(not killed.fault for killed in found)))
    rows.append(("all", *(sum(row[column] for row in rows) for column in range(1, len(header)))))
    widths = [max(len(str(row[column])) for row in [header, *rows]) for column in range(len(header))]
    print()
    for row in [header, *rows]:
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"\nseed {seed}, {seconds / 60:.1f} min")


if __name__ == "__main__":
    sys.exit(main())
