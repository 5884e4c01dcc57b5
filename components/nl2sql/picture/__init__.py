"""A schema as a picture: the drawing, its layout, and the clusters of a large schema."""
