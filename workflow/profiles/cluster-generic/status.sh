#!/bin/sh
# Is a job still there, and how did it end? Prints running, success or failed, as the executor cluster-generic asks.
#
#   status.sh NUMBER
#
# A job that has ended by itself has said so (jobscript.sh). One that has not, and that the scheduler does not list any
# more, was killed. CLUSTER_JOBS is the command that lists jobs, number first; lines whose fifth word is C or F (qstat:
# completed, finished) do not count.
number=${1%%.*}
ended=.snakemake/cluster/$number.ended

answer_if_ended() {
    if [ -s "$ended" ]; then
        if [ "$(cat "$ended")" = 0 ]; then echo success; else echo failed; fi
        exit 0
    fi
}

answer_if_ended
if [ -z "$CLUSTER_JOBS" ]; then
    if command -v squeue > /dev/null; then CLUSTER_JOBS="squeue --noheader --format=%A"; else CLUSTER_JOBS=qstat; fi
fi
# A scheduler that does not answer says nothing about the job.
if ! jobs=$(eval "$CLUSTER_JOBS" 2> /dev/null); then
    echo running
    exit 0
fi
if printf '%s\n' "$jobs" | awk -v number="$number" '
    { sub(/[^0-9].*/, "", $1) }
    $1 == number && $5 !~ /^[CF]$/ { found = 1 }
    END { exit !found }'; then
    echo running
    exit 0
fi
sleep "${CLUSTER_SECONDS:-5}" # its last word may still be on its way to this machine
answer_if_ended
echo failed
