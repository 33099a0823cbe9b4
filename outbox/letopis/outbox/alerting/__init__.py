"""Alerting: incidents, notifications, channels, and the monitor that drives them."""
