"""What every training shares: the loop over steps, its progress, the state to resume from."""
