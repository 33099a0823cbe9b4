"""The proof: nothing is lost, shown by breaking all that can be broken; each part with a control that must fail."""
