"""Where tokens come from, chosen by URI scheme."""
