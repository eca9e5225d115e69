"""What tutorials claim, checked against what was measured and planned."""
