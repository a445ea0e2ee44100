"""Where a study stands while it runs: what is done, what it cost so far, what went wrong."""
