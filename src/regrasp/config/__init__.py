"""Loading, overriding, locating and explaining YAML configuration; the blocks belong to the packages they configure."""
