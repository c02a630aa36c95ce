"""Parts of scripts/bench_openvla."""
