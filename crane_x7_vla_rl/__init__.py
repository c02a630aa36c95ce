"""The CRANE-X7, its policies, data, simulation and training; no sockets, containers or clouds."""
