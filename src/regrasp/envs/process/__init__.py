"""A simulator in its own process: JSON commands over a socket, arrays in shared memory, no pickle."""
