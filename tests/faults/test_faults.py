"""The short version of `tests/faults/`: a few kills, and what the soak calls growth."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from faults import kill, soak
from faults.trainings import Training, children, end, session, wait_until, write_data
from same_training import assert_same_training

from adpe.engine.hooks.checkpointing import plain, read_training_checkpoint


@pytest.mark.slow(30)
def test_a_killed_training_ends_as_an_uninterrupted_one(tmp_path):
    training = Training("pretraining", iterations=12, interval=1, workers=0)
    data, reference = write_data(tmp_path / "data"), tmp_path / "reference"
    assert training.start(data, reference, tmp_path / "log").wait(240) == 0
    killed = kill.run_with_kills(training, data, tmp_path / "killed", reference, 2, seed=4, spread=0.1)
    assert killed.fault == "" and killed.damaged == 0
    assert killed.kills >= 1 and killed.writing >= 1  # what this seed does
    # The comparison can fail.
    other = read_training_checkpoint(training.last_checkpoint(reference))
    other["state_dict"]["model.encoder.cls_token"] += 1
    torch.save(plain(other), tmp_path / "other.pth")
    with pytest.raises(AssertionError, match=r"model\.encoder\.cls_token"):
        assert_same_training(training.last_checkpoint(reference), tmp_path / "other.pth")


def samples(slope: float, noise: float, handles: int = 9, seconds: int = 900) -> list[soak.Sample]:
    """Memory that grows by `slope` MiB per hour with steps of the allocator around it."""
    generator = np.random.default_rng(0)
    return [
        soak.Sample(t, 500 + slope * t / 3600 + noise * generator.standard_normal(), handles + (t > 500))
        for t in range(0, seconds, 2)
    ]


def test_growth_is_told_from_noise():
    flat, leak = soak.growth(samples(0, 3)), soak.growth(samples(200, 3))
    assert not soak.growth([s._replace(handles=9) for s in samples(0, 3)]).grows
    assert abs(flat.slope) < 3 * flat.error < 20
    assert leak.slope == pytest.approx(200, abs=3 * leak.error) and leak.grows
    # A handle more at the end than at the beginning is growth too.
    assert (flat.handles_before, flat.handles_after) == (9, 10) and flat.grows


def test_samples_are_of_the_process():
    sample = soak.take(os.getpid(), 1.5)
    assert sample is not None and sample.seconds == 1.5
    assert 50 < sample.memory < 50_000 and sample.handles >= 3
    with open(os.devnull), open(os.devnull):
        more = soak.take(os.getpid(), 2)
    assert more is not None and more.handles == sample.handles + 2


def test_processes_of_a_session_are_found_after_their_parent_is_gone():
    code = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    assert children(process.pid) == [child] and sorted(session(process.pid)) == sorted([process.pid, child])
    process.kill()
    process.wait()
    assert session(process.pid) == [child]
    end(process.pid)
    assert wait_until(lambda: not session(process.pid), 5)
    process.stdout.close()
