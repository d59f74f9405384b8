"""The pages of the site that `scripts/site` makes of other files of the project."""
