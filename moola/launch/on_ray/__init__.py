"""Members of a group as tasks of a Ray cluster; the run protocol stays as it is everywhere."""
