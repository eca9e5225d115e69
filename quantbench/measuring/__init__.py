"""The work of a worker process: subjects, passes, the anchor."""
