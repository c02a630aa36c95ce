"""`crane-x7-remote doctor`: what is wrong with this machine, its robot and its policy."""
