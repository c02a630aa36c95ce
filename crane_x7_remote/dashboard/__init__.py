"""A page that shows what the machine does: camera, arm, loop, guard, recording, training."""
