#!/usr/bin/env bash
# On the rented machine: make what a training needs, then become the training.
#
#   setup_env.sh train|resume_hub|resume_local|auto|job|none
#
# Where crane-x7-vla-rl is there already, as in this project's image, nothing is installed. On a bare
# machine with CUDA's driver this makes .venv (this project, from package.tar.gz) and, for LeRobot,
# .venv-lerobot, beside this file. What is there already is kept: an interrupted call continues.
set -euo pipefail
cd "$(dirname "$0")"
mode="${1:?train, resume_hub, resume_local, auto, job, or none: only install}"

say() { printf 'setup_env: %s\n' "$*"; }
die() { say "$*"; exit 1; }
phase() { [ -z "${CLOUD_SESSION:-}" ] || { echo "$1" >"$CLOUD_SESSION/phase.new" && mv "$CLOUD_SESSION/phase.new" "$CLOUD_SESSION/phase"; }; }

lerobot='lerobot[training,smolvla,pi,diffusion,peft]==0.6.1'
needs=(msgpack websockets simplejpeg 'cbor2>=6' 'python-socks[asyncio]' pydantic-settings)
job="$(cat job_kind 2>/dev/null || echo lerobot)" # lerobot, sft or train
[ ! -d /opt/venv/bin ] || PATH="/opt/venv/bin:$PATH"
[ ! -d .venv/bin ] || PATH="$PWD/.venv/bin:$PATH"
export PATH

python_fits() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in ((3, 12), (3, 13)))' 2>/dev/null; }

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

apt_install() {
    command -v apt-get >/dev/null || return 1
    say "installing $*"
    as_root apt-get update -qq && as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
        --no-install-recommends "$@" >/dev/null
}

find_python() { # LeRobot needs 3.12; one environment's Python serves both
    local candidate
    for candidate in python3.12 python3.13 python3 ./python/bin/python3; do
        if python_fits "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

get_python() {
    find_python >/dev/null && return
    apt_install python3.12-venv && find_python >/dev/null && return
    # An older distribution: uv brings a Python of its own.
    python3 -c 'import venv, ensurepip' 2>/dev/null || apt_install python3-venv ca-certificates \
        || die "no Python with venv, and apt-get cannot install one; choose an image with Python 3.12"
    say "fetching Python 3.12"
    [ -x .uv/bin/uv ] || { python3 -m venv --clear .uv && .uv/bin/python -m pip install --quiet --disable-pip-version-check uv; }
    .uv/bin/uv python install --quiet --install-dir "$PWD/.pythons" 3.12
    ln -sfn "$(dirname "$(dirname "$(.uv/bin/uv python find --managed-python 3.12)")")" python
    find_python >/dev/null || die "no Python 3.12 after all; choose an image that has it"
}

system_libraries() { # OpenCV's and, for simulation, Vulkan's; a container's base image lacks them
    local wanted=(libgl1 libglib2.0-0)
    [ "$job" != train ] || wanted+=(libegl1 libvulkan1 libx11-6 libxext6 libglvnd0)
    if ! ldconfig -p 2>/dev/null | grep -q libGL.so.1; then apt_install "${wanted[@]}" || say "libGL is missing: OpenCV may not start"; fi
}

unpack() { # the package as it is at home, named by its own checksum
    local sum
    sum="$(sha256sum package.tar.gz | cut -d' ' -f1)"
    [ "$(cat package/.sum 2>/dev/null)" != "$sum" ] || return 0
    rm -rf package package.new && mkdir package.new && tar -xzf package.tar.gz -C package.new
    echo "$sum" >package.new/.sum && mv package.new package
}

install_into() { # install_into VENV LABEL pip-words… : once, named by what is installed
    local venv="$1" label="$2" stamp
    shift 2
    stamp="$(printf '%s\n' "$*" | cat - package/constraints*.txt package/requirements*.txt | sha256sum | cut -d' ' -f1)"
    if [ "$(cat "$venv/.stamp" 2>/dev/null)" = "$stamp" ]; then return; fi
    "$venv/bin/python" -c '' 2>/dev/null || "$python" -m venv --clear "$venv"
    say "installing $label (several minutes the first time)"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
    for site in "$venv"/lib/python3*/site-packages; do echo "$PWD/package" >"$site/crane_x7.pth"; done
    echo "$stamp" >"$venv/.stamp"
}

has_lerobot() { [ -x /opt/venv-lerobot/bin/python ] || [ -x "${LEROBOT_VENV:-/none}/bin/python" ]; }

phase installing
if command -v crane-x7-vla-rl >/dev/null && [ ! -d .venv ] && { [ "$job" != lerobot ] || has_lerobot; }; then
    say "$(crane-x7-vla-rl --version) is there: nothing is installed"
else
    [ -f package.tar.gz ] || die "package.tar.gz is missing: start this with crane-x7-remote cloud train"
    free_mb="$(df -Pm . | awk 'NR == 2 {print $4}')"
    [ -f .venv/.stamp ] || [ "$free_mb" -ge 9000 ] || die "only $free_mb MB are free, and the packages take 7 GB; rent a larger disk (--disk-gb)"
    get_python
    python="$(find_python)"
    system_libraries
    unpack
    extra=()
    [ "$job" = lerobot ] || extra=(-r "package/requirements-$job.txt")
    install_into .venv "this project" -c package/constraints.txt -r package/requirements.txt "${extra[@]}"
    cat >.venv/bin/crane-x7-vla-rl <<EOT
#!/bin/sh
exec "$PWD/.venv/bin/python" -m crane_x7_vla_rl.training.cli "\$@"
EOT
    chmod +x .venv/bin/crane-x7-vla-rl
    if [ "$job" = lerobot ] && ! has_lerobot; then
        install_into .venv-lerobot LeRobot -c package/constraints-lerobot.txt "$lerobot" "${needs[@]}"
    fi
    PATH="$PWD/.venv/bin:$PATH"
fi
[ ! -x .venv-lerobot/bin/python ] || export LEROBOT_VENV="$PWD/.venv-lerobot"
[ "$mode" != none ] || exit 0
phase training
if [ -f .env ]; then # NAME='value' per line, as env_file.py has quoted it
    set -a
    # shellcheck source=/dev/null
    . ./.env
    set +a
    [ -z "${CLOUD_SESSION:-}" ] || rm .env # a disk that is kept then holds no secret
fi
export OUTPUT_ROOT="${OUTPUT_ROOT:-outputs}" PYTHONUNBUFFERED=1 HF_HUB_DISABLE_PROGRESS_BARS=1
python="$(command -v python3 || echo .venv/bin/python)"
repo=()
[ ! -f checkpoint_repo ] || repo=(--checkpoint-repo-id "$(cat checkpoint_repo)")
exec "$python" train_lerobot_entry.py --mode "$mode" --config train.remote.yaml "${repo[@]}"
