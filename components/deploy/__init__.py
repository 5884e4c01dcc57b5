"""A published model served in a cluster: Helm, watched, and back to the old version when the new one is no good."""
