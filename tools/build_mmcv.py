"""Builds mmcv's compiled ops for this environment's torch, once, and installs them.

The wheel is kept under ``<cache>/wheels/<torch>-<cpu, or CUDA and its architectures>-mmcv<version>-cp3XX-<machine>/``,
where the cache is ``$ADPE_CACHE`` or ``~/.cache/adpe``: a wheel works with the torch it was compiled against and no
other, which pip's own cache does not know. CUDA ops are built where torch finds an nvcc of its own CUDA and sees a GPU,
or TORCH_CUDA_ARCH_LIST names the GPUs that they are for, such as "8.0;9.0" (in the build of an image, say).

Usage: python tools/build_mmcv.py [NAME==VERSION]   (needs torch and requirements/build.txt; default: what
requirements/mm.txt pins)
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import torch
from torch.utils import cpp_extension

# The repository is installed last.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from adpe.doctor import cache_folder, check_ops
from adpe.files import ROOT


def pinned_mmcv() -> tuple[str, str]:
    """The distribution that provides mmcv and its version, from requirements/mm.txt."""
    match = re.search(r"^(\S*mmcv)==(\S+)", (ROOT / "requirements/mm.txt").read_text(), re.MULTILINE)
    if match is None:
        sys.exit("error: requirements/mm.txt pins no mmcv; restore that file.")
    return match[1], match[2]


def asked_mmcv(requirement: str) -> tuple[str, str]:
    """Distribution and version of ``NAME==VERSION``."""
    match = re.fullmatch(r"([\w.-]+)==([\w.+-]+)", requirement)
    if match is None:
        sys.exit(f"error: {requirement}: expected NAME==VERSION, such as mmcv==2.1.0.")
    return match[1], match[2]


def ops_kind() -> str:
    """``cpu``, or e.g. ``cu130_sm90`` where ops for the GPU can be built."""
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    if not torch.cuda.is_available() and not asked:
        return "cpu"
    nvcc = Path(cpp_extension.CUDA_HOME or "/nonexistent") / "bin/nvcc"
    wanted = torch.version.cuda
    if wanted is None or not nvcc.is_file():
        print(f"note: no nvcc, so only CPU ops: for CUDA ops install CUDA {wanted}'s toolkit, set CUDA_HOME.")
        return "cpu"
    found = re.search(r"release (\d+)\.", subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout)
    if found is None or found[1] != wanted.partition(".")[0]:
        print(f"note: {nvcc} is not of CUDA {wanted}, which torch was built with, so only CPU ops are built.")
        return "cpu"
    # torch compiles for what is asked, whatever GPU is there.
    seen = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    architectures = sorted({(int(a), int(b)) for a, b in re.findall(r"(\d+)\.(\d+)", asked)} or seen)
    return f"cu{wanted.replace('.', '')}" + "".join(f"_sm{major}{minor}" for major, minor in architectures)


def compile_jobs() -> int:
    """Compilers to run at once: one per core, each with 1.5 GB of memory, unless MAX_JOBS says otherwise."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(os.environ.get("MAX_JOBS") or max(1, min(len(os.sched_getaffinity(0)), int(memory / 1.5e9))))


def precompile_header(folder: Path) -> str:
    """Compile torch's large header once into `folder`; returns the compiler flags that make every file use it."""
    header = folder / "pch.h"
    header.write_text("#include <torch/types.h>\n")
    # The same flags for the header and for the files that include it: GCC ignores a precompiled header otherwise.
    flags = "-DNDEBUG -fwrapv -O2 -g0 -w -pthread"
    includes = [f"-I{path}" for path in (*cpp_extension.include_paths(), sysconfig.get_paths()["include"])]
    defines = ["-std=c++17", "-DTORCH_API_INCLUDE_EXTENSION_H", "-DTORCH_EXTENSION_NAME=_ext"]
    compiler = os.environ.get("CXX", "c++")
    command = [compiler, *flags.split(), "-fPIC", *includes, *defines, "-x", "c++-header", str(header)]
    print("compiling torch's header", flush=True)
    if subprocess.run([*command, "-o", f"{header}.gch"]).returncode:
        print("torch's header was not compiled: the build works without, but may take an hour.", flush=True)
    return f"{flags} -include {header}"


def build(requirement: str, kind: str, target: Path) -> None:
    """Build the wheel and move it to the folder `target`, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # An interruption by setup.sh leaves nothing behind either.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix=".build-", dir=target.parent, ignore_cleanup_errors=True) as folder:
        environment = {**os.environ, "CFLAGS": precompile_header(Path(folder)), "MAX_JOBS": str(compile_jobs())}
        # Without ninja, which lies beside the interpreter, torch compiles one file at a time.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment |= {"MMCV_WITH_OPS": "1", "TMPDIR": folder, "PATH": path}
        if kind == "cpu":
            # mmcv's build takes any visible GPU for a wish to compile CUDA code.
            environment |= {"CUDA_VISIBLE_DEVICES": "", "FORCE_CUDA": "0"}
        else:
            environment["FORCE_CUDA"] = "1"
        wheels = Path(folder) / "wheels"
        options = ["--no-cache-dir", "--no-deps", "--no-build-isolation", "--no-binary", requirement.partition("==")[0]]
        command = [sys.executable, "-m", "pip", "wheel", "-v", *options, "--wheel-dir", str(wheels), requirement]
        if subprocess.run(command, env=environment).returncode:
            sys.exit(f"error: {requirement} did not build; the compiler's message stands above.")
        if target.exists():
            shutil.rmtree(target)
        os.replace(wheels, target)


def install(target: Path, device: str) -> bool:
    """Install the wheel in `target`; whether its ops then load and compute what they should on `device`."""
    wheels = sorted(target.glob("*.whl"))
    if not wheels:
        return False
    options = ["--no-cache-dir", "--no-deps", "--force-reinstall"]
    if subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheels[0])]).returncode:
        return False
    # In a process of its own: ops of another torch can crash the interpreter.
    return subprocess.run([sys.executable, __file__, "--check", device]).returncode == 0


def main() -> None:
    """Install from the cache, or build first where the cache has no wheel that works."""
    name, version = asked_mmcv(sys.argv[1]) if sys.argv[1:] else pinned_mmcv()
    kind = ops_kind()
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    # Without a GPU the CUDA ops are compiled, and tried on the CPU alone.
    device = "cuda" if kind != "cpu" and torch.cuda.is_available() else "cpu"
    target = cache_folder() / "wheels" / f"{torch.__version__}-{kind}-mmcv{version}-{python}-{platform.machine()}"
    if install(target, device):
        print(f"mmcv's ops come from {target}")
        return
    build(f"{name}=={version}", kind, target)
    if not install(target, device):
        shutil.rmtree(target)
        sys.exit("error: mmcv was built, but its ops do not load or compute wrongly; the message stands above.")
    print(f"mmcv's ops are built and kept in {target}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--check"]:
        check_ops(sys.argv[2])
    else:
        main()
