"""The modules of GR00T N1.5: backbone and action head."""
