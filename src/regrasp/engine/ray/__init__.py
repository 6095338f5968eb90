"""The engine for several processes, on Ray. Nothing outside this package imports Ray."""
