#!/bin/sh
# Start the guard: where GUARD_LISTEN says, else at ports 9090 and 9091 of this machine and of its tailnet.
set -eu

if [ -z "${GUARD_LISTEN:-}" ]; then
    GUARD_LISTEN=127.0.0.1:9090,127.0.0.1:9091
    # Addresses of a tailnet are 100.64.0.0/10; it must be up before this container.
    for address in $(hostname -I | tr ' ' '\n' | awk -F. 'NF == 4 && $1 == 100 && $2 >= 64 && $2 < 128'); do
        GUARD_LISTEN="$GUARD_LISTEN,$address:9090,$address:9091"
    done
    export GUARD_LISTEN
fi
exec crane-x7-remote guard
