"""Connect to the three databases, and hide their differences."""
