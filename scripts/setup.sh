#!/usr/bin/env bash
# Installs what a build needs and is not there yet: Debian packages, and the Python packages of
# requirements.txt in .venv. Quick when nothing is missing, so every other script calls it.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# package:the command or header that shows it is there. A distribution without apt can provide those.
required=(
  g++:g++ git:git ninja-build:ninja python3-venv:ensurepip
  libgtest-dev:gtest/gtest.h libcli11-dev:CLI/CLI.hpp libtomlplusplus-dev:toml++/toml.h
  nlohmann-json3-dev:nlohmann/json.hpp libpcre2-dev:pcre2.h libxxhash-dev:xxhash.h
)
# Without these the build is slower, or the demo has no text.
optional=(ccache:ccache bible-kjv:bible)

# The system's own Python: another one first on PATH may come without venv or go away.
system_python() {
  if [ -x /usr/bin/python3 ]; then echo /usr/bin/python3; else command -v python3; fi
}

is_there() {
  case "$1" in
    ensurepip) [ -x .venv/bin/python ] || "$(system_python)" -c 'import ensurepip, venv' ;;
    *.h | *.hpp) [ -e "/usr/include/$1" ] || [ -e "/usr/local/include/$1" ] ;;
    *) command -v "$1" ;;
  esac >/dev/null 2>&1
}

missing_of() {
  local entry
  for entry in "$@"; do
    is_there "${entry#*:}" || echo "${entry%%:*}"
  done
}

install_packages() {
  local root=()
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || return 1
    root=(sudo)
  fi
  command -v apt-get >/dev/null || return 1
  say "installing Debian packages: $*"
  local started=$SECONDS
  "${root[@]}" apt-get update -q || say "apt-get update failed; trying with the package lists there are"
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -q --no-install-recommends "$@" || return 1
  say "packages installed in $((SECONDS - started)) s"
}

setup_packages() {
  local missing wanted
  mapfile -t missing < <(missing_of "${required[@]}")
  mapfile -t wanted < <(missing_of "${required[@]}" "${optional[@]}")
  [ ${#wanted[@]} -gt 0 ] || return 0
  install_packages "${wanted[@]}" && return 0
  [ ${#missing[@]} -eq 0 ] ||
    die "cannot install packages (needs apt-get, and root or sudo); install these yourself: ${missing[*]}"
  say "going on without the optional packages: ${wanted[*]}"
}

setup_python() {
  if ! .venv/bin/python -c '' 2>/dev/null || [ "$(cat .venv/made-in 2>/dev/null)" != "$PWD" ]; then
    make_venv
  fi
  local missing
  mapfile -t missing < <(.venv/bin/python scripts/missing_requirements.py scripts/requirements.txt)
  [ ${#missing[@]} -gt 0 ] || return 0
  say "installing Python packages into .venv: ${missing[*]} (this can take minutes)"
  local started=$SECONDS
  .venv/bin/python -m pip install --disable-pip-version-check "${missing[@]}" ||
    die "pip could not install: ${missing[*]}"
  say "Python packages installed in $((SECONDS - started)) s"
}

# The commands inside an environment name its folder, so a moved or copied one is made anew.
make_venv() {
  local python
  python=$(system_python) || die "no python3 found"
  say "making a Python environment in .venv with $python"
  rm -rf .venv
  "$python" -m venv .venv || die "$python -m venv failed; is python3-venv installed?"
  echo "$PWD" >.venv/made-in
}

setup_packages
version=$("${CXX:-g++}" -dumpfullversion -dumpversion 2>/dev/null) || die "the compiler ${CXX:-g++} does not run"
[ "${version%%.*}" -ge 12 ] || die "${CXX:-g++} is version $version, want 12 or later (set CXX to a newer one)"
setup_python
