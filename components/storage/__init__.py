"""Artifact stores (files, S3) and the manifests of published models."""
