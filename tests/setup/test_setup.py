from __future__ import annotations

import fcntl
import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
FILES = ("build", "runtime", "mm", "tests", "optional")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What the set-up reads of the repository, where a test may change it."""
    tree = tmp_path / "tree"
    (tree / "tools").mkdir(parents=True)
    for name in ("tools/setup.sh", "pyproject.toml", "Makefile"):
        shutil.copy(ROOT / name, tree / name)
    shutil.copytree(ROOT / "requirements", tree / "requirements")
    return tree


def environment(**variables: str) -> dict[str, str]:
    own = ("PYTHON", "VENV", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")  # the tests may themselves be run by make
    return {name: value for name, value in os.environ.items() if name not in own} | variables


def setup(tree: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(tree / "tools/setup.sh")]
    return subprocess.run(command, env=environment(**variables), capture_output=True, text=True, timeout=60)


def stages(tree: Path, script: str) -> list[str]:
    """The command that runs `script` among the functions of setup.sh, with an empty environment at tree/env."""
    if not (tree / "env/bin/python").exists():
        venv.create(tree / "env", with_pip=False)
        (tree / "env/.adpe").mkdir()
    return ["bash", "-c", f"source {tree}/tools/setup.sh; venv={tree}/env state={tree}/env/.adpe\n{script}"]


def run_stages(tree: Path, script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(stages(tree, script), env=environment(), capture_output=True, text=True, timeout=60)


def unsupported_pythons() -> dict[str, str]:
    """Paths of the interpreters on this machine that are too old or too new, by version."""
    found = [path for minor in (7, 8, 9, 13, 14) if (path := shutil.which(f"python3.{minor}"))]
    found += [str(path) for path in Path("~/.pyenv/versions").expanduser().glob("*/bin/python3")]
    versions = {}
    for path in found:
        output = subprocess.run([path, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True)
        versions[output.stdout.decode().strip()] = path
    return {version: path for version, path in versions.items() if version not in ("", "3.10", "3.11", "3.12")}


def pins(name: str) -> dict[str, str]:
    """Canonical name to version of requirements/`name`.txt; every line must be a comment or one exact version."""
    found = {}
    for line in (ROOT / f"requirements/{name}.txt").read_text().splitlines():
        if not line.startswith("#"):
            match = re.fullmatch(r"([\w.-]+)==([\w.]+)( ; python_version < \"3\.11\")?", line)
            assert match, f"requirements/{name}.txt: {line}"
            found[canonicalize_name(match[1])] = match[2]
    return found


def test_every_requirement_is_pinned_once():
    names = [package for file in FILES for package in pins(file)]
    assert len(names) == len(set(names)) > 100
    assert pins("runtime")["torch"] == "2.11.0"
    everywhere = {package: version for file in FILES for package, version in pins(file).items()}
    site = pins("docs")
    assert {package: everywhere.get(package, version) for package, version in site.items()} == site
    assert "opencv-python" not in names


def test_requirement_files_are_complete():
    """Nothing that an installed pinned package depends on is left to chance, as they are installed with --no-deps."""
    pinned = {package: version for file in FILES for package, version in pins(file).items()}
    # torch installs its own CUDA libraries; opencv-python-headless stands in for the other builds of OpenCV; imaug
    # imports its corruptions when they are used, which mmdet does not.
    left_out = re.compile(r"nvidia-.*|cuda-.*|triton|opencv-python|imagecorruptions-imaug")
    missing = []
    installed = {canonicalize_name(item.name): item for item in importlib.metadata.distributions()}
    for package in pinned.keys() & installed.keys():
        # Another version than the pinned one, in a ready environment, may need other packages.
        needed = installed[package].requires or [] if installed[package].version == pinned[package] else []
        for requirement in map(Requirement, needed):
            name = canonicalize_name(requirement.name)
            applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if applies and name not in pinned and not left_out.fullmatch(name):
                missing.append(f"{package} needs {requirement}")
    assert missing == []


@pytest.mark.skipif(not unsupported_pythons(), reason="every Python here is supported")
def test_unsupported_python_is_refused(tree: Path):
    version, python = unsupported_pythons().popitem()
    result = setup(tree, PYTHON=python)
    message = f"error: PYTHON={python} is Python {version}; this project needs Python 3.10, 3.11 or 3.12.\n"
    assert (result.returncode, result.stderr) == (2, message)
    assert not (tree / ".venv").exists()


def test_python_that_does_not_run_is_refused(tree: Path):
    result = setup(tree, PYTHON=str(tree / "none"))
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith(f"error: PYTHON={tree}/none does not run")


def test_folder_of_another_kind_is_left_alone(tree: Path):
    (tree / "mine").mkdir()
    (tree / "mine/thesis.txt").write_text("work")
    result = setup(tree, VENV=str(tree / "mine"))
    assert result.returncode == 2
    assert "was not made by this set-up" in result.stderr
    assert [path.name for path in (tree / "mine").iterdir()] == ["thesis.txt"]


def test_missing_compiler_is_told_before_anything_is_installed(tree: Path):
    result = setup(tree, CXX="no-such-compiler", ADPE_CACHE=str(tree / "cache"), PYTHON=sys.executable)
    assert result.returncode == 2
    assert "no C++ compiler (no-such-compiler)" in result.stderr
    assert list((tree / ".venv/.adpe").iterdir()) == []


def test_complete_environment_is_a_check_of_a_moment(tree: Path):
    assert run_stages(tree, "stamp complete").returncode == 0
    start = time.perf_counter()
    result = setup(tree, VENV=str(tree / "env"))
    assert (result.returncode, result.stdout) == (0, f"The environment is complete: {tree}/env\n")
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("file", "kept"),
    [
        ("requirements/runtime.txt", ""),
        ("requirements/mm.txt", "torch runtime"),
        ("requirements/tests.txt", "torch runtime mm mmcv"),
        ("pyproject.toml", "torch runtime mm mmcv"),
        ("requirements/optional.txt", "torch runtime mm mmcv package complete"),
    ],
)
def test_changed_file_makes_the_stages_that_read_it_stale(tree: Path, file: str, kept: str):
    assert run_stages(tree, "for s in torch runtime mm mmcv package complete; do stamp $s; done").returncode == 0
    with (tree / file).open("a") as stream:
        stream.write("# changed\n")
    result = run_stages(tree, "for s in torch runtime mm mmcv package complete; do stamped $s && echo $s; done; true")
    assert result.stdout.split() == kept.split()


def test_failed_stage_leaves_no_stamp_and_the_next_run_goes_on_there(tree: Path):
    script = """
    stage_count=2
    first() {{ echo run >>{tree}/first; }}
    second() {{ echo "line of the log"; {end}; echo "not reached"; }}
    run_stage torch "doing the first" "Remedy." first
    run_stage runtime "doing the second" "Remedy." second
    stamp complete
    """
    failed = run_stages(tree, script.format(tree=tree, end="false"))
    assert failed.returncode == 2
    assert "line of the log\n---\nerror: doing the second failed after 0:0" in failed.stderr
    assert "not reached" not in failed.stderr
    state = tree / "env/.adpe"
    assert [(state / name).exists() for name in ("torch", "runtime", "complete")] == [True, False, False]

    resumed = run_stages(tree, script.format(tree=tree, end="true"))
    assert resumed.returncode == 0
    assert "[1/2] doing the first: done before" in resumed.stdout
    assert (tree / "first").read_text() == "run\n"
    assert (state / "complete").exists()


def test_interrupted_stage_ends_its_processes_and_leaves_no_stamp(tree: Path):
    script = f"""
    trap stop_job INT TERM HUP
    long() {{ sleep 300 & echo $! >{tree}/child; wait; }}
    run_stage torch "sleeping" "Remedy." long
    """
    process = subprocess.Popen(stages(tree, script), env=environment(), stderr=subprocess.PIPE, text=True)
    child = tree / "child"
    while not (child.exists() and child.read_text().strip()):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, message = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "interrupted; rerun the same command to resume" in message
    assert not (tree / "env/.adpe/torch").exists()
    status = Path(f"/proc/{child.read_text().strip()}/stat")
    deadline = time.monotonic() + 10
    # Ended, or a zombie that nobody has waited for.
    while status.exists() and status.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_half_installed_packages_are_forgotten(tree: Path):
    stages(tree, "")
    (packages,) = (tree / "env/lib").glob("python3*/site-packages")
    for name in ("whole-1.0.dist-info", "half-1.0.dist-info", "~alf-0.9.dist-info"):
        (packages / name).mkdir()
        (packages / name / "METADATA").touch()
    (packages / "whole-1.0.dist-info/RECORD").touch()
    assert run_stages(tree, "forget_half_installed").returncode == 0
    assert [path.name for path in packages.glob("*.dist-info")] == ["whole-1.0.dist-info"]


def test_second_set_up_waits_for_the_first(tree: Path):
    stages(tree, "")
    lock = os.open(tree / "env", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    command = ["bash", str(tree / "tools/setup.sh")]
    variables = environment(VENV=str(tree / "env"))
    process = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == f"Another set-up of {tree}/env is running; waiting for it.\n"
    assert run_stages(tree, "stamp complete").returncode == 0
    os.close(lock)
    assert process.wait(timeout=20) == 0
    process.stdout.close()


def test_demo_and_tests_begin_with_the_set_up(tree: Path):
    for target, command in {"demo": "tools/demo.py", "test": "-m pytest"}.items():
        output = subprocess.run(["make", "-n", target], cwd=tree, env=environment(), capture_output=True, text=True)
        first, second = output.stdout.splitlines()
        assert first == "tools/setup.sh"
        assert f".venv/bin/python {command}" in second


def test_clean_removes_only_an_environment_of_its_own(tree: Path):
    for folder in ("adpe", "benchmarks", "configs", "tests"):
        (tree / folder).mkdir()
    (tree / "mine").mkdir()
    stages(tree, "")
    for name in ("env", "mine"):
        # Not the environments that the caller keeps for the next run, which the environment names.
        folders = [f"VENV={name}", "DOCS_VENV=docs-env", "PURE_VENV=pure-env"]
        subprocess.run(["make", "clean", *folders], cwd=tree, env=environment(), check=True, capture_output=True)
    assert not (tree / "env").exists()
    assert (tree / "mine").exists()


@pytest.mark.slow
def test_ci_passes_only_if_tests_ran_and_passed(tree: Path):
    for name in ("adpe", "benchmarks", "tests", ".ci"):
        (tree / name).mkdir()
    for name in (".ci/run", "adpe/doctor.py", "adpe/files.py", "tools/doctor.py"):
        shutil.copy(ROOT / name, tree / name)
    for name in ("adpe", "benchmarks"):
        (tree / name / "__init__.py").write_text('"""A package."""\n')
    project = tree / "pyproject.toml"
    project.write_text(project.read_text().replace('files = ["adpe", "benchmarks", "tools"]', 'files = ["benchmarks"]'))
    variables = environment(VENV="none", PYTHON=sys.executable)
    outcomes = {"def test(): assert 1": "1 passed", "def test(): assert 0": "1 failed", "": "no tests ran"}
    for test, outcome in outcomes.items():
        (tree / "tests/test_one.py").write_text(f"{test}\n" if test else "")
        command = ["bash", str(tree / ".ci/run")]
        result = subprocess.run(command, env=variables, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert outcome in result.stdout, result.stdout + result.stderr
        assert (result.returncode == 0) == (outcome == "1 passed")
