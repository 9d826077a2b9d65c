"""The command line: one file per group of commands, all of them listed in `app`."""
