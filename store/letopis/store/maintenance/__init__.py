"""Check, repair and rebuild a history store, and finish its pending tasks."""
