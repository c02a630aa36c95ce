"""Random schedules of faults for `crane-x7-remote cloud`: seed → what was lost or left."""
