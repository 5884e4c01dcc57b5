"""What a company knows about its databases, from its own file, dbt and BIRD's descriptions."""
