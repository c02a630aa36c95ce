"""Start and end of a container: settings → tailnet → sshd → role."""
