"""One check of a base model's folder, which train, merge, convert, estimate and doctor run before anything else."""
