"""What happens in a container from start to end: settings → tailnet → sshd → role."""
