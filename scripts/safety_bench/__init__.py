"""What scripts/bench_safety is made of: loop, guard and controller in simulated time."""
