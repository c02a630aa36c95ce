"""Parts of scripts/bench_rl."""
