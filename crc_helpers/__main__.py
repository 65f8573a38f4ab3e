"""`python -m crc_helpers` is `crc-course`."""

from crc_helpers.course.cli import main

raise SystemExit(main())
