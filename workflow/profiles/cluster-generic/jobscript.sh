#!/bin/sh
# properties = {properties}
# What the scheduler runs (Snakemake fills in the braces). It leaves behind NUMBER.log and, when the job has ended by
# itself, NUMBER.ended with the exit status: status.sh reads it. A job that is killed leaves none.
number=${{PBS_JOBID:-${{SLURM_JOB_ID:-${{LSB_JOBID:-$JOB_ID}}}}}}
cd "${{PBS_O_WORKDIR:-${{SGE_O_WORKDIR:-${{SLURM_SUBMIT_DIR:-.}}}}}}" || exit 1
job=$PWD/.snakemake/cluster/${{number%%.*}}
mkdir -p "$PWD/.snakemake/cluster"
rm -f "$job.ended"
exec > "$job.log" 2>&1
trap 'status=$?; echo $status > "$job.part" && mv "$job.part" "$job.ended"; exit $status' EXIT
# Told to go, perhaps to be started again elsewhere: not an end.
trap 'trap - EXIT; exit 143' TERM
{exec_job}
