"""Where tiles come from: drawn, or read from files, one file a format; and their cache."""
