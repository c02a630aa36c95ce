"""Functions of the operating system that several processes use."""
