"""Where the roles run: `local` in one process tree."""
