#!/usr/bin/env bash
# Makes the environment of this repository: a virtual environment with the packages of requirements/, mmcv's compiled
# ops and this package. `make setup`, `make demo` and `make test` call it; done once, it is a check of a moment.
#
#   PYTHON=python3.12    the interpreter (3.10 - 3.12; by default the first suitable one on PATH)
#   VENV=.venv           the folder of the environment; VENV=none uses PYTHON's own packages and installs nothing
#   ADPE_CACHE=FOLDER    where mmcv's built wheels are kept (~/.cache/adpe)
#
# Every stage leaves a stamp under $VENV/.adpe when it is done, "complete" comes last: a set-up that was interrupted goes
# on at the stage where it stopped. A stamp holds a hash of the files that decide what its stage installs.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
requirements=$repo/requirements
# Kilobytes that the torch wheels and all the rest take, unpacked and in pip's temporary folder.
needed_disk=8000000
# The name of mmcv's distribution in requirements/mm.txt, as a pattern.
mmcv='[a-z-]*mmcv'
stage_count=6
stage_number=0
job=

say() { printf '%s\n' "$*"; }

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

supported() { [[ $1 == 3.10 || $1 == 3.11 || $1 == 3.12 ]]; }

# Sets `python` to the interpreter that makes the environment.
find_python() {
  local candidate version
  if [[ -n ${PYTHON:-} ]]; then
    version=$(version_of "$PYTHON") || fail "PYTHON=$PYTHON does not run; give the path of a Python 3.10, 3.11 or 3.12."
    supported "$version" || fail "PYTHON=$PYTHON is Python $version; this project needs Python 3.10, 3.11 or 3.12."
    python=$PYTHON
    return
  fi
  for candidate in python3 python3.12 python3.11 python3.10 python; do
    if version=$(version_of "$candidate") && supported "$version"; then
      python=$candidate
      return
    fi
  done
  fail "no Python 3.10, 3.11 or 3.12 on PATH; install one, or name it: make setup PYTHON=/path/to/python3.11"
}

# The folders of the cache that may hold a wheel of mmcv for this interpreter.
cached_wheels() {
  local python_tag
  python_tag=cp$("$python" -c 'import sys; print("%d%d" % sys.version_info[:2])')
  compgen -G "$(cache_folder)/wheels/$(pinned torch)*-mmcv$(pinned "$mmcv")-$python_tag-$(uname -m)/*.whl" || true
}

# Better said before torch is downloaded than after.
check_compiler() {
  local include
  command -v "${CXX:-c++}" >/dev/null ||
    fail "no C++ compiler (${CXX:-c++}), which mmcv's ops need: install g++ (Debian, Ubuntu: sudo apt install g++), or set CXX to one."
  include=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
  [[ -f $include/Python.h ]] ||
    fail "Python's headers are missing ($include/Python.h), which mmcv's ops need: install them (Debian, Ubuntu: sudo apt install python$(version_of "$python")-dev)."
}

check_disk() {
  local free
  free=$(df -Pk "$venv" | awk 'NR == 2 { print $4 }')
  ((free > needed_disk)) || fail "$venv has $((free / 1000000)) GB of free disk and the packages need $((needed_disk / 1000000)): free some, or choose another folder with VENV=FOLDER."
}

pinned() { sed -n "s/^$1==\([^ ;]*\).*/\1/p" "$requirements"/*.txt; }

cache_folder() {
  local caches=${XDG_CACHE_HOME:-~/.cache}
  say "${ADPE_CACHE:-$caches/adpe}"
}

hash_of() { sha256sum | cut -d ' ' -f 1; }

interpreter() { "$venv/bin/python" -c 'import sys; print(sys.version, sys.base_prefix)' 2>/dev/null; }

# What a stage depends on: the interpreter and the pins up to that stage; the last one also where the package lies.
key_of() {
  local files=()
  case $1 in
    venv) say "made by tools/setup.sh"; return ;;
    torch | runtime) files=(build runtime) ;;
    mm | mmcv) files=(build runtime mm) ;;
    *) files=(build runtime mm tests) ;;
  esac
  {
    interpreter
    (cd "$requirements" && cat "${files[@]/%/.txt}")
    if [[ $1 == package || $1 == complete ]]; then
      say "$repo"
      cat "$repo/pyproject.toml"
    fi
  } | hash_of
}

stamped() { [[ -f $state/$1 ]] && [[ $(<"$state/$1") == "$(key_of "$1")" ]]; }

stamp() {
  key_of "$1" >"$state/$1.new"
  mv "$state/$1.new" "$state/$1"
}

# A package whose RECORD is missing was being installed when the set-up died: pip would take it for installed.
forget_half_installed() {
  local folder
  for folder in "$venv"/lib/python3*/site-packages/*.dist-info; do
    if [[ -d $folder && ! -f $folder/RECORD ]]; then rm -rf "$folder"; fi
  done
  rm -rf "$venv"/lib/python3*/site-packages/~*
}

clock() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }

stop_job() {
  trap - INT TERM HUP
  [[ -z $job ]] || kill -TERM -- "-$job" 2>/dev/null || true
  printf '\nerror: the set-up was interrupted; rerun the same command to resume.\n' >&2
  exit 130
}

# run_stage NAME TITLE REMEDY COMMAND...: runs a command into a log, with the time and compiled files on the screen.
run_stage() {
  local name=$1 title=$2 remedy=$3 log=$state/$1.log start=$SECONDS count status=0 label
  shift 3
  stage_number=$((stage_number + 1))
  label="[$stage_number/$stage_count] $title"
  if stamped "$name"; then
    say "$label: done before"
    return
  fi
  rm -f "$state/complete" "$state/$name"
  forget_half_installed
  say "$label (log: ${log#"$PWD"/})"
  # A process group of its own, so that an interruption ends the compilers too.
  set -m
  (set -e; "$@") >"$log" 2>&1 </dev/null &
  job=$!
  set +m
  while kill -0 "$job" 2>/dev/null; do
    if [[ -t 1 ]]; then
      count=$(tail -c 20000 "$log" | grep -oE '^ *\[[0-9]+/[0-9]+\]' | tail -n 1 | tr -d ' []' || true)
      printf '\r      %s%s\033[K' "$(clock $((SECONDS - start)))" "${count:+, ${count/\// of } files compiled}"
    fi
    sleep 0.3
  done
  wait "$job" || status=$?
  job=
  if [[ -t 1 ]]; then printf '\r\033[K'; fi
  if ((status)); then
    say "--- the last lines of $log" >&2
    tail -n 20 "$log" >&2
    say "---" >&2
    fail "$title failed after $(clock $((SECONDS - start))). $remedy Then run the same command again: it goes on at this stage."
  fi
  stamp "$name"
  grep '^note: ' "$log" || true
  say "      done in $(clock $((SECONDS - start)))"
}

make_venv() {
  find "$venv" -mindepth 1 -maxdepth 1 ! -name .adpe -exec rm -rf {} +
  "$python" -m venv "$venv"
  # Neither git nor the linters look into it, whatever its name is.
  echo '*' >"$venv/.gitignore"
}

pip_install() { "$venv/bin/python" -m pip install "$@"; }

install_torch() { pip_install -c "$requirements/runtime.txt" -c "$requirements/build.txt" torch torchvision; }

install_runtime() { pip_install --no-deps -r "$requirements/build.txt" -r "$requirements/runtime.txt"; }

# Everything but mmcv, which build_mmcv installs: its ops are tried at once, and load mmengine.
install_mm() {
  grep -v "^$mmcv==" "$requirements/mm.txt" >"$state/mm.txt"
  pip_install --no-deps --no-build-isolation -r "$state/mm.txt"
}

build_mmcv() { "$venv/bin/python" "$repo/tools/build_mmcv.py"; }

install_package() {
  pip_install --no-deps -r "$requirements/tests.txt"
  pip_install --no-deps --no-build-isolation -e "$repo"
}

main() {
  # What a user's shell may hold for other projects must not leak into, or stand in for, this environment.
  unset PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX
  export PYTHONNOUSERSITE=1 PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1

  venv=${VENV:-.venv}
  if [[ $venv == none ]]; then
    find_python
    unset PYTHONNOUSERSITE
    exec "$python" "$repo/tools/doctor.py" --quick
  fi
  [[ $venv == /* ]] || venv=$repo/$venv
  state=$venv/.adpe

  if [[ -n ${PYTHON:-} && -x $venv/bin/python ]]; then
    find_python
    [[ $(version_of "$python") == "$(version_of "$venv/bin/python")" ]] ||
      fail "$venv has Python $(version_of "$venv/bin/python") and PYTHON=$PYTHON is Python $(version_of "$python"): choose another folder with VENV=FOLDER, or remove that one with \`make clean\`."
  fi
  if interpreter >/dev/null && stamped complete; then
    say "The environment is complete: $venv"
    return
  fi

  if [[ -d $venv && ! -d $state && -n $(ls -A "$venv") ]]; then
    fail "$venv exists and was not made by this set-up: choose another folder with VENV=FOLDER, use a ready environment with VENV=none PYTHON=FOLDER/bin/python, or remove it."
  fi
  find_python
  mkdir -p "$state" 2>/dev/null || fail "the folder $venv cannot be made: choose another with VENV=FOLDER."
  command -v flock >/dev/null || fail "the command flock is missing: install util-linux."
  exec 9<"$venv"
  if ! flock -n 9; then
    say "Another set-up of $venv is running; waiting for it."
    flock 9
    if interpreter >/dev/null && stamped complete; then return; fi
  fi
  local wheels
  wheels=$(cached_wheels)
  stamped mmcv || [[ -n $wheels ]] || check_compiler
  stamped torch || check_disk
  trap stop_job INT TERM HUP

  local network="Look for the cause above: mostly the network or pip's own configuration."
  say "Setting up $venv with Python $(version_of "$python"): 4 to 12 minutes on 2 cores when nothing is cached."
  # An environment whose interpreter is gone is made anew.
  interpreter >/dev/null || rm -f "$state/venv"
  run_stage venv "making the virtual environment" \
    "Python's venv module may be missing (Debian, Ubuntu: sudo apt install python$(version_of "$python")-venv)." make_venv
  run_stage torch "installing torch $(pinned torch) and torchvision (3 GB to download; about 1-3 minutes)" "$network" install_torch
  run_stage runtime "installing the library's requirements (about half a minute)" "$network" install_runtime
  local mmcv_title
  mmcv_title="building mmcv's ops for torch $(pinned torch) (about 2-5 minutes on 2 cores)"
  [[ -z $wheels ]] || mmcv_title="installing mmcv's ops from the cache"
  run_stage mm "installing mmengine, mmseg and mmdet (about half a minute)" "$network" install_mm
  run_stage mmcv "$mmcv_title" \
    "Building needs a C++17 compiler, Python's headers and 1.5 GB of memory for each of MAX_JOBS compilers." build_mmcv
  run_stage package "installing the test tools and this package (about a quarter of a minute)" "$network" install_package
  stamp complete
  say "The environment is complete: $venv ($(clock $SECONDS)). \`make doctor\` shows what is in it."
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then main; fi
