"""openpi's policy protocol, both ends: our policies for others, others' policies for our loop."""
