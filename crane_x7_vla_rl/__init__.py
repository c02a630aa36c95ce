"""The CRANE-X7 and everything that learns; knows no socket, container or cloud."""
