#!/usr/bin/env bash
# A training on a rented machine, in a session that outlives the connection that started it.
#
#   session.sh ID watch          start the watchdog, once
#   session.sh ID start MODE     start setup_env.sh MODE, once
#   session.sh ID look OFFSET    a sign of life; prints one line of state, then the log from a byte on
#   session.sh ID stop           SIGTERM to the training: it saves and ends
#
# Everything of a session is in sessions/ID beside this file: limits (dead_man_cs, deadline_cs, save_cs,
# outputs), end.sh (how the machine ends itself), log, phase, exit_code. All times are the kernel's uptime
# in hundredths of a second, so that a wrong or changing clock ends nothing.
set -u
cd "$(dirname "$0")" || exit 1
here="$(pwd)"
id="${1:?ID}" verb="${2:?verb}"
session="$here/sessions/$id"
mkdir -p "$session" && cd "$session" || exit 1
dead_man_cs=180000 deadline_cs=0 save_cs=90000 outputs=outputs
# shellcheck source=/dev/null
[ ! -f limits ] || . ./limits

uptime_cs() {
    local text
    read -r text _ </proc/uptime
    echo "$((10#${text/./}))"
}

born() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; } # when a process started

runs() { # whether the process that a file names still runs
    local pid when
    [ -f "$1" ] && read -r pid when <"$1" && [ -n "$when" ] && [ "$(born "$pid")" = "$when" ]
}

leads() { runs leader; } # setup_env.sh, which becomes the training

write() { printf '%s\n' "$2" >"$1.new" && mv "$1.new" "$1"; }

stop_job() {
    local pid
    leads || return 0
    read -r pid _ <leader
    if [ "$(cat phase 2>/dev/null)" = training ]; then
        kill -TERM "$pid" # saves; its own processes are its own matter
    else
        kill -TERM -- "-$pid"
    fi
}

job() {
    local child code
    exec >>log 2>&1 </dev/null
    write runner "$$ $(born "$$")"
    CLOUD_SESSION="$session" setsid bash "$here/setup_env.sh" "$1" &
    child=$!
    write leader "$child $(born "$child")"
    wait "$child"
    code=$?
    write exit_code "$code"
}

watch() {
    local began last now beat='' new='' why patience
    began="$(uptime_cs)" last="$began"
    while [ -f end.sh ]; do # whoever removes the session ends its watchdog
        now="$(uptime_cs)"
        new="$(cat heartbeat 2>/dev/null)"
        if [ -n "$new" ] && [ "$new" != "$beat" ]; then beat="$new" last="$now"; fi
        # shellcheck source=/dev/null
        [ ! -f limits ] || . ./limits
        if [ $((now - last)) -ge "$dead_man_cs" ]; then
            why="silence"
        elif [ "$deadline_cs" -gt 0 ] && [ $((now - began)) -ge "$deadline_cs" ]; then
            why="deadline"
        else
            sleep "$((dead_man_cs > 3000 ? 1000 : dead_man_cs / 3 + 1))e-2"
            continue
        fi
        break
    done
    [ -f end.sh ] || return 0
    write ended "$why"
    echo "watchdog: $why; the training is told to save, then this machine ends itself" >>log
    stop_job
    patience=$((now + save_cs))
    while leads && [ "$(uptime_cs)" -lt "$patience" ]; do sleep 0.2; done
    if leads; then
        read -r child _ <leader
        kill -KILL -- "-$child"
    fi
    # shellcheck source=/dev/null
    . ./end.sh
    while [ -f end.sh ]; do
        end_machine >>watch.log 2>&1
        sleep 60
    done
}

look() {
    local size=0 code=- alive=0 free saved ended=-
    uptime_cs >heartbeat
    { leads || runs runner; } && alive=1
    [ ! -f exit_code ] || code="$(cat exit_code)" alive=0
    [ ! -f ended ] || ended="$(cat ended)"
    [ ! -f log ] || size="$(stat -c %s log)"
    free="$(df -Pm . | awk 'NR == 2 {print $4}')"
    case "$outputs" in /*) ;; *) outputs="$here/$outputs" ;; esac
    saved="$(find "$outputs" -maxdepth 5 -type d ! -name '.*' -path '*checkpoint*' -regex '.*[/_-][0-9]+' \
        2>/dev/null | sed 's/.*[^0-9]//' | sort -n | tail -n 1)"
    printf 'session phase=%s code=%s alive=%s size=%s free_mb=%s saved=%s ended=%s started=%s\n' \
        "$(cat phase 2>/dev/null || echo waiting)" "$code" "$alive" "$size" "${free:-0}" "${saved:--}" \
        "$ended" "$([ -d started ] && echo 1 || echo 0)"
    [ "$1" -ge "$size" ] || tail -c "+$(($1 + 1))" log | head -c 262144
}

detached() { setsid nohup bash "$here/session.sh" "$id" "$@" </dev/null >/dev/null 2>>watch.log & }

case "$verb" in
watch)
    if mkdir watching 2>/dev/null; then
        uptime_cs >heartbeat
        detached run-watch
    fi
    ;;
start) if mkdir started 2>/dev/null; then detached run-job "${3:?MODE}"; fi ;;
look) look "${3:?OFFSET}" ;;
stop)
    write ended stopped
    stop_job
    ;;
run-watch) watch ;;
run-job) job "${3:?MODE}" ;;
*)
    echo "session.sh: $verb is unknown" >&2
    exit 2
    ;;
esac
