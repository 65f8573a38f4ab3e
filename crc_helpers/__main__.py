"""`python -m crc_helpers` is `crc-course`."""

from crc_helpers.course import main

raise SystemExit(main())
