"""Usual wrong solutions of exercises 04 to 06; see `wrong_solutions`."""

WRONG: dict[str, dict[str, list[tuple[str, str]]]] = {}
