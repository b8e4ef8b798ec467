"""What inspects, compares and measures models; no box of the model itself."""
