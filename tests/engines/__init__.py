"""Tests against real engines; `environment` builds what they run on."""
