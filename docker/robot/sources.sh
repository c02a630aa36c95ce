#!/usr/bin/env bash
# Fetch the maker's two repositories into this folder, each at one commit or branch.
set -euo pipefail

case "${ROS_DISTRO:?}" in
    humble) driver=52fca058c7c46af63bc35fc5f5873dfc4c2fc08d model=44a1292 ;; # 4.4.0; model: 2023-08-24
    jazzy) driver=ros2 model=ros2 ;;
    *)
        echo "sources.sh: ROS_DISTRO=$ROS_DISTRO, expected humble or jazzy" >&2
        exit 1
        ;;
esac

fetch() { # REPOSITORY COMMIT_OR_BRANCH
    git clone --quiet "https://github.com/rt-net/$1.git"
    git -C "$1" checkout --quiet --detach "$2" 2>/dev/null \
        || git -C "$1" checkout --quiet --detach "origin/$2"
    echo "$1 $(git -C "$1" rev-parse HEAD)" | tee -a versions.txt
}

fetch crane_x7_ros "${CRANE_X7_ROS_REF:-$driver}"
fetch crane_x7_description "${CRANE_X7_DESCRIPTION_REF:-$model}"
