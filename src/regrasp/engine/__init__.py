"""Where policy, optimizer and environments of a run live: the contract, and `local` in one process tree."""
