"""What a person gets wrong on a machine, found by small checks; each finding says what to do."""
