"""healthcheck as a command."""

import sys

from healthcheck import cli


def main() -> None:
    sys.exit(cli.main())


if __name__ == "__main__":
    main()
