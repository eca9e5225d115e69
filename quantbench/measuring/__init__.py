"""What a worker does: subjects, passes, the anchor."""
