#!/usr/bin/env bash
# Makes .venv at the root of the repository hold what the project needs, at the versions and
# hashes in third_party/requirements/, and the project itself, editable.
#
#   third_party/install.sh run     what the experiments need
#   third_party/install.sh test    that, MPI, and what the tests and checks need
#
# Safe to repeat: it returns at once when nothing changed, and a failed or interrupted call is
# completed by the next one. third_party/README.md tells why it builds the way it does.
set -euo pipefail

fail() {
  printf 'third_party/install.sh: %s\n' "$*" >&2
  exit 1
}

say() {
  printf 'install: %s\n' "$*"
}

[[ $# -eq 1 && ( $1 == run || $1 == test ) ]] ||
  fail "expected one argument, 'run' or 'test', got: '$*'."
mode=$1

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
venv=$root/.venv
python=$venv/bin/python
log=$venv/install.log
pins=third_party/requirements
# Present while packages are being written; left behind only by a call that was cut off.
unfinished=$venv/.asvrg-unfinished

trap 'exit 130' INT TERM
unset PYTHONHOME PYTHONPATH  # packages outside .venv are not to count as installed
unset CC CXX                 # mpi4jax is to be built by mpicc alone
export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

# Two calls at once wait for each other.
exec 9<third_party/install.sh
if command -v flock >/dev/null; then flock 9; fi

digest=$({ echo "$root"; cat third_party/install.sh pyproject.toml "$pins"/*.txt; } | sha256sum)
for stamp in "$venv/.asvrg-test" "$venv/.asvrg-$mode"; do  # 'test' holds all of 'run'
  if [[ -f $stamp && $(<"$stamp") == "$digest" ]] && "$python" -c '' 2>/dev/null; then
    exit 0
  fi
done

# Exit status: 0 for a Python that can be used, 3 for one that lacks only the headers for
# building extensions, 4 for one without venv and ensurepip, anything else for no such Python.
probe() {
  "$1" - 2>/dev/null <<'PYTHON'
import os, sys, sysconfig
if not (3, 11) <= sys.version_info[:2] <= (3, 14):
    sys.exit(5)
try:
    import ensurepip, venv
except ImportError:
    sys.exit(4)
sys.exit(0 if os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")) else 3)
PYTHON
}

find_python() {
  local name path code no_headers='' no_venv=''
  for name in python3 python3.13 python3.12 python3.11 python3.14; do
    path=$(command -v "$name") || continue
    code=0
    probe "$path" || code=$?
    case $code in
      0) printf '%s' "$path"; return ;;
      3) no_headers=${no_headers:-$path} ;;
      4) no_venv=${no_venv:-$path} ;;
    esac
  done
  if [[ -n $no_headers ]]; then
    printf '%s' "$no_headers"
  elif [[ -n $no_venv ]]; then
    fail "$no_venv lacks the modules venv and ensurepip; on Debian and Ubuntu the package" \
      "python3-venv has them."
  else
    fail "found no Python 3.11 to 3.14 on PATH under the names python3 and python3.11 to" \
      "python3.14; the pinned versions have builds for those alone."
  fi
}

# Whether .venv can be completed as it is. It cannot where MPICH was installed beside the rest, as
# it once was: two packages would own bin/mpiexec.
sound() {
  [[ ! -e $unfinished ]] && ! compgen -G "$venv/lib/python*/site-packages/mpich-*" >/dev/null && { probe "$python" || [[ $? -eq 3 ]]; } &&
    { "$python" -m pip --version || "$python" -m ensurepip; } >/dev/null 2>&1
}

# Runs pip with all output in the log; where it fails, shows the end of the log.
pip_install() {
  local code=0
  : >"$unfinished"
  "$python" -m pip install "$@" >>"$log" 2>&1 || code=$?
  rm -f "$unfinished"
  if [[ $code -ne 0 ]]; then
    tail -n 20 "$log" >&2
    fail "pip failed ($log has all of its output); the next call goes on from here."
  fi
}

# The entries of requirement file $1 that are mpi4jax (for $2 = 1) or are not (for $2 = 0).
pinned() {
  awk -v mpi4jax="$2" '/^[A-Za-z0-9]/ { name = $1; sub(/==.*/, "", name) }
    (name == "mpi4jax") == mpi4jax' "$1"
}

if ! sound; then
  if [[ -e $unfinished ]]; then say "the last call was cut off; starting .venv anew."; fi
  base=$(find_python)
  say "making .venv with $base ($("$base" --version 2>&1))."
  "$base" -m venv --clear "$venv" || fail "'$base -m venv .venv' failed."
fi
rm -f "$venv"/.asvrg-run "$venv"/.asvrg-test
: >"$log"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

pinned "$pins/$mode.txt" 0 >"$scratch/wheels.txt"
say "installing $(grep -c '==' "$scratch/wheels.txt") pinned packages into .venv" \
  "(about a minute, and the download of some 200 MB)."
pip_install --require-hashes --only-binary :all: -r "$scratch/wheels.txt"

say "installing asvrg itself, editable."
pip_install --no-deps --no-build-isolation -e .

if [[ $mode == test ]]; then
  say "installing MPICH into .venv/mpich, as its mpiexec has the name of Open MPI's."
  rm -rf "$venv/mpich"
  pip_install --require-hashes --only-binary :all: --no-deps --no-warn-script-location \
    --prefix "$venv/mpich" -r "$pins/mpich.txt"
  missing='' headers=0
  compiler=$(command -v c++ || command -v g++ || command -v clang++) || missing='a C++ compiler'
  probe "$python" || headers=$?
  [[ $headers -eq 0 ]] || missing='the Python headers (Debian and Ubuntu: python3-dev)'
  [[ $root != *[[:space:]]* ]] || missing='a checkout without spaces in its path'
  if [[ -n $missing ]]; then
    say "WARNING: left out mpi4jax, which needs $missing; tests that use it will be skipped."
    exit 0  # without a stamp, so that the next call looks again
  fi
  say "building mpi4jax against the MPI in .venv (about half a minute)."
  pinned "$pins/test.txt" 1 >"$scratch/mpi4jax.txt"
  # Its setup takes any CUDA or SYCL toolkit it can find for one to build against, unless these
  # name a folder without one. No cache: a wheel built elsewhere is bound to another MPI. Forced:
  # the one that is installed may have been built for another jax.
  mkdir "$scratch/no-toolkit"
  MPI4JAX_BUILD_MPICC=$venv/bin/mpicc OMPI_CC=$compiler \
    CUDA_PATH=$scratch/no-toolkit CMPLR_ROOT=$scratch/no-toolkit \
    pip_install --force-reinstall --require-hashes --no-deps --no-build-isolation \
    --no-cache-dir -r "$scratch/mpi4jax.txt"
fi

printf '%s\n' "$digest" >"$venv/.asvrg-$mode"
say "done in $SECONDS s."
