"""`python -m crc_helpers` is `crc-course`."""

import sys

from crc_helpers.course.cli import main

sys.exit(main())
