"""Parts of scripts/bench_sft."""
