# shellcheck shell=bash
# Sourced by the other scripts: makes sure that what they need is on this machine.
#
#   need_cargo           a Rust toolchain and a C linker
#   need_component NAME  a part of the toolchain: rustfmt, clippy
#   need_redis_server    exports REDIS_SERVER: that variable if set, else PATH, else installed
#   has_cargo_tool NAME  whether cargo has that subcommand; else says so, in a line "not run: …"
#   wants_installed NAME whether INSTALL names it: what a check can do without is installed only then
#
# Each need_ returns when the thing is there and otherwise exits 2 with the command to type.

die() {
  printf '%s\n' "$@" >&2
  exit 2
}

# Run as root: install the packages in "$@" with no service started or enabled, and leave the
# machine's own policy on services as it was, whatever happens.
# shellcheck disable=SC2016 # expanded by the root shell
APT_INSTALL='
  set -eu
  PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
  export PATH DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
  policy=/usr/sbin/policy-rc.d kept=/usr/sbin/policy-rc.d.kept-by-rediscope
  restore() { rm -f "$policy"; if [ -e "$kept" ]; then mv "$kept" "$policy"; fi; }
  if [ -e "$policy" ] && ! [ -e "$kept" ]; then mv "$policy" "$kept"; fi
  trap restore EXIT
  trap "exit 1" HUP INT TERM
  printf "#!/bin/sh\n# In place while rediscope installs a package; delete it if it was left behind.\nexit 101\n" >"$policy"
  chmod 755 "$policy"
  apt-get -o DPkg::Lock::Timeout=120 update || echo "apt-get update failed; trying with the lists that are here" >&2
  apt-get -o DPkg::Lock::Timeout=120 install -y --no-install-recommends "$@"
  case " $* " in *" redis-server "*)
    for disable in "deb-systemd-helper disable redis-server.service" \
      "systemctl disable redis-server.service" "update-rc.d redis-server disable"
    do
      $disable >/dev/null 2>&1 || true
    done
  esac'

apt_install() {
  local root=""
  command -v apt-get >/dev/null || return 1
  if [ "$(id -u)" -ne 0 ]; then
    if sudo -n true 2>/dev/null; then
      root="sudo -n"
    elif [ -t 0 ] && command -v sudo >/dev/null; then
      root="sudo"
    else
      return 1
    fi
  fi
  echo "+ apt-get update; apt-get install -y --no-install-recommends $*  (${root:-as root}; no service is started or enabled)" >&2
  $root sh -c "$APT_INSTALL" apt_install "$@" </dev/null >&2
}

brew_install() {
  command -v brew >/dev/null || return 1
  echo "+ brew install $*" >&2
  brew install "$@" </dev/null >&2
}

find_redis_server() {
  (PATH="$PATH:/usr/local/bin:/usr/bin:/opt/homebrew/bin" && command -v redis-server)
}

need_redis_server() {
  local by_hand sudo=""
  if [ -n "${REDIS_SERVER:-}" ]; then
    REDIS_SERVER=$(command -v "$REDIS_SERVER") ||
      die "REDIS_SERVER is set, but not to a program that can be run." "Type: unset REDIS_SERVER"
  elif ! REDIS_SERVER=$(find_redis_server); then
    apt_install redis-server || brew_install redis || true
    [ "$(id -u)" -eq 0 ] || sudo="sudo "
    if command -v apt-get >/dev/null; then
      by_hand="${sudo}apt-get update && ${sudo}apt-get install -y --no-install-recommends redis-server"
    elif command -v dnf >/dev/null; then
      by_hand="${sudo}dnf install -y redis"
    elif command -v apk >/dev/null; then
      by_hand="${sudo}apk add redis"
    else
      by_hand="brew install redis"
    fi
    REDIS_SERVER=$(find_redis_server) ||
      die "redis-server is missing and could not be installed from here. Type:" "  $by_hand" \
        "or point at one: export REDIS_SERVER=/path/to/redis-server"
  fi
  export REDIS_SERVER
}

need_cargo() {
  PATH="$PATH:${CARGO_HOME:-${HOME:-}/.cargo}/bin"
  command -v cargo >/dev/null ||
    die "cargo is missing. Install Rust as https://rustup.rs says:" \
      "  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"
  if [ -n "${RUSTUP_TOOLCHAIN:-}" ] && ! cargo --version >/dev/null 2>&1; then
    rustup toolchain install "$RUSTUP_TOOLCHAIN" --profile minimal >&2
  fi
  command -v cc >/dev/null || apt_install gcc libc6-dev || true
  command -v cc >/dev/null ||
    die "A C compiler (cc) is missing, Rust links with it. Type one of:" \
      "  sudo apt-get install -y gcc libc6-dev" "  xcode-select --install"
}

need_component() {
  "cargo-${1/rustfmt/fmt}" --version >/dev/null 2>&1 || rustup component add "$1" >&2 ||
    die "$1 is missing. Type:" "  rustup component add $1"
}

wants_installed() {
  case " ${INSTALL:-} " in *" $1 "*) ;; *) return 1 ;; esac
}

has_cargo_tool() {
  if ! command -v "$1" >/dev/null && wants_installed "$1"; then
    cargo install --locked "$1" >&2 || true
  fi
  command -v "$1" >/dev/null && return
  echo "not run: $1 is not here (cargo install --locked $1)" >&2
  return 1
}

# crate_alone NAME: makes target/alone/NAME, the crate as a dependent sees it: its manifest without
# the development dependencies, benchmarks and other members, beside links to the sources.
# Prints the folder. A lock file there is resolved anew by each script that uses it.
crate_alone() {
  local root folder
  root=$(pwd)
  folder="target/alone/$1"
  mkdir -p "$folder"
  for part in src docs README.md; do ln -sfn "$root/$part" "$folder/$part"; done
  awk '
    /^\[/ { kept = !/^\[(dev-dependencies|workspace|profile|\[bench|\[test)/ }
    kept { print }
    END { print "\n[workspace]\nresolver = \"3\"" }' Cargo.toml >"$folder/Cargo.toml"
  rm -f "$folder/Cargo.lock"
  echo "$folder"
}

# stated_rust: the rust-version of the manifest.
stated_rust() {
  sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml
}

# resolve_alone: writes Cargo.lock in the current folder, with the versions that a dependent gets; offline
# if there is no registry.
resolve_alone() {
  cargo generate-lockfile --quiet 2>/dev/null || cargo generate-lockfile --quiet --offline
}

# registry_has NAME@VERSION: whether the registry can be asked and has it.
registry_has() {
  cargo info --quiet --registry crates-io "$1" >/dev/null 2>&1
}

# check_features: checks the library in the current folder with all features, with none and with each
# alone. A warning is no failure: a newer dependency may deprecate what an older one needs.
check_features() {
  local feature
  cargo check --quiet --locked --lib --all-features
  cargo check --quiet --locked --lib --no-default-features
  for feature in $(awk '/^\[/ { inside = /^\[features\]/ } inside && /^[a-z0-9-]+ *=/ { print $1 }' Cargo.toml); do
    cargo check --quiet --locked --lib --no-default-features --features "$feature"
  done
}
