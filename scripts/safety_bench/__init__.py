"""Parts of scripts/bench_safety: loop, guard and controller in simulated time."""
