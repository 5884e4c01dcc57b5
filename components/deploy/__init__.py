"""Serve a published model in a cluster with Helm; if the new version fails, the old one is restored."""
