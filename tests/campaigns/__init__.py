"""Send real input through the real command into real stores, while everything around it breaks."""
