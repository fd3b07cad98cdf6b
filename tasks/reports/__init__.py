"""What a run reports, and results that several machines share."""
