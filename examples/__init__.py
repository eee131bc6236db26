"""Scripts that users run, and the parts they are made of. Not installed with the `hypernet` package."""
