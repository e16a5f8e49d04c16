"""The app in a browser: `python app.py`, with the options of `sds3d app`."""

import sys

from sds3d.cli import main

if __name__ == "__main__":
    sys.exit(main(["app", *sys.argv[1:]]))
