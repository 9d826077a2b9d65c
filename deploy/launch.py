"""The command `moola`, by the path of a checkout: `python deploy/launch.py precompute`."""

from moola.__main__ import main

if __name__ == "__main__":
    main()
