"""Settings → tailnet → sshd → role: what happens in a container from its start to its end."""
