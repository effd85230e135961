"""`python -m vctool` is `vctool`."""

from vctool.cli import main

if __name__ == "__main__":
    main()
