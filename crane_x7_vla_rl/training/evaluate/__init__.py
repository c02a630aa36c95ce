"""Success of a checkpoint in simulation, errors on recordings."""
