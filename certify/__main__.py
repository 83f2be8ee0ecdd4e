"""`python -m certify` is the command `certify`."""

from certify.cli.main import main

if __name__ == "__main__":
    main()
