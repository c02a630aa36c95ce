"""What scripts/bench_server is made of."""
