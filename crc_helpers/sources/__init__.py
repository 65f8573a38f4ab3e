"""Sources of tiles, one file a format, drawn or read from files; and the cache of tiles."""
