"""Prove that nothing is lost by breaking all that can be broken; each part has a control that must fail."""
