"""python -m amoeba doctor: what is installed and loaded, and which variant each dtype and shape gets."""

import sys

from . import doctor

USAGE = "usage: python -m amoeba doctor"


def main(arguments):
    if arguments != ["doctor"]:
        print(f"amoeba: got {' '.join(arguments) or 'no command'}, want doctor\n{USAGE}", file=sys.stderr)
        return 2
    print("\n".join(doctor.report()))
    return 0


sys.exit(main(sys.argv[1:]))
