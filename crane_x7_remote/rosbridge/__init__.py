"""The rosbridge v2 protocol: operations (no I/O), messages, and the client."""
