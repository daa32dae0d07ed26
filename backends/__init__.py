"""Engines as processes: settings to argv, lifecycle, supervision, leases, diagnosis. Never a web framework."""
