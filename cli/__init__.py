"""The `vmae` command: one file per verb."""
