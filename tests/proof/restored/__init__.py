"""Set stores back, cut them short or swallow their rows; they heal without a restart, or an operator is alerted."""
